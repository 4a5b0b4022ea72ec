"""The public names and where they live: read by editors and type checkers, and by ``__init__.py``."""

from rectilinear.core.block_moments import BlockAccumulator as BlockAccumulator
from rectilinear.core.block_moments import BlockMoments as BlockMoments
from rectilinear.core.moments import Moments as Moments
from rectilinear.core.moments import MomentsAccumulator as MomentsAccumulator
from rectilinear.core.penalties import layer_penalty as layer_penalty
from rectilinear.core.scores import score_block as score_block
from rectilinear.core.solve import solve as solve
from rectilinear.errors import JobError as JobError
from rectilinear.errors import RequestError as RequestError
from rectilinear.evaluation.evaluate import evaluate as evaluate
from rectilinear.evaluation.evaluate import evaluate_all as evaluate_all
from rectilinear.evaluation.judge import StoryRecipe as StoryRecipe
from rectilinear.evaluation.judge import judge as judge
from rectilinear.evaluation.judge_client import JudgeEndpoint as JudgeEndpoint
from rectilinear.evaluation.judge_record import JudgeReport as JudgeReport
from rectilinear.evaluation.probe import probe as probe
from rectilinear.evaluation.probe_record import Probe as Probe
from rectilinear.evaluation.record import Evaluation as Evaluation
from rectilinear.linearization.kinds.affine import Affine as Affine
from rectilinear.linearization.kinds.drop import Drop as Drop
from rectilinear.linearization.kinds.filter import Filter as Filter
from rectilinear.linearization.kinds.folded import Folded as Folded
from rectilinear.linearization.linearize import Linearized as Linearized
from rectilinear.linearization.linearize import linearize as linearize
from rectilinear.linearization.plan import Plan as Plan
from rectilinear.linearization.settings import CalibrationRows as CalibrationRows
from rectilinear.linearization.settings import Fitting as Fitting
from rectilinear.linearization.settings import Selection as Selection
from rectilinear.measurement.dynamics import Dynamics as Dynamics
from rectilinear.measurement.dynamics import dynamics as dynamics
from rectilinear.measurement.measure import measure as measure
from rectilinear.measurement.profile import Profile as Profile
from rectilinear.measurement.settings import Measurement as Measurement
from rectilinear.models.blocks import find_blocks as find_blocks
from rectilinear.models.settings import Loading as Loading
from rectilinear.report.dynamics_plot import plot_dynamics as plot_dynamics
from rectilinear.report.plots import plot_profile as plot_profile
from rectilinear.report.probe_plot import plot_probe as plot_probe
from rectilinear.text.settings import Rows as Rows
from rectilinear.text.settings import Source as Source
from rectilinear.text.stories import generate_stories as generate_stories
from rectilinear.training.callback import LinearityCallback as LinearityCallback
from rectilinear.training.finetune import finetune as finetune
from rectilinear.training.pretrain import pretrain as pretrain
from rectilinear.training.regularizer import Regularizer as Regularizer
from rectilinear.training.results import Finetuning as Finetuning
from rectilinear.training.results import Training as Training
from rectilinear.training.settings import Corpus as Corpus
from rectilinear.training.settings import Monitoring as Monitoring
from rectilinear.training.settings import Profiling as Profiling
from rectilinear.training.settings import Recipe as Recipe
from rectilinear.training.settings import Tuning as Tuning

__all__: list[str]
__version__: str
