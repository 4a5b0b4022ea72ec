"""Measure how linear each block of a transformer decoder is, train it to be less so, and replace what is linear.

The public names are imported when first used, so that ``import rectilinear`` is quick.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0.dev0"

if TYPE_CHECKING:
    from rectilinear.core.block_moments import BlockAccumulator, BlockMoments
    from rectilinear.core.moments import Moments, MomentsAccumulator
    from rectilinear.core.penalties import layer_penalty
    from rectilinear.core.scores import score_block
    from rectilinear.core.solve import solve
    from rectilinear.errors import JobError, RequestError
    from rectilinear.evaluation.evaluate import evaluate, evaluate_all
    from rectilinear.evaluation.judge import StoryRecipe, judge
    from rectilinear.evaluation.judge_client import JudgeEndpoint
    from rectilinear.evaluation.judge_record import JudgeReport
    from rectilinear.evaluation.probe import probe
    from rectilinear.evaluation.probe_record import Probe
    from rectilinear.evaluation.record import Evaluation
    from rectilinear.linearization.kinds.affine import Affine
    from rectilinear.linearization.kinds.drop import Drop
    from rectilinear.linearization.kinds.filter import Filter
    from rectilinear.linearization.kinds.folded import Folded
    from rectilinear.linearization.linearize import Linearized, linearize
    from rectilinear.linearization.plan import Plan
    from rectilinear.linearization.settings import CalibrationRows, Fitting, Selection
    from rectilinear.measurement.dynamics import Dynamics, dynamics
    from rectilinear.measurement.measure import measure
    from rectilinear.measurement.profile import Profile
    from rectilinear.models.blocks import find_blocks
    from rectilinear.report.dynamics_plot import plot_dynamics
    from rectilinear.report.plots import plot_profile
    from rectilinear.report.probe_plot import plot_probe
    from rectilinear.text.stories import generate_stories
    from rectilinear.training.callback import LinearityCallback
    from rectilinear.training.finetune import finetune
    from rectilinear.training.pretrain import pretrain
    from rectilinear.training.regularizer import Regularizer
    from rectilinear.training.results import Finetuning, Training
    from rectilinear.training.settings import Corpus, Monitoring, Profiling, Recipe, Tuning

_HOMES = {
    "Affine": "linearization.kinds.affine",
    "BlockAccumulator": "core.block_moments",
    "BlockMoments": "core.block_moments",
    "Corpus": "training.settings",
    "Dynamics": "measurement.dynamics",
    "Evaluation": "evaluation.record",
    "Finetuning": "training.results",
    "CalibrationRows": "linearization.settings",
    "Drop": "linearization.kinds.drop",
    "Filter": "linearization.kinds.filter",
    "Fitting": "linearization.settings",
    "Folded": "linearization.kinds.folded",
    "JobError": "errors",
    "JudgeEndpoint": "evaluation.judge_client",
    "JudgeReport": "evaluation.judge_record",
    "LinearityCallback": "training.callback",
    "Linearized": "linearization.linearize",
    "Moments": "core.moments",
    "MomentsAccumulator": "core.moments",
    "Monitoring": "training.settings",
    "Plan": "linearization.plan",
    "Probe": "evaluation.probe_record",
    "Profile": "measurement.profile",
    "Profiling": "training.settings",
    "Recipe": "training.settings",
    "Regularizer": "training.regularizer",
    "RequestError": "errors",
    "Selection": "linearization.settings",
    "StoryRecipe": "evaluation.judge",
    "Training": "training.results",
    "Tuning": "training.settings",
    "dynamics": "measurement.dynamics",
    "evaluate": "evaluation.evaluate",
    "evaluate_all": "evaluation.evaluate",
    "find_blocks": "models.blocks",
    "finetune": "training.finetune",
    "generate_stories": "text.stories",
    "judge": "evaluation.judge",
    "layer_penalty": "core.penalties",
    "linearize": "linearization.linearize",
    "measure": "measurement.measure",
    "plot_dynamics": "report.dynamics_plot",
    "plot_probe": "report.probe_plot",
    "plot_profile": "report.plots",
    "pretrain": "training.pretrain",
    "probe": "evaluation.probe",
    "score_block": "core.scores",
    "solve": "core.solve",
}

__all__ = [
    "Affine",
    "BlockAccumulator",
    "BlockMoments",
    "CalibrationRows",
    "Corpus",
    "Drop",
    "Dynamics",
    "Evaluation",
    "Filter",
    "Finetuning",
    "Fitting",
    "Folded",
    "JobError",
    "JudgeEndpoint",
    "JudgeReport",
    "LinearityCallback",
    "Linearized",
    "Moments",
    "MomentsAccumulator",
    "Monitoring",
    "Plan",
    "Probe",
    "Profile",
    "Profiling",
    "Recipe",
    "Regularizer",
    "RequestError",
    "Selection",
    "StoryRecipe",
    "Training",
    "Tuning",
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
