"""Watching linearity while a model is trained, in transformers' Trainer."""

from __future__ import annotations

import re
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor
from transformers import TrainerCallback
from transformers.utils import logging

from rectilinear.errors import JobError, RequestError
from rectilinear.measurement.block_means import mean_of
from rectilinear.measurement.dynamics import (
    Dynamics,
    Point,
    TrainedModelRecord,
    merge_points,
)
from rectilinear.measurement.inputs import token_inputs
from rectilinear.measurement.measure import Scored, score_model
from rectilinear.measurement.pieces import count_rows
from rectilinear.measurement.profile import Score
from rectilinear.measurement.score_choice import ScoreChoice, are_few
from rectilinear.measurement.settings import Measurement
from rectilinear.models.batches import check_batch_size, reporting_exhausted_memory
from rectilinear.models.describe import count_parameters, record_environment
from rectilinear.models.find_blocks import find_blocks
from rectilinear.models.running import device_of, own_randomness
from rectilinear.models.trained import architecture_of, own_precision, trained_model
from rectilinear.models.walk import Passes
from rectilinear.results import settings_record
from rectilinear.settings import takes_settings
from rectilinear.text.batches import as_batches

if TYPE_CHECKING:
    from transformers import Trainer

_logger = logging.get_logger(__name__)


class LinearityCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Measures how linear each block is, on the same rows again and again, while a model is trained.

        trainer.add_callback(LinearityCallback(trainer, rows, every=100))

    At the first step, every ``every`` optimizer steps and at the end of training, the model is measured as
    `rectilinear.measure` does it: in evaluation mode, in the precision of its weights, with the random states and
    modes left as they were, so that training is the same to the bit with and without it. Scores (held out where there
    are rows for folds, else in sample) go to `Trainer.log`, and so to whatever listens: ``linearity/mean``,
    ``linearity/block_00``, ..., ``update_linearity/mean``, ... and ``linearity/probe_seconds``. All scores are in
    ``dynamics`` (None before the first point) and ``dynamics.json``, which is renewed at each point.

    A run that goes on from a checkpoint keeps the points up to there; a run from the start replaces the file.
    A point that cannot be measured (weights that are not finite) is left out, with a warning in the log and the file.
    Under torchrun every process measures, as sharded models need, and the first one writes. A model sharded by
    FSDP is measured in the precision that FSDP runs it in, its head included.
    """

    @takes_settings
    def __init__(
        self,
        trainer: Trainer,
        rows: Any,
        every: int = 100,
        *,
        measurement: Measurement = Measurement(),
        batch_size: int = 8,
        source: str = "rows",
        out: str | Path | None = None,
    ) -> None:
        """Check what can be checked before training.

        Args:
            trainer: whose model is measured, and whose ``log`` gets the scores.
            rows: tokens as for `measure` (ids ``[rows, seq_len]``, a tokenised dataset, batches), the same at each
                point. Not of the text that is trained on; 20 times the width in tokens, or more.
            every: optimizer steps from point to point.
            measurement: how to measure.
            batch_size: rows of token ids in a forward pass.
            source: where rows of token ids come from, for ``dynamics.json``.
            out: folder for ``dynamics.json``; default: the trainer's ``output_dir``.

        Raises:
            RequestError: no rows or rows that the model cannot take, no such block stack, a value out of range.
        """
        if every < 1:
            raise RequestError(f"expected a point every 1 or more steps, got every={every}")
        check_batch_size(batch_size)
        measurement.check_one_target("a callback")
        self._trainer, self._every, self._measurement = trainer, every, measurement
        _, model = trained_model(trainer)
        tokens = as_batches(rows)
        if tokens is None:
            raise RequestError(f"expected token ids [rows, seq_len] or batches, got {type(rows).__name__}")
        self._inputs = token_inputs(tokens, getattr(model, "config", None), source)
        self._batches = [*torch.split(tokens, batch_size)] if isinstance(tokens, Tensor) else tokens
        if not sum(map(count_rows, self._batches)):
            raise RequestError("expected at least one row to measure, got none")
        stack = find_blocks(model, measurement.blocks)
        # All that scores depend on beside the model and the rows.
        self._settings = settings_record(measurement, blocks=stack.path)
        self._out = Path(trainer.args.output_dir if out is None else out)
        # Counted here, where the trainer has not sharded the model yet.
        self._model: dict[str, Any] = {
            "id": getattr(model, "name_or_path", "") or architecture_of(model),
            "architecture": architecture_of(model),
            "num_blocks": len(stack),
            "parameters": count_parameters([model]),
        }
        self._reset()

    def _reset(self) -> None:
        self.dynamics: Dynamics | None = None
        self._skipped: tuple[str, ...] = ()
        self._warned = False
        self._tried: int | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take up the points of a run that goes on, or measure the model as it is before the first step."""
        self._reset()
        if state.global_step == 0:
            self._probe(state, control)
        elif state.is_world_process_zero and (self._out / Dynamics.file_name).exists():
            self._resume(state.global_step)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where it is due, and at the end of training."""
        last = control.should_training_stop or state.global_step >= state.max_steps
        if last or state.global_step % self._every == 0:
            self._probe(state, control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure where training was stopped by something that came after the last step."""
        if control.should_training_stop:
            self._probe(state, control)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Measure the last step, unless the weights are now those of an earlier one, which was the best."""
        if not (args.load_best_model_at_end and state.best_model_checkpoint):
            self._probe(state, control)

    def _probe(self, state: Any, control: Any) -> None:
        """Measure the model once at this step; whatever goes wrong, training goes on."""
        step = state.global_step
        if self._tried == step:
            return
        self._tried = step
        started = time.perf_counter()
        try:
            scored = self._measure()
        except (JobError, torch.linalg.LinAlgError) as error:  # type: ignore[attr-defined]
            if not self._warned and state.is_local_process_zero:
                _logger.warning(f"linearity could not be measured at step {step}, which is left out: {error}")
            self._warned = True
            self._skipped += (f"step {step} is left out: {error}",)
            self._save(state)
            return
        seconds = time.perf_counter() - started
        self._add_point(step, scored)
        self._save(state)
        if any(entry["step"] == step and "linearity/probe_seconds" in entry for entry in state.log_history):
            return  # by a run that ended there, and goes on with nothing to do
        # Logging counts as an answer to the trainer's own request to log, which would lose its loss.
        wanted = control.should_log
        self._trainer.log({**_scalars(scored), "linearity/probe_seconds": seconds})
        control.should_log = self._trainer.control.should_log = wanted

    @reporting_exhausted_memory()
    def _measure(self) -> Scored:
        runner, bare = trained_model(self._trainer)
        stack = find_blocks(bare, self._settings["blocks"])
        with own_precision(bare), own_randomness(device_of(bare)):
            return score_model(Passes(runner, self._batches), stack, self._inputs, self._measurement)

    def _add_point(self, step: int, scored: Scored) -> None:
        point = Point(
            step=step, source="training", revision=None, sha256=None, blocks=scored.first, warnings=scored.warnings
        )
        self.dynamics = Dynamics(
            model=TrainedModelRecord(**self._model, width=scored.width),
            data=scored.data,
            settings=self._settings | {"batch_size": scored.batch_size, "every": self._every},
            environment=record_environment(trained_model(self._trainer)[1]),
            points=merge_points(self.dynamics.points if self.dynamics else (), [point]),
            warnings=self._skipped,
        )

    def _save(self, state: Any) -> None:
        if self.dynamics is None:
            return
        self.dynamics = self.dynamics.model_copy(update={"warnings": self._skipped})
        if state.is_world_process_zero:
            try:
                self.dynamics.save(self._out)
            except OSError as error:
                _logger.warning(f"cannot write {self._out / Dynamics.file_name}: {error.strerror or error}")

    def _resume(self, step: int) -> None:
        """Take up the points up to a step of the file that is there; refused where it is of something else."""
        file = self._out / Dynamics.file_name
        found = Dynamics.load(file)
        model = {name: value for name, value in self._model.items() if name != "id"}
        usual = settings_record(Measurement())  # what older versions could not be asked for
        for what, theirs, ours in (
            ("rows", found.data.fingerprint, self._inputs.fingerprint),
            ("model", {name: getattr(found.model, name) for name in model}, model),
            ("settings", {name: found.settings.get(name, usual.get(name)) for name in self._settings}, self._settings),
        ):
            if theirs != ours:
                raise RequestError(
                    f"expected points of the same {what} in {file}, to go on from, got {theirs} there and {ours} here; "
                    "move that file away, or give the callback another out="
                )
        kept = tuple(point for point in found.points if point.step <= step)
        self._skipped = tuple(warning for warning in found.warnings if _step_of(warning) <= step)
        if kept:
            self.dynamics = found.model_copy(update={"points": kept, "warnings": self._skipped})


def _scalars(scored: Scored) -> dict[str, float]:
    """What to log, by name; scores that are not there are left out."""
    choice = ScoreChoice(are_few(scored.data.tokens, scored.width))
    found: dict[str, float | None] = {}
    for score in get_args(Score):
        records = {block.index: getattr(block, score) for block in scored.first}
        found[f"{score}/mean"] = mean_of(records, choice).mean
        found |= {f"{score}/block_{index:02d}": choice.value(record) for index, record in records.items()}
    return {name: value for name, value in found.items() if value is not None}


def _step_of(warning: str) -> int:
    found = re.match(r"step (\d+) ", warning)
    return int(found[1]) if found else 0
