"""The options that commands share, each written once."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from rectilinear.errors import RequestError


class PoolingName(StrEnum):
    """How the hidden states of a text become one."""

    mean = "mean"
    last = "last"


class DTypeName(StrEnum):
    """Names of ``--dtype``."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"
    float16 = "float16"


class ConventionName(StrEnum):
    """Names of ``--convention``."""

    block = "block"
    paper = "paper"


class KindName(StrEnum):
    """Names of ``--kind``."""

    drop = "drop"
    folded = "folded"
    affine = "affine"
    filter = "filter"


class TargetName(StrEnum):
    """Names of ``--target``."""

    block = "block"
    attention = "attention"
    mlp = "mlp"


class SelectName(StrEnum):
    """Names of ``--select``."""

    score = "score"
    influence = "influence"
    loss = "loss"


class ProductsName(StrEnum):
    """Names of ``--products``."""

    auto = "auto"
    float32 = "float32"
    float64 = "float64"


class RegularizerName(StrEnum):
    """Names of ``--regularizer``."""

    none = "none"
    mse = "mse"
    cosine = "cosine"


Model = Annotated[
    str, typer.Argument(metavar="MODEL", help="Hub id, path, or 'storyteller' (built in).", show_default=False)
]
Models = Annotated[
    list[str],
    typer.Argument(metavar="MODEL", help="Hub ids, paths, or 'storyteller' (built in).", show_default=False),
]
Checkpoints = Annotated[
    list[str],
    typer.Argument(
        metavar="CHECKPOINT",
        help="Folders, a folder of checkpoint-N folders, or Hub ids; one Hub id with --revisions.",
        show_default=False,
    ),
]
Revisions = Annotated[
    str | None, typer.Option(metavar="A,B,C", help="Branches, tags or commits of one Hub id, one a step.")
]
HeldOutTokens = Annotated[int, typer.Option(min=1, help="Tokens of the held-out text to take, at most.")]
Tokenizer = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Where the tokenizer is; each checkpoint's own when not given."),
]
Text = Annotated[
    str,
    typer.Option(
        "--text",
        metavar="TEXT",
        help="A .txt (documents separated by a line <|endoftext|>), .jsonl or .parquet file, a folder of "
        "these, a Hub dataset id, or 'stories' (generated).",
        show_default=False,
    ),
]
EvaluatedText = Annotated[
    str | None,
    typer.Option("--text", metavar="TEXT", help="A text to predict, as for rectilinear measure.", show_default=False),
]
EvaluatedTasks = Annotated[
    str | None,
    typer.Option(
        "--tasks",
        metavar="A,B",
        help="Tasks, groups or tags of lm-evaluation-harness, or superglue, the paper's columns.",
        show_default=False,
    ),
]
EvaluatedData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR",
        help="A folder with the tasks' data: TASK/val.jsonl of SuperGLUE, or task.jsonl; default: the Hub.",
        show_default=False,
    ),
]
Limit = Annotated[int | None, typer.Option(help="Documents of each task, at most.", show_default=False)]
FewShot = Annotated[
    int | None,
    typer.Option("--num-fewshot", help="Examples before each question; default: each task's own.", show_default=False),
]
ChatTemplate = Annotated[
    bool,
    typer.Option("--apply-chat-template", help="Put prompts into the tokenizer's chat template, examples as turns."),
]
SystemInstruction = Annotated[
    str | None, typer.Option(metavar="TEXT", help="To put before prompts of tasks.", show_default=False)
]
Against = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="MODEL",
        help="Another model to compare with, on the same rows and documents; its default revision.",
        show_default=False,
    ),
]
Include = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="DIR",
        help="Results of rectilinear probe and judge of these models, in DIR or folders in it; may be repeated.",
        show_default=False,
    ),
]
Speed = Annotated[bool, typer.Option("--speed/--no-speed", help="Time reading a prompt and decoding from it.")]
Column = Annotated[str, typer.Option(help="Column of the text in .jsonl, .parquet and Hub datasets.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a Hub dataset.")]
Split = Annotated[str, typer.Option(help="Split of a Hub dataset.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Tokens of the text to take, at most.")]
SeqLen = Annotated[int, typer.Option(min=1, help="Tokens in a row.")]
Folds = Annotated[int, typer.Option(min=1, help="Folds for held-out scores; 1 for none.")]
Blocks = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Dotted path of the block stack, such as model.layers; found when not given."),
]
Convention = Annotated[
    ConventionName,
    typer.Option(help="'paper' takes the last state after the final norm and lets padding count, as the paper did."),
]
SinkRatio = Annotated[
    float, typer.Option(help="A token is an attention sink if |x| exceeds this many times the median norm.")
]
Products = Annotated[
    ProductsName, typer.Option(help="Precision of products; 'auto' is float64 where float32 would not do.")
]
Kind = Annotated[
    KindName,
    typer.Option(
        help="What stands in: nothing, a map folded into the projection before, an affine map, a causal linear filter."
    ),
]
Target = Annotated[TargetName, typer.Option(help="What of a block is replaced.")]
Indices = Annotated[str | None, typer.Option("--blocks", metavar="2,3", help="Blocks to replace, counted from 0.")]
Count = Annotated[int | None, typer.Option(help="Number of blocks to replace.")]
Budget = Annotated[str | None, typer.Option(metavar="25%", help="Share of the model's parameters to save at least.")]
MaxLossIncrease = Annotated[
    float | None,
    typer.Option(metavar="NATS", help="Replace blocks until the loss on held-out rows would rise by more than this."),
]
Plan = Annotated[
    Path | None, typer.Option(metavar="PLAN", help="A plan.json of this model, perhaps edited: replace what it says.")
]
Select = Annotated[
    SelectName,
    typer.Option(help="Which blocks first: most linear, least change of direction, or least loss, measured each time."),
]
Rank = Annotated[int | None, typer.Option(min=1, help="Rank of affine maps and filters; full when not given.")]
Taps = Annotated[int, typer.Option(min=0, max=64, help="Earlier tokens that a filter sees.")]
Rates = Annotated[
    str, typer.Option(metavar="1,0.9", help="Rates of the decaying means that a filter sees; 1 is the plain mean.")
]
Merge = Annotated[bool, typer.Option("--merge", help="One stand-in for consecutive replaced blocks.")]
HealSteps = Annotated[
    int, typer.Option(help="Steps to train the stand-ins for, towards the original's hidden states, after the fit.")
]
HealLearningRate = Annotated[float, typer.Option(help="Learning rate of the first of these steps; it falls to 0.")]
HealLogits = Annotated[
    float, typer.Option(metavar="WEIGHT", help="Weight of the divergence from the original's predictions in them.")
]
Stack = Annotated[
    str | None,
    typer.Option(metavar="PATH", help="Dotted path of the block stack, such as model.layers; found when not given."),
]
Preset = Annotated[str, typer.Option(metavar="NAME", help="mistral-1m, mistral-4m, mistral-150m or mistral-650m.")]
Regularizer = Annotated[
    RegularizerName, typer.Option(help="Penalty on hidden states of neighbouring layers: 1 - cos, or squared distance.")
]
Strength = Annotated[float, typer.Option(help="Factor of the penalty.")]
Embedding = Annotated[
    bool,
    typer.Option(
        "--penalize-embedding/--spare-embedding", help="Whether embedding and first block are a pair of neighbours."
    ),
]
MaxSteps = Annotated[int | None, typer.Option(help="Optimizer steps; as many as --epochs makes when not given.")]
Epochs = Annotated[float, typer.Option(help="Passes over the text, or the task's examples.")]
AnyTokens = Annotated[
    int | None, typer.Option("--max-tokens", help="Tokens of the text to take, at most; all when not given.")
]
HeldOut = Annotated[
    str | None,
    typer.Option(
        "--held-out", metavar="TEXT", help="Text to measure the loss on; the last rows of TEXT when not given."
    ),
]
TrainedTokenizer = Annotated[
    str | None, typer.Option(metavar="ID", help="Hub id or path; trained on the text when not given.")
]
Vocabulary = Annotated[
    int | None, typer.Option("--vocab-size", help="Of a tokenizer that is trained; the preset's when not given.")
]
PresetSeqLen = Annotated[int | None, typer.Option("--seq-len", help="Tokens in a row; the preset's when not given.")]
Accumulation = Annotated[
    int | None,
    typer.Option(
        "--gradient-accumulation", help="Batches in a step; as many as make the preset's rows when not given."
    ),
]
LearningRate = Annotated[float | None, typer.Option(help="The highest of the schedule; the preset's when not given.")]
WeightDecay = Annotated[float, typer.Option(help="Of AdamW.")]
Task = Annotated[
    str,
    typer.Option(
        "--task",
        metavar="boolq|cb|copa|multirc|rte|wic|wsc|reward",
        help="A task of SuperGLUE, or preferences.",
        show_default=False,
    ),
]
TaskData = Annotated[
    str | None,
    typer.Option(
        "--data",
        metavar="DIR|FILE|ID",
        help="Folder with TASK/train.jsonl and TASK/val.jsonl, or a Hub id; SuperGLUE's on the Hub when not given. For "
        "reward a .jsonl of chosen, rejected and perhaps prompt, or a folder with train.jsonl and val.jsonl.",
        show_default=False,
    ),
]
Pooling = Annotated[PoolingName, typer.Option(help="A text's states: their mean, or that of its last token.")]
ProbeFolds = Annotated[int, typer.Option("--folds", min=2, help="Of the cross-validation that chooses penalties.")]
JudgeModel = Annotated[
    str | None,
    typer.Option(help="Whom to ask; when not given, stories are only written and measured.", show_default=False),
]
JudgeUrl = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="Of an OpenAI-compatible endpoint, http://HOST:PORT/v1; default: OpenAI's. The key is in OPENAI_API_KEY.",
        show_default=False,
    ),
]
StoryText = Annotated[str, typer.Option("--text", metavar="TEXT", help="Held-out text to take beginnings from.")]
StoryCount = Annotated[int, typer.Option("--count", min=1, help="How many stories.")]
BeginningWords = Annotated[int, typer.Option(min=1, help="Of a story; only texts of twice as many words are taken.")]
MaxNewTokens = Annotated[int, typer.Option(min=1, help="That the model may write.")]
Temperature = Annotated[float, typer.Option(min=0.0, help="Of sampling; 0 takes the likeliest tokens.")]
Reference = Annotated[
    str | None,
    typer.Option(metavar="MODEL", help="Another model, whose loss of the completions is measured.", show_default=False),
]
Concurrency = Annotated[int, typer.Option(min=1, help="Requests at once.")]
Structured = Annotated[
    bool,
    typer.Option("--structured/--free-form", help="Whether the endpoint is to hold answers to a JSON schema."),
]
Reasoning = Annotated[
    bool, typer.Option("--reasoning", help="The judge reasons before it answers: no temperature, longer answers.")
]
Prices = Annotated[
    tuple[float, float] | None,
    typer.Option(
        metavar="IN OUT", help="Of a million tokens of requests and of answers, for an estimate.", show_default=False
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Write the stories, estimate the tokens, ask nothing.")]
ResumeJudging = Annotated[
    bool, typer.Option("--resume", help="Go on with the run in --out: no story that has an answer is asked again.")
]
StoriesAtOnce = Annotated[int, typer.Option("--batch-size", min=1, help="Stories to write at once.")]
Seeds = Annotated[int, typer.Option(min=1, help="How often to train: with seeds 0, 1, ...")]
MaxExamples = Annotated[
    int | None, typer.Option(min=1, help="Lines of each data file to read, at most, from the first.")
]
ExamplesInStep = Annotated[int, typer.Option("--batch-size", min=1, help="Examples in an optimizer step.")]
TaskLearningRate = Annotated[
    float, typer.Option("--learning-rate", help="The highest; it rises for a twentieth of the steps, and falls to 0.")
]
TaskSeqLen = Annotated[
    int,
    typer.Option("--seq-len", min=1, help="Tokens of a text, which loses its beginning; and of a row to measure on."),
]
ProfileText = Annotated[
    str | None,
    typer.Option(
        "--text", metavar="TEXT", help="Text to measure linearity on; the task's validation texts when not given."
    ),
]
SaveModels = Annotated[bool, typer.Option("--save-models", help="Leave the model of each seed in OUT/seed-N.")]
ResumeSeeds = Annotated[bool, typer.Option("--resume", help="Do not repeat the seeds that are done in OUT.")]
ProbeEvery = Annotated[
    int | None,
    typer.Option(min=0, help="Steps between profiles of held-out rows; a tenth of all when not given, 0 for never."),
]
SaveEvery = Annotated[int | None, typer.Option(min=1, help="Steps between checkpoints; a tenth of all when not given.")]
Keep = Annotated[int, typer.Option(min=0, help="Checkpoints to keep; 0 for all.")]
ReportTo = Annotated[str, typer.Option(metavar="none|tensorboard|wandb", help="Loggers of transformers.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on from the last checkpoint in OUT.")]
TrainDevice = Annotated[str, typer.Option("--device", metavar="auto|cpu", help="Where to train.")]
RunOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the run and its checkpoint.")]
RequiredOut = Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder for the checkpoint.")]
Out = Annotated[Path | None, typer.Option("--out", metavar="DIR", help="Folder for the results.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Write into a folder that is not empty.")]
Seed = Annotated[
    int,
    typer.Option(min=0, help="Of all that is drawn: generated stories, and weights, orders or samples."),
]
Device = Annotated[str, typer.Option(metavar="auto|cpu|cuda:0|mps", help="Where to run.")]
DType = Annotated[DTypeName, typer.Option(help="Of the weights; 'auto' is the checkpoint's own.")]
TrainDType = Annotated[
    DTypeName,
    typer.Option(help="Of products, weights are float32; 'auto' is bfloat16 where the device has instructions for it."),
]
TokenizerRevision = Annotated[
    str | None, typer.Option("--revision", help="Of --tokenizer: branch, tag or commit on the Hub.")
]
BatchSize = Annotated[
    str, typer.Option(metavar="N|auto", help="Rows in a forward pass; 'auto' halves it when memory runs out.")
]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run modelling code that comes with the checkpoint.")
]


def refuse_idle(context: typer.Context, *rules: tuple[bool, str, Sequence[str]]) -> None:
    """Refuse options that were given and change nothing.

    Args:
        context: of the command.
        rules: each says whether it holds, the circumstances, and which parameters change nothing in them.

    Raises:
        RequestError: one of them was given.
    """
    for holds, circumstances, names in rules:
        for name in names if holds else ():
            source = context.get_parameter_source(name)
            if source is not None and source.name != "DEFAULT":
                option = next(parameter.opts[0] for parameter in context.command.params if parameter.name == name)
                raise RequestError(f"expected no {option} {circumstances}, where it changes nothing; try without it")


def parse_batch_size(value: str) -> int | Literal["auto"]:
    """The number in ``--batch-size``, or ``"auto"``.

    Raises:
        RequestError: it is neither.
    """
    if value == "auto":
        return "auto"
    if not value.isdecimal() or int(value) < 1:
        raise RequestError(f"expected --batch-size N or auto, got {value!r}")
    return int(value)


def parse_indices(value: str | None) -> list[int] | None:
    """The numbers in ``--blocks 2,3``; an empty list for an empty text.

    Raises:
        RequestError: something else is in it.
    """
    if value is None:
        return None
    words = [word.strip() for word in value.split(",") if word.strip()]
    if not all(word.isdecimal() for word in words):
        raise RequestError(f"expected --blocks 2,3 (indices, counted from 0), got {value!r}; for a path try --stack")
    return [int(word) for word in words]


def parse_names(option: str, value: str) -> list[str]:
    """The names in an option such as ``--revisions a,b,c``.

    Raises:
        RequestError: there are none.
    """
    names = [name.strip() for name in value.split(",") if name.strip()]
    if not names:
        raise RequestError(f"expected {option} a,b,c, got {value!r}")
    return names


def parse_share(value: str | None) -> float | None:
    """The share in ``--budget 25%``, or ``--budget 0.25``.

    Raises:
        RequestError: something else is in it.
    """
    if value is None:
        return None
    try:
        share = float(value[:-1]) / 100 if value.endswith("%") else float(value)
    except ValueError:
        raise RequestError(f"expected --budget 25%, got {value!r}") from None
    if share >= 1 and not value.endswith("%"):
        raise RequestError(f"expected --budget 25% or 0.25, got {value!r}; try --budget {value}%")
    return share


def parse_rates(value: str) -> list[float]:
    """The numbers in ``--rates 1,0.9``.

    Raises:
        RequestError: something else is in it.
    """
    try:
        return [float(word) for word in value.split(",") if word.strip()]
    except ValueError:
        raise RequestError(f"expected --rates 1,0.9, got {value!r}") from None
