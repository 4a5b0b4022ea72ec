"""Measure how linear each block of a transformer decoder is, train it to be less so, and replace what is linear.

The public names are imported when first used, so that ``import rectilinear`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from rectilinear.comparison import Comparison, compare
    from rectilinear.core.block_moments import BlockAccumulator, BlockMoments
    from rectilinear.core.moments import Moments, MomentsAccumulator
    from rectilinear.core.penalties import layer_penalty
    from rectilinear.core.scores import score_block
    from rectilinear.core.solve import solve
    from rectilinear.errors import JobError, RequestError
    from rectilinear.evaluation.evaluate import evaluate, evaluate_all
    from rectilinear.evaluation.judge import judge
    from rectilinear.evaluation.judge_record import JudgeReport
    from rectilinear.evaluation.probe import probe
    from rectilinear.evaluation.probe_record import Probe
    from rectilinear.evaluation.record import Evaluation
    from rectilinear.evaluation.settings import Evaluating, Judging, Probing, Stories
    from rectilinear.linearization.linearize import Linearized, linearize
    from rectilinear.linearization.plan import Plan
    from rectilinear.measurement.dynamics import Dynamics, dynamics
    from rectilinear.measurement.measure import measure
    from rectilinear.measurement.profile import Profile
    from rectilinear.models.blocks import find_blocks
    from rectilinear.report.dynamics_plot import plot_dynamics
    from rectilinear.report.plots import plot_profile
    from rectilinear.report.probe_plot import plot_probe
    from rectilinear.text.stories import generate_stories
    from rectilinear.training.callback import LinearityCallback
    from rectilinear.training.finetuning.finetune import finetune
    from rectilinear.training.finetuning.record import Finetuning
    from rectilinear.training.pretraining.pretrain import Upkeep, pretrain
    from rectilinear.training.pretraining.recipe import Recipe
    from rectilinear.training.pretraining.record import Training
    from rectilinear.training.regularizer import Regularizer

_HOMES = {
    "BlockAccumulator": "core.block_moments",
    "BlockMoments": "core.block_moments",
    "Comparison": "comparison",
    "Dynamics": "measurement.dynamics",
    "Evaluating": "evaluation.settings",
    "Evaluation": "evaluation.record",
    "Finetuning": "training.finetuning.record",
    "JobError": "errors",
    "JudgeReport": "evaluation.judge_record",
    "Judging": "evaluation.settings",
    "LinearityCallback": "training.callback",
    "Linearized": "linearization.linearize",
    "Moments": "core.moments",
    "MomentsAccumulator": "core.moments",
    "Plan": "linearization.plan",
    "Probe": "evaluation.probe_record",
    "Probing": "evaluation.settings",
    "Profile": "measurement.profile",
    "Recipe": "training.pretraining.recipe",
    "Regularizer": "training.regularizer",
    "RequestError": "errors",
    "Stories": "evaluation.settings",
    "Training": "training.pretraining.record",
    "Upkeep": "training.pretraining.pretrain",
    "compare": "comparison",
    "dynamics": "measurement.dynamics",
    "evaluate": "evaluation.evaluate",
    "evaluate_all": "evaluation.evaluate",
    "find_blocks": "models.blocks",
    "finetune": "training.finetuning.finetune",
    "generate_stories": "text.stories",
    "judge": "evaluation.judge",
    "layer_penalty": "core.penalties",
    "linearize": "linearization.linearize",
    "measure": "measurement.measure",
    "plot_dynamics": "report.dynamics_plot",
    "plot_probe": "report.probe_plot",
    "plot_profile": "report.plots",
    "pretrain": "training.pretraining.pretrain",
    "probe": "evaluation.probe",
    "score_block": "core.scores",
    "solve": "core.solve",
}

__all__ = [
    "BlockAccumulator",
    "BlockMoments",
    "Comparison",
    "Dynamics",
    "Evaluating",
    "Evaluation",
    "Finetuning",
    "JobError",
    "JudgeReport",
    "Judging",
    "LinearityCallback",
    "Linearized",
    "Moments",
    "MomentsAccumulator",
    "Plan",
    "Probe",
    "Probing",
    "Profile",
    "Recipe",
    "Regularizer",
    "RequestError",
    "Stories",
    "Training",
    "Upkeep",
    "compare",
    "dynamics",
    "evaluate",
    "evaluate_all",
    "find_blocks",
    "finetune",
    "generate_stories",
    "judge",
    "layer_penalty",
    "linearize",
    "measure",
    "plot_dynamics",
    "plot_probe",
    "plot_profile",
    "pretrain",
    "probe",
    "score_block",
    "solve",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
