"""Training what an edited model has instead of what it lost: which parameters, towards what, and what a step costs.

All of it is transformers' Trainer with what every training of this package adds to it: AdamW, a learning rate that
falls to 0 without a warm-up, gradients clipped at a norm of 1, the same order of rows for the same seed.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, NamedTuple

import torch
from choosing import Skip
from peft import LoraConfig, get_peft_model
from scoring import LOADING, Study, linearized
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from rectilinear import Fitting, Selection
from rectilinear.linearization.fit import Fitted
from rectilinear.linearization.heal import heal
from rectilinear.linearization.kinds.base import Kind
from rectilinear.linearization.plan import Plan
from rectilinear.linearization.workbench import Workbench, count_fitted
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.load import load_model, load_tokenizer
from rectilinear.models.origin import Origin
from rectilinear.models.part_probe import probe_parts
from rectilinear.models.parts import Parts
from rectilinear.models.running import own_randomness
from rectilinear.models.stand_ins import StandIn
from rectilinear.training.trainer import GuardedTrainer, training_arguments

#: ``states``: the original's hidden states (`heal`), perhaps with its predictions; ``logits``: its predictions alone;
#: ``text``: the next token.
Goal = Literal["states", "states-logits", "logits", "text"]


@dataclass(frozen=True)
class Way:
    """How an edited model is trained.

    Attributes:
        goal: towards what.
        lora: LoRA of the linear layers that are left, not the edited model's own parts.
    """

    goal: Goal
    lora: bool = False


class Course(NamedTuple):
    """So many steps of so many rows, the learning rate that the first has, and the seed of all that is drawn."""

    steps: int
    rate: float
    rows: int
    seed: int = 0


@dataclass(frozen=True, eq=False)
class Edited:
    """An edited model before it is trained, its original, and the rows.

    Attributes:
        original, model: both as they are loaded or made; neither is ever changed.
        plan: what was done to the model.
        fitted: the rows that it was fitted on, to train on, ``[rows, seq_len]``.
        held_out: rows of the same text, to choose by, ``[rows, seq_len]``.
        batch: rows in a forward pass where nothing is trained.
    """

    original: Any
    model: Any
    plan: Plan
    fitted: Tensor
    held_out: Tensor
    batch: int

    @classmethod
    def of(cls, study: Study, model: Path, texts: Path, kind: Kind, selection: Selection) -> Edited:
        """What `rectilinear.linearize` makes of a study's model."""
        made = linearized(study, model, texts, kind, selection)
        ids = Origin(model, LOADING).rows(texts / study.fit, study.rows, load_tokenizer(model)).ids
        count = count_fitted(ids)
        return cls(load_model(model, LOADING), made.model, made.plan, ids[:count], ids[count:], study.batch)

    @cached_property
    def parts(self) -> Parts:
        """Where the original's attentions and MLPs are."""
        return probe_parts(self.original, find_blocks(self.original), self.fitted)

    def held_out_loss(self, model: Any) -> float:
        """Nats a token on the rows to choose by."""
        return measure_perplexity(model, self.held_out, self.batch).loss

    def own_parts(self, model: Any) -> list[nn.Module]:
        """What of the model or a copy of it is trained where LoRA is not: stand-ins, or what is beside a cut.

        Where a span of blocks was left out with nothing in its place, these are the blocks before it and after it.
        """
        stand_ins = [module for module in model.modules() if isinstance(module, StandIn)]
        if stand_ins:
            return stand_ins
        stack, first = find_blocks(model), min(self.plan.removed)
        return [stack.blocks[index] for index in (first - 1, first) if 0 <= index < len(stack)]


def trained_parameters(edited: Edited, way: Way) -> int:
    """How many numbers are trained."""
    if way.lora:
        return lora_rank(edited) * sum(map(sum, linear_layers(edited.model).values()))
    return sum(each.numel() for part in edited.own_parts(edited.model) for each in part.parameters())


def linear_layers(model: Any) -> dict[str, tuple[int, int]]:
    """Paths and sizes of the linear layers in a model's blocks that are no part of a stand-in."""
    inside = {each for module in model.modules() if isinstance(module, StandIn) for each in module.modules()}
    stack = find_blocks(model)
    return {
        f"{stack.path_of(index)}.{path}": (module.in_features, module.out_features)
        for index, block in enumerate(stack.blocks)
        for path, module in block.named_modules()
        if isinstance(module, nn.Linear) and module not in inside
    }


def lora_rank(edited: Edited) -> int:
    """The rank at which LoRA trains about as many parameters as the edited model's own parts have."""
    each = sum(map(sum, linear_layers(edited.model).values()))
    return max(1, round(trained_parameters(edited, Way("text")) / each))


def train(edited: Edited, way: Way, course: Course) -> Any:
    """A trained copy of the edited model.

    Raises:
        JobError: a loss or a gradient that is not finite.
    """
    model = copy.deepcopy(edited.model)
    if way.goal.startswith("states"):
        return heal_copy(edited, model, course, logits=float(way.goal == "states-logits"))
    caches, model.config.use_cache = model.config.use_cache, False
    with own_randomness():
        torch.manual_seed(course.seed)
        if way.lora:
            rank = lora_rank(edited)
            options = {"target_modules": [*linear_layers(model)], "r": rank, "lora_alpha": 2 * rank}
            learner = get_peft_model(model, LoraConfig(**options))
        else:
            learner = model.requires_grad_(False)
            for part in edited.own_parts(model):
                part.requires_grad_(True)
        run_trainer(learner, edited, way, course)
    trained = learner.merge_and_unload() if way.lora else model.requires_grad_(True)
    trained.config.use_cache = caches
    return trained.eval()


def run_trainer(learner: Any, edited: Edited, way: Way, course: Course) -> None:
    """Train what of a model wants gradients."""
    rows: list[Any] = [{"input_ids": row, "labels": row} for row in edited.fitted]
    with TemporaryDirectory() as scratch:  # Trainer wants a folder, and leaves it empty
        arguments = training_arguments(
            scratch,
            course.steps,
            on_cpu=True,
            learning_rate=course.rate,
            per_device_train_batch_size=course.rows,
            seed=course.seed,
            save_strategy="no",
            logging_strategy="no",
            remove_unused_columns=False,
        )
        trainer = (Distiller if way.goal == "logits" else GuardedTrainer)(learner, arguments, train_dataset=rows)
        trainer.original = edited.original
        trainer.train_from(None)


class Distiller(GuardedTrainer):
    """Trainer towards the original's next-token distribution: KL(original || model), a mean over tokens."""

    original: Any

    def compute_loss(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """The loss of a batch, a scalar."""
        with torch.no_grad():
            wanted = self.original(input_ids=inputs["input_ids"], use_cache=False).logits
        ours, theirs = (
            log_softmax(logits.flatten(0, 1).float(), -1)
            for logits in (model(input_ids=inputs["input_ids"]).logits, wanted)
        )
        return kl_div(ours, theirs, reduction="batchmean", log_target=True)


def heal_copy(edited: Edited, model: Any, course: Course, logits: float) -> Any:
    """Heal the stand-ins of a copy of the edited model, as `rectilinear.linearize` does after the fit."""
    original = edited.original
    stack, left = find_blocks(original), find_blocks(model)
    places = [index for index in range(len(stack)) if index not in edited.plan.removed]
    padding = next(module for module in model.modules() if isinstance(module, StandIn)).padding
    bench = Workbench(original, stack, edited.parts, padding, torch.split(edited.fitted, edited.batch))
    fits = []
    for one in edited.plan.replacements:
        edits: dict[str, nn.Module] = {stack.path_of(index): Skip() for index in set(one.blocks) - set(places)}
        for index in set(one.blocks) & set(places):
            own = left.path_of(places.index(index))
            for path, module in model.get_submodule(own).named_modules(prefix=stack.path_of(index)):
                edits |= {path: module} if isinstance(module, StandIn) else {}
        fits.append(Fitted(one, edits))
    fitting = Fitting(
        heal_steps=course.steps, heal_learning_rate=course.rate, heal_batch_size=course.rows, heal_logits=logits
    )
    heal(bench, fits, edited.held_out[:0], fitting, course.seed)
    return model


def costs(edited: Edited, way: Way, rows: int) -> dict[str, int]:
    """Floating-point operations of a step of some rows, and those once before or after all steps.

    Those of products of matrices and of attention, forward and backward, as PyTorch's counter has them: a
    multiplication and an addition are two, and attention is counted without what its mask saves.
    """

    def spent(steps: int) -> int:
        with FlopCounterMode(display=False, custom_mapping=CPU_ATTENTION) as counter:
            train(edited, way, Course(steps, 1e-6, rows))
        return counter.get_total_flops()

    if way.goal.startswith("states"):
        _ = edited.parts  # found once for all
    one, three = spent(1), spent(3)
    step = (three - one) // 2
    return {"step": step, "once": one - step}


#: How PyTorch's counter is to count its attention for CPUs, which it does not know: as the others.
CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *args, **kwargs: sdpa_flop_count(q, k, v)
    ),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *args, **kwargs: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


def steps_within(budget: int, cost: dict[str, int]) -> int:
    """How many steps come nearest to so many operations."""
    return max(1, math.floor((budget - cost["once"]) / cost["step"] + 0.5))
