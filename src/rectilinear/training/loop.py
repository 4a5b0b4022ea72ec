"""What every training here adds to transformers' Trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from rectilinear.errors import JobError
from rectilinear.measurement.collect import Progress
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
        super().__init__(*args, compute_loss_func=regularizer, **kwargs)
        self.remove_callback(PrinterCallback)
        self.add_callback(_FiniteGradients(self.remedy))
        self._regularizer = regularizer
        self._penalties: list[Tensor] = []

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As Trainer's.

        Raises:
            JobError: the loss is not finite.
        """
        loss: Tensor = super().training_step(*args, **kwargs)
        if not loss.isfinite():
            raise _diverged("loss", loss, self.state.global_step, self.args, self.remedy)
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

    def _save_checkpoint(self, *args: Any) -> None:
        with keeping(self.args.output_dir):
            super()._save_checkpoint(*args)


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


def has_bfloat16(on_cpu: bool) -> bool:
    """Whether the device has instructions for bfloat16, so that it is faster than float32."""
    if on_cpu:
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return any(capabilities.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16"))
    return torch.cuda.is_available() and bool(torch.cuda.is_bf16_supported(including_emulation=False))


class _FiniteGradients(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Stops before gradients that are not finite reach the weights."""

    def __init__(self, remedy: str) -> None:
        self.remedy = remedy

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: nn.Module, **kwargs: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        if isinstance(norm, DTensor):  # each process has a part
            norm = norm.full_tensor()
        if not norm.isfinite():
            raise _diverged("gradient", norm, state.global_step, args, self.remedy)


def _diverged(what: str, value: Tensor, steps: int, args: TrainingArguments, remedy: str) -> JobError:
    last = last_checkpoint(Path(args.output_dir))
    kept = f"the last checkpoint, {last}, is from before it" if last else "there is no checkpoint from before it"
    return JobError(f"expected a finite {what}, got {value.item()} at step {steps + 1}; {kept}; {remedy}")
