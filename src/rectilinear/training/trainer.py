"""What every training here adds to transformers' Trainer."""

from __future__ import annotations

import math
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate.utils.memory import should_reduce_batch_size
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME

from rectilinear.errors import JobError, RectilinearError, RequestError, broken_promise, first_line
from rectilinear.models.export import writing
from rectilinear.models.series import checkpoints_of, state_step, steps_of
from rectilinear.models.trained import items_of_rows
from rectilinear.progress import Progress
from rectilinear.runs import Interrupted
from rectilinear.training.regularizer import Regularizer
from rectilinear.training.settings import Optimization


class GuardedTrainer(Trainer):  # type: ignore[misc, unused-ignore]
    """Trainer that stops at the first loss or gradient that is not finite, and logs the penalty of a regularizer.

    Weights are then still those of the last finite step, and so is every checkpoint. ``remedy`` says what to try.
    """

    remedy = "try a smaller `learning_rate`"

    def __init__(self, *args: Any, regularizer: Regularizer | None = None, **kwargs: Any) -> None:
        for hook in ("_get_grad_norm", "_save_checkpoint"):
            if not hasattr(Trainer, hook):
                raise broken_promise("transformers", f"call Trainer.{hook}")
        super().__init__(*args, compute_loss_func=regularizer, **kwargs)
        self.remove_callback(PrinterCallback)
        self._regularizer = regularizer
        self._penalties: list[Tensor] = []

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """As Trainer's; `JobError` where a regularizer would weigh its penalty by another count of items."""
        batches, count = super().get_batch_samples(*args, **kwargs)
        if self._regularizer and batches and self.args.n_gpu <= 1:
            ours = sum(int(items_of_rows(self.model, batch["labels"]).sum()) for batch in batches)
            if count is None or ours > count or (self.args.world_size == 1 and ours < count):
                raise broken_promise("transformers", f"count {ours} items in a step where Trainer counts {count}")
        return batches, count

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's; `JobError` where the loss is not finite."""
        loss: Tensor = super().training_step(*args, **kwargs)
        if not loss.isfinite():
            raise self._diverged("loss", float(loss))
        if self._regularizer and self._regularizer.last is not None:
            self._penalties.append(self._regularizer.last)
        return loss

    def train_from(self, checkpoint: Path | None) -> None:
        """Train, from a checkpoint where there is one; `JobError` where it cannot be gone on from."""
        try:
            self.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        except (RectilinearError, MemoryError):
            raise
        except Exception as error:  # what reads optimizers, weights and states shares no narrower class
            begun = checkpoint is None or self.state.global_step > steps_of(checkpoint)
            if begun or should_reduce_batch_size(error):
                raise
            raise JobError(
                f"cannot go on from {checkpoint}: {first_line(error)}; to go on from the checkpoint before it, if "
                "there is one, move that folder away"
            ) from error

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's, but for ``train_loss`` of the whole run, which Trainer has of the part since it was resumed.

        ``penalty`` (before the strength) and ``task_loss`` stand beside a ``loss`` that has a penalty.
        """
        if "train_loss" in logs:
            logs["train_loss"] = mean_loss(self.state.log_history, self.state.global_step) or logs["train_loss"]
        if "loss" in logs and self._penalties and self._regularizer:
            # Of each batch this process's share: several make up a step.
            total = self.accelerator.reduce(torch.stack(self._penalties).sum(), "sum")
            steps = len(self._penalties) / self.args.gradient_accumulation_steps
            logs["penalty"] = total.item() / steps
            logs["task_loss"] = logs["loss"] - self._regularizer.strength * logs["penalty"]
            self._penalties.clear()
        super().log(logs, start_time)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        # After clipping, which makes finite gradients of an infinite norm zero, and before the weights are changed.
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and not math.isfinite(norm):
            raise self._diverged("gradient norm", float(norm))
        return norm

    def _save_checkpoint(self, *args: Any) -> None:
        try:
            with keeping(self.args.output_dir):
                super()._save_checkpoint(*args)
        except JobError:
            partial = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
            if self.is_world_process_zero() and state_step(partial) is None:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def _diverged(self, what: str, value: float) -> JobError:
        last = last_checkpoint(Path(self.args.output_dir))
        kept = f"the last checkpoint, {last}, is from before it" if last else "there is no checkpoint from before it"
        step = self.state.global_step + 1
        return JobError(f"expected a finite {what}, got {value} at step {step}; {kept}; {self.remedy}")


class StepProgress(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Reports steps as progress, of the main process only."""

    def __init__(self, stage: str, progress: Progress) -> None:
        self.stage, self.progress, self.note = stage, progress, ""

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        """Keep what was logged last."""
        shown = {"loss": "loss {:.4f}", "penalty": "penalty {:.4f}", "train_tokens_per_second": "{:,.0f} tokens/s"}
        words = [form.format(logs[name]) for name, form in shown.items() if logs and name in logs]
        self.note = ": " + ", ".join(words) if words else self.note

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report."""
        if state.is_world_process_zero:
            self.progress(self.stage + self.note, state.global_step, state.max_steps)


class FollowOptions(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Has a training that goes on follow its own options, where Trainer takes over those that its checkpoint had.

    Its log has what was lost up to each checkpoint, and in all.
    """

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Log before a checkpoint and at the end."""
        if control.should_save or state.global_step >= state.max_steps:
            control.should_log = True

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Renew how often to log, measure and save, and the learning rate of the next step."""
        optimizer = kwargs["optimizer"]
        for weights, known in optimizer.state.items():
            for name, each in known.items():
                if isinstance(each, Tensor) and each.ndim and each.shape != weights.shape:  # which steps do not check
                    raise ValueError(f"expected {name} of an optimizer to be {[*weights.shape]}, got {[*each.shape]}")
        state.compute_steps(args, state.max_steps)
        schedule = kwargs["lr_scheduler"]
        factors = zip(schedule.base_lrs, schedule.lr_lambdas, strict=True)
        rates = [rate * factor(schedule.last_epoch) for rate, factor in factors]
        schedule.load_state_dict(schedule.state_dict() | {"_last_lr": rates})
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


class SaveAtSignal(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Has a training that is told to stop, by Ctrl-C or SIGTERM, leave a checkpoint of the step that it is at."""

    def __init__(self, trainer: Trainer) -> None:
        self._trainer, self._received, self._stopping = trainer, 0, 0

    @contextmanager
    def listening(self) -> Iterator[None]:
        """While open, a signal waits for the end of the step; a second one does not."""
        in_main = threading.current_thread() is threading.main_thread()  # others can have no handlers
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM) if in_main}

        def restore() -> None:
            for number, handler in before.items():
                signal.signal(number, handler)

        def receive(number: int, frame: Any) -> None:
            self._received = number
            restore()

        for number in before:
            signal.signal(number, receive)
        try:
            yield
        finally:
            restore()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Ask for a checkpoint, in all processes alike."""
        self._stopping = self._received
        if args.world_size > 1:
            received = torch.tensor([self._received], device=args.device)
            self._stopping = int(self._trainer.accelerator.gather(received).max())
        if self._stopping:
            control.should_log = control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise `Interrupted` where a signal was received."""
        if self._stopping and state.global_step < state.max_steps:
            kept = f"{args.output_dir} keeps the run up to step {state.global_step:,}; to go on, add `resume`"
            raise Interrupted(kept, 128 + self._stopping)


def training_arguments(folder: str | Path, steps: int, on_cpu: bool, **options: Any) -> TrainingArguments:
    """Trainer's arguments, with what all trainings here share."""
    shared = {"dataloader_pin_memory": not on_cpu, "disable_tqdm": True, "report_to": "none", "use_cpu": on_cpu}
    arguments = TrainingArguments(output_dir=str(folder), max_steps=steps, **shared | options)
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one process a GPU: no torch.nn.DataParallel
    return arguments


def trains_on_cpu(settings: Optimization) -> bool:
    """Whether that is to be on the CPU here."""
    return settings.device == "cpu" or not torch.accelerator.is_available()


def precision_of(settings: Optimization) -> Literal["float32", "bfloat16"]:
    """Precision of products; of itself bfloat16 where the device has instructions for it, and so is faster with it."""
    if settings.dtype != "auto":
        return settings.dtype
    if trains_on_cpu(settings):
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        fast = any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    else:
        fast = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return "bfloat16" if fast else "float32"


@contextmanager
def keeping(folder: str | Path) -> Iterator[None]:
    """While open, what cannot be written is a checkpoint: a `JobError`."""
    try:
        with writing():
            yield
    except OSError as error:
        raise JobError(f"cannot keep checkpoints in {folder}: {error.strerror or error}") from error


def last_checkpoint(folder: Path) -> Path | None:
    """The last checkpoint of a folder that was written to its end: Trainer writes its own state last."""
    return next((path for path in reversed(checkpoints_of(folder)) if state_step(path) is not None), None)


def discard_checkpoints(folder: Path) -> None:
    """Remove a folder's checkpoints."""
    for path in checkpoints_of(folder):
        shutil.rmtree(path)


def discard_partial_checkpoints(folder: Path) -> None:
    """Remove a folder's checkpoints that were not written to their end, for which Trainer would remove better ones.

    Raises:
        RequestError: a checkpoint has Trainer's state, which is written last, but it cannot be read.
    """
    for path in checkpoints_of(folder):
        if state_step(path) is None:
            state = path / TRAINER_STATE_NAME
            if state.exists() and state.stat().st_size:
                raise RequestError(
                    f"expected the state of a training in {state}, got something else; to go on from the checkpoint "
                    f"before it, if there is one, move {path} away"
                )
            shutil.rmtree(path)


def mean_loss(log: Iterable[Mapping[str, float]], steps: int) -> float | None:
    """Mean of the losses of some steps, of which each entry of a log has that since the one before; None if not all."""
    last, total = 0, 0.0
    for entry in log:
        if "loss" in entry:
            step = int(entry["step"])
            total += entry["loss"] * (step - last)
            last = step
    return total / steps if steps and last == steps else None
