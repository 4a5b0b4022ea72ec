"""Write docs/experiments.md and its figures from the result files beside this script, so that they cannot drift.

python experiments/page.py
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from scipy.stats import t as student

from rectilinear.charts import SERIES, Axis, Chart, Curves, Line
from rectilinear.intervals import half_width, holm
from rectilinear.report.static import save

HERE = Path(__file__).parent
DOCS = HERE.parent / "docs"


class Mean(NamedTuple):
    """Of some numbers, one a seed."""

    mean: float
    deviation: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> Mean:
        """Mean, and standard deviation of the sample (nan for one)."""
        return cls(statistics.mean(values), statistics.stdev(values) if len(values) > 1 else math.nan, len(values))

    @property
    def half_width(self) -> float:
        """Of the interval of 95 %; infinite for one value."""
        return half_width(self.deviation / math.sqrt(self.n), self.n) if self.n > 1 else math.inf

    @property
    def p_value(self) -> float:
        """Two-sided, of no difference, by Student's t; 1 for one value."""
        if self.n < 2:
            return 1.0
        if not self.deviation:
            return float(self.mean == 0)
        return 2 * float(student.sf(abs(self.mean) / (self.deviation / math.sqrt(self.n)), self.n - 1))

    def verdict(self, sign: int, claim: str, opposite: str) -> str:
        """What the interval says of a claim that the mean has this sign."""
        if abs(self.mean) <= self.half_width:
            return f"undecided: {self.mean:+.4f} ± {self.half_width:.4f} (95 %, n = {self.n})"
        what = claim if self.mean * sign > 0 else opposite
        return f"**{what}**: {self.mean:+.4f} ± {self.half_width:.4f} (95 %, n = {self.n})"


def signs(changes: list[Mean]) -> list[int]:
    """Of changes that are tested together: 1 for those that are above 0 after Holm's correction, -1 below, 0 undecided."""
    return [
        (1 if change.mean > 0 else -1) if p < 0.05 else 0
        for change, p in zip(changes, holm([change.p_value for change in changes]), strict=True)
    ]


def render() -> str:
    """The page's text."""
    parts = [
        "# Experiments",
        "Written by `experiments/page.py` from the result files in `experiments/`. The paper is Razzhigaev et al., "
        "*Your Transformer is Secretly Linear* (ACL 2024, arXiv 2405.12250). It reports no error bars; here every arm is "
        "run once for each seed, differences are taken seed by seed, and a claim counts as decided where the interval of "
        "95 % (Student's t over seeds) leaves out 0; where a table tests several at once, what is left after Holm's correction. Models and texts are far smaller than the paper's, which had 150M and 650M "
        "parameters: what fails here may hold there, and the other way round. No accelerator was at hand for these sizes.",
        about_pretraining(read("pretraining")),
        about_finetuning(read("finetuning")),
    ]
    return "\n\n".join(parts) + "\n"


def read(name: str) -> dict[str, Any]:
    """A result file."""
    found: dict[str, Any] = json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))
    return found


def about_pretraining(result: dict[str, Any]) -> str:
    """Losses and linearity of the arms, and what they say of the claims."""
    arms = by_arm(result)
    one = result["results"][0]
    rows = []
    for arm, runs in arms.items():
        loss, linearity = Mean.of([run["loss"] for run in runs]), Mean.of([final_mean(run) for run in runs])
        cells = [arm, plus_minus(loss), plus_minus(linearity)]
        for value in (lambda run: run["loss"], final_mean):
            change = None if arm == "none" else paired(arms, arm, value)
            cells.append("-" if change is None else f"{change.mean:+.4f} ± {change.half_width:.4f}")
        rows.append([*cells, str(loss.n)])
    headings = ["arm", "held-out loss", "update linearity", "loss against none", "update linearity against none", "n"]
    falls = [Mean.of([final_mean(run) - mean_at(run, place) for run in arms["none"]]) for place in (0, 1)]
    cosine_loss, cosine_linearity = (paired(arms, "cosine 0.5", value) for value in (lambda r: r["loss"], final_mean))
    mse_loss = paired(arms, "mse 0.5", lambda run: run["loss"])
    lower = [paired(arms, "cosine 0.5", lambda run, i=i: final(run)[i]) for i in range(len(final(one)))]
    by_block = signs(lower)
    strong = paired(arms, "cosine 2", lambda run: run["loss"])
    claims = [
        [
            "over pretraining the mean of the score without residual falls",
            f"no penalty, to the end from random weights: {falls[0].verdict(-1, 'it does', 'it rises')}; from step "
            f"{one['points'][1]['step']}, until when it rises: {falls[1].verdict(-1, 'it does', 'it rises')}",
        ],
        [
            "the cosine penalty (0.5) lowers the score without residual",
            "mean over blocks: " + cosine_linearity.verdict(-1, "it does", "it raises it"),
        ],
        [
            "... at every layer",
            f"after Holm's correction lower at {by_block.count(-1)} of {len(lower)} blocks, higher at {by_block.count(1)}",
        ],
        [
            "the cosine penalty makes the model better",
            f"held-out loss after these steps: {cosine_loss.verdict(-1, 'it is lower', 'it is higher')}; with a strength of 2: "
            f"{strong.verdict(-1, 'it is lower', 'it is higher')}",
        ],
        [
            "so does the squared distance (0.5)",
            f"held-out loss after these steps: {mse_loss.verdict(-1, 'it is lower', 'it is higher')}. One learning rate was tried, "
            "which suits some arms better than others: it shows that they learn faster here, not that they end better",
        ],
    ]
    return "\n\n".join(
        [
            "## Pretraining",
            f"`{result['command']}`, {result['date']}: TinyStories `train.txt` (4,841 stories), {one['parameters']:,} parameters, "
            f"{one['steps']:,} steps, {one['tokens']:,} tokens, the same in each arm and order by seed; measured on "
            f"{one['held_out_tokens']:,} tokens of `valid.txt`. Losses are without the penalty, in nats per token; linearity is of the "
            "update, held out, mean over blocks. ± after an arm's own number is the standard deviation over seeds, after a difference "
            "half the interval of 95 %.",
            "![arms of pretraining](experiments-pretraining.png)",
            table(headings, rows),
            "The squared distance is summed over the width, as the paper writes it; averaged over the width, 0.5 would be 0.0026 here. "
            "The penalty is a mean over tokens, a sum over all pairs of neighbours, the embedding's among them. This is early training: the "
            "losses are still falling where the learning rate ends, and what a penalty does to the speed of learning is in them.",
            table(["claim of the paper", "seen here"], claims),
        ]
    )


def about_finetuning(result: dict[str, Any]) -> str:
    """Change of the update linearity by model and task, beside what was learnt."""
    rows = []
    all_changes = [Mean.of([run["change"]["held_out"] for run in case["runs"]]) for case in result["results"]]
    verdicts = [{1: "rises", -1: "falls", 0: "undecided"}[sign] for sign in signs(all_changes)]
    corrected = holm([change.p_value for change in all_changes])
    for place, case in enumerate(result["results"]):
        changes = {kind: Mean.of([run["change"][kind] for run in case["runs"]]) for kind in ("in_sample", "held_out")}
        accuracy = Mean.of([run["metrics"]["accuracy"]["value"] for run in case["runs"]])
        what, p = verdicts[place], corrected[place]
        said = f"{what if what == 'undecided' else f'**{what}**'}, p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}"
        rows.append(
            [
                case["model"],
                case["task"],
                f"{case['train']:,}",
                f"{case['before']['held_out']:.4f}",
                *(f"{change.mean:+.4f} ± {change.deviation:.4f}" for change in changes.values()),
                said,
                plus_minus(accuracy),
                f"{case['runs'][0]['metrics']['accuracy']['baseline']:.4f}",
                str(accuracy.n),
            ]
        )
    headings = [
        "model",
        "task",
        "trained on",
        "before, held out",
        "change, in sample",
        "change, held out",
        "held out, after Holm",
    ]
    counted = ", ".join(f"{word} in {verdicts.count(word)}" for word in ("rises", "falls", "undecided"))
    cut = min(
        case["cut"] / (case["train"] + case["validation"]) for case in result["results"] if case["task"] == "multirc"
    )
    return "\n\n".join(
        [
            "## Fine-tuning",
            f"`{result['command']}`, {result['date']}: SuperGLUE's files, three epochs, all weights; mistral-4m is the model "
            "without a penalty, seed 0, from above. Linearity is of the update, mean over blocks, on the validation texts of the task. "
            f"± is the standard deviation over seeds. Texts are cut to their last 256 tokens, which these small vocabularies "
            f"make long: of MultiRC's {cut:.0%} lost their beginning.",
            table([*headings, "accuracy", "constant answer", "n"], rows),
            table(
                ["claim of the paper", "seen here"],
                [
                    [
                        "fine-tuning raises the score without residual, on every model and task",
                        f"of {len(rows)} cases it {counted}",
                    ]
                ],
            ),
            "Models this small learn little of these tasks: read each change beside the accuracy and what a constant answer gets.",
        ]
    )


def by_arm(result: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """Runs of each arm by seed, without a penalty first."""
    names = sorted({run["arm"] for run in result["results"]}, key=lambda name: (name != "none", name))
    return {name: [run for run in result["results"] if run["arm"] == name] for name in names}


def paired(arms: dict[str, list[dict[str, Any]]], arm: str, value: Any) -> Mean:
    """Difference of an arm from none, seed by seed."""
    plain = {run["seed"]: value(run) for run in arms["none"]}
    return Mean.of([value(run) - plain[run["seed"]] for run in arms.get(arm, []) if run["seed"] in plain])


def final(run: dict[str, Any]) -> list[float]:
    """Held-out update linearity of each block at the end."""
    scores: list[float] = run["points"][-1]["update_linearity"]
    return scores


def final_mean(run: dict[str, Any]) -> float:
    """Its mean over blocks."""
    return statistics.mean(final(run))


def mean_at(run: dict[str, Any], place: int) -> float:
    """The mean over blocks at a point."""
    return statistics.mean(run["points"][place]["update_linearity"])


def plus_minus(value: Mean) -> str:
    """Mean and deviation."""
    return f"{value.mean:.4f}" + ("" if value.n == 1 else f" ± {value.deviation:.4f}")


def table(headings: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def draw_pretraining(result: dict[str, Any]) -> None:
    """Loss by arm, the course of training, and each arm's blocks at the end beside those without a penalty."""
    arms = by_arm(result)
    looks = dict(zip(arms, (("grey", "plus"), *SERIES), strict=False))
    share = "share of variance, held out"
    losses = [
        Line.of(
            arm, [place], [(mean := Mean.of([run["loss"] for run in runs])).mean], [mean.half_width], **look(looks[arm])
        )
        for place, (arm, runs) in enumerate(arms.items())
    ]
    courses, panels = [], []
    for arm, runs in arms.items():
        steps = [point["step"] for point in runs[0]["points"]]
        curves = [[statistics.mean(point["update_linearity"]) for point in run["points"]] for run in runs]
        means = [Mean.of(list(values)) for values in zip(*curves, strict=True)]
        halves = [mean.half_width for mean in means]
        courses.append(Line.of(arm, steps, [mean.mean for mean in means], halves, spread="band", **look(looks[arm])))
    ends = {
        arm: Line.of(
            arm,
            range(len(final(runs[0]))),
            [(mean := Mean.of([final(run)[block] for run in runs])).mean for block in range(len(final(runs[0])))],
            [Mean.of([final(run)[block] for run in runs]).half_width for block in range(len(final(runs[0])))],
            spread="band",
            **look(looks[arm]),
        )
        for arm, runs in arms.items()
    }
    for arm in arms:
        if arm != "none":
            title = f"Updates at the end: {arm} beside none"
            panels.append(Curves(title, Axis("block", whole=True), Axis(share, "score"), (ends["none"], ends[arm])))
    first = Curves("Held-out loss", Axis("", ticks=tuple(arms)), Axis("nats a token"), tuple(losses))
    second = Curves("Mean of the updates over blocks", Axis("step"), Axis(share, "score"), tuple(courses))
    seeds = len(next(iter(arms.values())))
    title = f"penalty and strength; means over {seeds} seeds, 95 % intervals by Student's t"
    chart = Chart("experiments-pretraining", title, (first, second, *panels), alike=False)
    save(chart, DOCS, ("png",))


def look(of: tuple[str, str]) -> dict[str, Any]:
    """Of an arm's lines."""
    return dict(zip(("color", "marker"), of, strict=True))


if __name__ == "__main__":
    draw_pretraining(read("pretraining"))
    (DOCS / "experiments.md").write_text(render(), encoding="utf-8")
    print(f"wrote {DOCS / 'experiments.md'} and its figures")
