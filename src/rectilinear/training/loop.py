"""What every training here adds to transformers' Trainer."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PrinterCallback, Trainer, TrainerCallback

from rectilinear.errors import JobError, RequestError, broken_promise
from rectilinear.models.task_loss import items_of_rows
from rectilinear.progress import Progress
from rectilinear.training.checkpoints import keeping, last_checkpoint
from rectilinear.training.regularizer import Regularizer


class GuardedTrainer(Trainer):  # type: ignore[misc, unused-ignore]
    """Trainer that stops at the first loss or gradient that is not finite, and logs the penalty of a regularizer.

    Weights are then still those of the last finite step, and so is every checkpoint.

    Attributes:
        remedy: what to tell whoever it stops.
    """

    remedy = "try a smaller --learning-rate"

    def __init__(self, *args: Any, regularizer: Regularizer | None = None, **kwargs: Any) -> None:
        for hook in ("_get_grad_norm", "_save_checkpoint"):
            if not hasattr(Trainer, hook):
                raise broken_promise("transformers", f"call Trainer.{hook}")
        super().__init__(*args, compute_loss_func=regularizer, **kwargs)
        self.remove_callback(PrinterCallback)
        self._regularizer = regularizer
        self._penalties: list[Tensor] = []

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list[Any], Any]:
        """As Trainer's: the batches of an optimizer step, and how many items all processes have in them.

        Raises:
            JobError: a regularizer would weigh its penalty by another count than Trainer's.
        """
        batches, count = super().get_batch_samples(*args, **kwargs)
        if self._regularizer and batches and self.args.n_gpu <= 1:
            ours = sum(int(items_of_rows(self.model, batch["labels"]).sum()) for batch in batches)
            if count is None or ours > count or (self.args.world_size == 1 and ours < count):
                raise broken_promise("transformers", f"count {ours} items in a step where Trainer counts {count}")
        return batches, count

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's.

        Raises:
            JobError: the loss is not finite.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if not loss.isfinite():
            raise self._diverged("loss", float(loss))
        if self._regularizer and self._regularizer.last is not None:
            self._penalties.append(self._regularizer.last)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As Trainer's; beside ``loss`` also ``penalty``, before the strength, where there is one."""
        if "loss" in logs and self._penalties:
            # Of each batch this process's share: several make up a step.
            total = self.accelerator.reduce(torch.stack(self._penalties).sum(), "sum")
            steps = len(self._penalties) / self.args.gradient_accumulation_steps
            logs["penalty"] = total.item() / steps
            self._penalties.clear()
        super().log(logs, start_time)

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        # After clipping, which makes finite gradients of an infinite norm zero, and before the weights are changed.
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None and not math.isfinite(norm):
            raise self._diverged("gradient norm", float(norm))
        return norm

    def _save_checkpoint(self, *args: Any) -> None:
        with keeping(self.args.output_dir):
            super()._save_checkpoint(*args)

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
        shown = {"loss": "loss {:.4f}", "train_tokens_per_second": "{:,.0f} tokens/s"}
        words = [form.format(logs[name]) for name, form in shown.items() if logs and name in logs]
        self.note = ": " + ", ".join(words) if words else self.note

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Report."""
        if state.is_world_process_zero:
            self.progress(self.stage + self.note, state.global_step, state.max_steps)


def trains_on_cpu(device: str) -> bool:
    """Whether ``auto`` or ``cpu`` is the CPU.

    Raises:
        RequestError: another device.
    """
    if device not in ("auto", "cpu"):
        raise RequestError(f"expected device auto or cpu to train on, got {device!r}; try CUDA_VISIBLE_DEVICES")
    return device == "cpu" or not torch.accelerator.is_available()


def has_bfloat16(on_cpu: bool) -> bool:
    """Whether the device has instructions for bfloat16, so that it is faster than float32."""
    if on_cpu:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return torch.cuda.is_available() and bool(torch.cuda.is_bf16_supported(including_emulation=False))
