"""Healing: training the stand-ins, and nothing else, towards the original's hidden states; and its checkpoints."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import kl_div, log_softmax, mse_loss
from transformers.utils import SAFE_WEIGHTS_NAME

from rectilinear.errors import JobError
from rectilinear.linearization.fit import Fitted, merge_edits
from rectilinear.linearization.plan import HealRecord
from rectilinear.linearization.settings import Fitting
from rectilinear.linearization.workbench import Workbench, noting_padding
from rectilinear.measurement.perplexity import measure_perplexity
from rectilinear.measurement.pieces import count_rows, mask_of
from rectilinear.models.capture import states_after
from rectilinear.models.running import device_of, evaluating, own_randomness
from rectilinear.models.series import steps_of
from rectilinear.models.surgery import swapped
from rectilinear.publish import stage
from rectilinear.runs import check_same, claim, read_request, write_request
from rectilinear.text.batches import Batch
from rectilinear.training.trainer import (
    GuardedTrainer,
    StepProgress,
    discard_checkpoints,
    keeping,
    last_checkpoint,
    training_arguments,
)

# Beside checkpoints: what they are checkpoints of.
_RECIPE = "heal.json"


@contextmanager
def healing_folder(out: Path, recipe: Mapping[str, Any], overwrite: bool) -> Iterator[Path]:
    """Hold the folder of checkpoints beside ``out`` while open; it is gone when all went well, or if it has none.

    Args:
        out: where the result is to be.
        recipe: all that the outcome depends on, as JSON has it.
        overwrite: whether it may hold checkpoints of another recipe, which are removed, or other files, which stay.

    Raises:
        RequestError: it may not, is no folder, or another run has it.
        JobError: it cannot be written.
        Interrupted: for a `KeyboardInterrupt`, where there is a checkpoint to go on from.
    """
    folder = out.with_name(f"{out.name}.heal")

    def kept(folder: Path) -> str | None:
        return f"{folder} keeps what was healed, to go on with the same command" if last_checkpoint(folder) else None

    found = read_request(folder / _RECIPE)
    if last_checkpoint(folder) and not overwrite:
        check_same(folder, found, recipe)
    with claim(folder, overwrite=overwrite or bool(found), kept=kept):
        with keeping(folder):
            if found != recipe:
                _discard(folder)
            with stage(folder) as new:
                write_request(new / _RECIPE, recipe)
        try:
            yield folder
        except BaseException:
            if last_checkpoint(folder) is None:
                with suppress(OSError):
                    _discard(folder)
            raise
        try:
            _discard(folder)
        except OSError as error:  # the result is there
            warnings.warn(
                f"could not remove {folder}, which nothing needs now: {error.strerror or error}", stacklevel=3
            )


def _discard(folder: Path) -> None:
    """Remove the checkpoints and the recipe of a folder, and the folder if nothing else is in it."""
    discard_checkpoints(folder)
    (folder / _RECIPE).unlink(missing_ok=True)
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()


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
    to the model's precision in each pass. They are trained on the bench's rows; ``held_out`` are others, token ids
    ``[rows, seq_len]``, perhaps none, to measure on before and after. ``folder`` keeps the last of ten checkpoints,
    and training goes on from the one that is there.

    Raises:
        JobError: a loss that is not finite, or hidden states more than twice as far from the original's as before.
    """
    parts = torch.split(held_out, fitting.heal_batch_size) if len(held_out) else ()
    gpus = [torch.device("cuda", index) for index in range(torch.cuda.device_count())]  # Trainer seeds them all
    frozen = _frozen([bench.model, *merge_edits(fits).values()])
    with frozen, evaluating(bench.model), noting_padding(bench), own_randomness(*gpus):
        pupil = _Pupil(bench, fits, fitting.heal_logits)

        def measured() -> tuple[float | None, float | None]:
            with swapped(bench.model, pupil.edits):
                size = fitting.heal_batch_size
                loss = measure_perplexity(bench.model, held_out, size, bos=bench.lead).loss if parts else None
            return pupil.distance(parts) if parts else None, loss

        mse_before, loss_before = measured()
        _train(pupil, fitting, seed, folder)
        mse_after, loss_after = measured()
    better = loss_before is not None and loss_after is not None and loss_after < loss_before
    paid = fitting.heal_logits > 0 and better  # states are given up for predictions
    if mse_before is not None and mse_after is not None and not (mse_after <= 2 * mse_before or paid):
        raise JobError(
            f"healing made it worse: relative error of hidden states {mse_before:.4g} -> {mse_after:.4g}; "
            "try a smaller `heal_learning_rate`"
        )
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


class _Pupil(nn.Module):
    """What is trained, and the loss of it: the rest of the model is no submodule, nor part of checkpoints.

    Attributes:
        edits: what makes the original the edited model.
        trained: the parameters of these.
        weights: copies of them to train, in float32 at least.
        blocks: dotted paths of the blocks after which hidden states are compared.
    """

    def __init__(self, bench: Workbench, fits: Sequence[Fitted], logits_weight: float) -> None:
        super().__init__()
        self.bench, self.edits, self.logits_weight = bench, merge_edits(fits), logits_weight
        # The others may have the original's own weights.
        stand_ins = merge_edits([fitted for fitted in fits if fitted.replacement.by.trainable])
        self.trained = tuple(parameter for module in stand_ins.values() for parameter in module.parameters())
        self.weights = nn.ParameterList([_exact(own.detach()).clone() for own in self.trained])
        first = min(fitted.replacement.blocks[0] for fitted in fits if fitted.replacement.by.trainable)
        last = {fitted.replacement.blocks[-1] for fitted in fits}
        self.blocks = [bench.stack.path_of(index) for index in sorted(last) if index >= first]
        self.variances = self._variances()

    def _variances(self) -> Tensor:
        """``[blocks]`` float32: mean over coordinates of the variance of the original's states over all tokens."""
        bench, zero = self.bench, torch.zeros((), dtype=self.bench.precision)
        sums, squares = [zero] * len(self.blocks), [zero] * len(self.blocks)
        tokens, done, total = 0, 0, sum(map(count_rows, bench.batches))
        for batch in bench.batches:
            states = [bench.exact(_real(state, batch)) for state in self.original(batch)[0]]
            sums = [old.to(state.device) + state.sum(0) for old, state in zip(sums, states, strict=True)]
            squares = [old.to(state.device) + state.square().sum(0) for old, state in zip(squares, states, strict=True)]
            tokens, done = tokens + len(states[0]), done + count_rows(batch)
            if bench.progress:
                bench.progress("states to heal towards", done, total)
        moments = zip(sums, squares, strict=True)
        return torch.tensor([float((both / tokens - (one / tokens).square()).mean()) for one, both in moments])

    def original(self, batch: Batch, logits: bool = False) -> tuple[list[Tensor], Tensor | None]:
        """Hidden states ``[rows, seq_len, width]`` after each of the blocks, and logits, of the original."""
        with torch.no_grad():
            return states_after(self.bench.model, batch, self._compared(), logits=logits)

    def edited(self, batch: Batch, logits: bool = False) -> tuple[list[Tensor], Tensor | None]:
        """The same of the edited model, with the weights in the places of what they are copies of."""
        own = {own: weight.to(own) for own, weight in zip(self.trained, self.weights, strict=True)}
        with swapped(self.bench.model, self.edits):
            return states_after(self.bench.model, batch, self._compared(), own, logits=logits)

    def _compared(self) -> list[nn.Module]:
        return [self.bench.model.get_submodule(path) for path in self.blocks]

    def forward(self, **batch: Tensor) -> Tensor:
        """The loss of a batch, a scalar."""
        wanted, predicted = self.original(batch, self.logits_weight > 0)
        states, logits = self.edited(batch, self.logits_weight > 0)
        loss = self._relative_error(states, wanted, batch)
        if logits is not None and predicted is not None:
            ours, theirs = (log_softmax(_exact(_real(part, batch)), -1) for part in (logits, predicted))
            loss = loss + self.logits_weight * kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return loss.to(self.weights[0].device)

    @torch.no_grad()
    def distance(self, batches: Sequence[Batch]) -> float:
        """Squared error of hidden states relative to their variance, over all tokens of some batches."""
        total = tokens = 0.0
        for batch in batches:
            wanted, states = self.original(batch)[0], self.edited(batch)[0]
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


def _train(pupil: _Pupil, fitting: Fitting, seed: int, folder: Path | None) -> None:
    """Train a pupil's weights, from the last checkpoint in a folder on, and give them to what it learns for."""
    bench, last = pupil.bench, last_checkpoint(folder) if folder else None
    named = ({"input_ids": batch} if isinstance(batch, Tensor) else batch for batch in bench.batches)
    rows = [{name: batch[name][row] for name in batch} for batch in named for row in range(count_rows(batch))]
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
            callbacks = [StepProgress("heal", bench.progress)] if bench.progress else []
            trainer = _Healer(pupil, arguments, train_dataset=rows, callbacks=callbacks)
            trainer.train_from(last)
    with torch.no_grad():
        for own, weight in zip(pupil.trained, pupil.weights, strict=True):
            own.copy_(weight)


def _real(values: Tensor, batch: Batch) -> Tensor:
    """``[tokens, size]``: those of ``[rows, seq_len, size]`` that are not padding."""
    mask = mask_of(batch)
    return values.flatten(0, 1) if mask is None else values[mask.to(values.device)]


def _exact(values: Tensor) -> Tensor:
    return values.to(torch.promote_types(values.dtype, torch.float32))


@contextmanager
def _frozen(modules: Sequence[nn.Module]) -> Iterator[None]:
    """No gradients for parameters; those that had them get them back at the end."""
    wanting = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    for parameter in wanting:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanting:
            parameter.requires_grad_(True)
