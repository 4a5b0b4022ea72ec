"""Healing: training the stand-ins, and nothing else, towards the original's hidden states."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss
from transformers.utils import SAFE_WEIGHTS_NAME

from rectilinear.errors import JobError
from rectilinear.linearization.fit import Fitted, Workbench, merge_edits, noting_padding
from rectilinear.linearization.plan import HealRecord
from rectilinear.linearization.settings import Fitting
from rectilinear.measurement.collect import count_rows, mask_of
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.models.capture import device_of, evaluating, own_randomness, states_after
from rectilinear.models.series import steps_of
from rectilinear.models.surgery import Edits, find_target, swapped
from rectilinear.progress import Progress
from rectilinear.text.batches import Batch
from rectilinear.training.trainer import GuardedTrainer, StepProgress, last_checkpoint, training_arguments


def heal(
    bench: Workbench,
    fits: Sequence[Fitted],
    held_out: Tensor,
    fitting: Fitting,
    seed: int = 0,
    folder: Path | None = None,
) -> HealRecord:
    """Train the modules of some fits by distillation (arXiv 2405.12250), in place, with transformers' Trainer.

    The loss is the mean, over the replaced blocks, of the mean squared error of the hidden states after the block in
    the edited model to those at the same depth in the original, divided by the variance of the original's there (over
    all tokens to train on), so that blocks weigh alike; plus ``heal_logits`` times KL(original || edited) of the next
    token's distribution, averaged over tokens. There are no labels, and padding does not count. Blocks
    dropped before the first stand-in are left out: nothing that is trained comes before them.

    Both models run in evaluation mode and are one: the edits are put in for the edited model's pass and taken out
    again, so that what is not replaced is in memory once. The trained weights are kept in float32 at least, and rounded
    to the model's precision in each pass.

    Args:
        bench: the original, and the rows to train on.
        fits: all that is replaced.
        held_out: other rows, token ids ``[rows, seq_len]``, perhaps none, to measure on before and after.
        fitting, seed: how, and in which order of the rows.
        folder: where to keep the last of ten checkpoints, and to go on from the one that is there.

    Raises:
        JobError: a loss that is not finite, or hidden states more than twice as far from the original's as before.
    """
    lesson = _Lesson.of(bench, fits)
    parts = torch.split(held_out, fitting.heal_batch_size) if len(held_out) else ()
    frozen = _frozen([*bench.model.parameters(), *lesson.trained])
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]  # Trainer seeds them all
    with frozen, evaluating(bench.model), noting_padding(bench), own_randomness(*gpus):
        pupil = _Pupil(lesson, lesson.variances(bench.batches, bench.progress), fitting.heal_logits)

        def measured() -> tuple[float | None, float | None]:
            with swapped(bench.model, lesson.edits):
                loss = measure_perplexity(bench.model, held_out, fitting.heal_batch_size).loss if parts else None
            return pupil.distance(parts) if parts else None, loss

        mse_before, loss_before = measured()
        _train(pupil, bench, fitting, seed, folder)
        mse_after, loss_after = measured()
    _check_healed(mse_before, mse_after)
    return HealRecord(
        steps=fitting.heal_steps,
        learning_rate=fitting.heal_learning_rate,
        batch_size=fitting.heal_batch_size,
        logits_weight=fitting.heal_logits,
        seed=seed,
        mse_before=mse_before,
        mse_after=mse_after,
        loss_before=loss_before,
        loss_after=loss_after,
    )


def _check_healed(before: float | None, after: float | None) -> None:
    if before is not None and after is not None and not after <= 2 * before:
        raise JobError(
            f"healing made it worse: relative error of hidden states {before:.4g} -> {after:.4g}; "
            "try a smaller `heal_learning_rate`"
        )


@dataclass(frozen=True, eq=False)
class _Lesson:
    """The original and the edited model in one, and where to compare them.

    Attributes:
        bench: the original.
        edits: what makes it the edited model.
        blocks: dotted paths of the blocks after which hidden states are compared.
        trained: parameters of the edits.
    """

    bench: Workbench
    edits: Edits
    blocks: tuple[str, ...]
    trained: tuple[nn.Parameter, ...]

    @classmethod
    def of(cls, bench: Workbench, fits: Sequence[Fitted]) -> _Lesson:
        """What to compare for some fits."""
        edits = merge_edits(fits)
        first = min(fitted.replacement.blocks[0] for fitted in fits if fitted.replacement.by.trainable)
        last = {fitted.replacement.blocks[-1] for fitted in fits}
        blocks = tuple(find_target(bench.stack, index, "block") for index in sorted(last) if index >= first)
        trained = tuple(parameter for module in edits.values() for parameter in module.parameters())
        return cls(bench, edits, blocks, trained)

    def original(self, batch: Batch, logits: bool = False) -> tuple[list[Tensor], Tensor | None]:
        """Hidden states ``[rows, seq_len, width]`` after each of the blocks, and logits, of the original."""
        with torch.no_grad():
            return states_after(self.bench.model, batch, self._modules(), logits=logits)

    def edited(
        self, batch: Batch, weights: Sequence[Tensor], logits: bool = False
    ) -> tuple[list[Tensor], Tensor | None]:
        """The same of the edited model, with weights in the places of its trained parameters."""
        own = {own: weight.to(own) for own, weight in zip(self.trained, weights, strict=True)}
        with swapped(self.bench.model, self.edits):
            return states_after(self.bench.model, batch, self._modules(), own, logits=logits)

    def variances(self, batches: Sequence[Batch], progress: Progress | None) -> Tensor:
        """``[blocks]`` float32: mean over coordinates of the variance of the original's states over all tokens."""
        zero = torch.zeros((), dtype=self.bench.precision)
        sums, squares = [zero] * len(self.blocks), [zero] * len(self.blocks)
        tokens, done, total = 0, 0, sum(map(count_rows, batches))
        for batch in batches:
            states = [self.bench.exact(_real(state, batch)) for state in self.original(batch)[0]]
            sums = [old.to(state.device) + state.sum(0) for old, state in zip(sums, states, strict=True)]
            squares = [old.to(state.device) + state.square().sum(0) for old, state in zip(squares, states, strict=True)]
            tokens, done = tokens + len(states[0]), done + count_rows(batch)
            if progress:
                progress("states to heal towards", done, total)
        moments = zip(sums, squares, strict=True)
        return torch.tensor([float((both / tokens - (one / tokens).square()).mean()) for one, both in moments])

    def _modules(self) -> list[nn.Module]:
        return [self.bench.model.get_submodule(path) for path in self.blocks]


class _Pupil(nn.Module):
    """What is trained, and the loss of it: the rest of the model is no submodule, nor part of checkpoints."""

    def __init__(self, lesson: _Lesson, variances: Tensor, logits_weight: float) -> None:
        super().__init__()
        exact = [torch.promote_types(own.dtype, torch.float32) for own in lesson.trained]
        copies = [own.detach().to(dtype, copy=True) for own, dtype in zip(lesson.trained, exact, strict=True)]
        self.weights = nn.ParameterList(copies)
        self.lesson, self.variances, self.logits_weight = lesson, variances, logits_weight

    def forward(self, **batch: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        wanted, predicted = self.lesson.original(batch, self.logits_weight > 0)
        states, logits = self.lesson.edited(batch, [*self.weights], self.logits_weight > 0)
        loss = self._relative_error(states, wanted, batch)
        if logits is not None and predicted is not None:
            ours, theirs = (log_softmax(_exact(_real(part, batch)), -1) for part in (logits, predicted))
            loss = loss + self.logits_weight * kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return loss.to(self.weights[0].device)

    def distance(self, batches: Sequence[Batch]) -> float:
        """Squared error of hidden states relative to their variance, over all tokens of some batches."""
        total = tokens = 0.0
        with torch.no_grad():
            for batch in batches:
                wanted = self.lesson.original(batch)[0]
                states = self.lesson.edited(batch, [*self.weights])[0]
                count = len(_real(wanted[0], batch))
                total += float(self._relative_error(states, wanted, batch)) * count
                tokens += count
        return total / tokens

    def _relative_error(self, states: Sequence[Tensor], wanted: Sequence[Tensor], batch: Batch) -> Tensor:
        pairs = zip(states, wanted, strict=True)
        errors = [mse_loss(_exact(_real(state, batch)), _exact(_real(goal, batch))) for state, goal in pairs]
        scaled = [error / variance for error, variance in zip(errors, self.variances.tolist(), strict=True)]
        return torch.stack([error.to(scaled[0].device) for error in scaled]).mean()


class _Healer(GuardedTrainer):
    """Trainer for a module that returns its loss."""

    remedy = "try a smaller `heal_learning_rate`"

    def compute_loss(self, model: nn.Module, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        loss: Tensor = model(**inputs)
        return loss


def _train(pupil: _Pupil, bench: Workbench, fitting: Fitting, seed: int, folder: Path | None) -> None:
    """Train a pupil's weights, from the last checkpoint in a folder on, and give them to what it learns for."""
    last = last_checkpoint(folder) if folder else None
    callbacks = [StepProgress("heal", bench.progress)] if bench.progress else []
    with TemporaryDirectory() as scratch:
        arguments = training_arguments(
            folder or scratch,
            fitting.heal_steps,
            device_of(bench.model).type == "cpu",
            learning_rate=fitting.heal_learning_rate,
            per_device_train_batch_size=fitting.heal_batch_size,
            seed=seed,
            save_strategy="steps" if folder else "no",
            save_steps=max(1, fitting.heal_steps // 10),
            save_total_limit=1,
            logging_strategy="no",
            report_to="none",
            remove_unused_columns=False,
        )
        if last and steps_of(last) >= fitting.heal_steps:  # Trainer would take one step more
            pupil.load_state_dict(load_file(last / SAFE_WEIGHTS_NAME))
        else:
            trainer = _Healer(pupil, arguments, train_dataset=_rows_of(bench.batches), callbacks=callbacks)
            trainer.train(resume_from_checkpoint=str(last) if last else None)
    with torch.no_grad():
        for own, weight in zip(pupil.lesson.trained, pupil.weights, strict=True):
            own.copy_(weight)


def _rows_of(batches: Sequence[Batch]) -> list[dict[str, Tensor]]:
    """Inputs of one row each."""
    named = ({"input_ids": batch} if isinstance(batch, Tensor) else batch for batch in batches)
    return [{name: batch[name][row] for name in batch} for batch in named for row in range(count_rows(batch))]


def _real(values: Tensor, batch: Batch) -> Tensor:
    """``[tokens, size]``: those of ``[rows, seq_len, size]`` that are not padding."""
    mask = mask_of(batch)
    return values.flatten(0, 1) if mask is None else values[mask.to(values.device)]


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def _frozen(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
    """No gradients for parameters; those that had them get them back at the end."""
    wanting = [parameter for parameter in parameters if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
