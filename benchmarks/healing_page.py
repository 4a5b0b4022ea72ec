"""Write docs/healing.md: healing beside fine-tuning and LoRA at the same compute, from the cells in benchmarks/healing.

python benchmarks/healing_page.py
"""

from __future__ import annotations

import json
import math
import statistics
from pathlib import Path
from typing import Any, NamedTuple

from healing import COMMAND, PLANS, TRIAL_SEED, Plan
from page import table
from scoring import about_rows, difference, loss_of

from rectilinear.intervals import half_width

PAGE = Path(__file__).parent.parent / "docs" / "healing.md"

#: Ways to train, in words.
NAMES = {
    "states": "healing: hidden states",
    "states-logits": "healing: hidden states and predictions",
    "text": "fine-tuning: next token",
    "logits": "distillation: predictions",
    "lora": "LoRA: next token",
    "lora-logits": "LoRA: predictions",
}

#: Edited models, in words.
STARTS = {
    ("stories260K", "affine"): "2 of 5 blocks by affine maps",
    ("stories260K", "filter"): "All 5 attentions by filters of rank 24",
    ("stories260K", "drop"): "1 of 5 blocks left out",
    ("smollm2-135m", "affine"): "6 of 30 blocks by affine maps",
}

#: Ways of which each pair differs in what is said: what the first loses more than the second is what that costs.
COMPARED = [
    ("states", "text", "the original's hidden states, not the next token"),
    ("states", "states-logits", "hidden states without predictions"),
    ("states-logits", "logits", "hidden states beside predictions"),
    ("text", "logits", "the next token, not the original's predictions"),
    ("lora", "text", "LoRA elsewhere, not the own parts; next token"),
    ("lora-logits", "logits", "LoRA elsewhere, not the own parts; predictions"),
]

BEGIN = f"""# Healing beside fine-tuning and LoRA

An edited model can be trained in several ways. Here they have the same rows and the same compute: `{COMMAND}`.

- *Healing* (`--heal-steps`, [linearization.md](linearization.md#healing)) trains the stand-ins towards the original's hidden states after each replaced block, and towards its predictions too unless with `--heal-logits 0`.
- *Fine-tuning* trains the same parameters by the loss of the next token, *distillation* by the divergence (KL) of the predictions from the original's.
- *LoRA* (peft, scaled by 2, no dropout) trains the linear layers of blocks that are not part of a stand-in, by either loss, at the rank that gives about as many parameters; stand-ins stay as they were fitted.
- Where a block is left out, nothing is there to heal: the blocks before and after the cut are trained, or LoRA in all blocks that are left.

All are transformers' Trainer with AdamW, no weight decay, a learning rate that falls linearly to 0, gradients clipped at a norm of 1, float32, and rows in the order of the seed. *Compute* is what PyTorch's counter has of the products of matrices and of attention, forward and backward,
measured on steps of each way: the original's forward pass counts where there is one, and so does the pass of healing over all rows before the first step; gradients that flow through what is not trained count, and masked scores too. At the same compute each way has the steps that come nearest to the operations of the reference,
which is healing towards hidden states, or fine-tuning where nothing is healed; at the same tokens it has the reference's steps. The learning rate of each way and start is chosen by the loss on the last tenth of the text that was fitted on, which nothing is trained on, at the same compute{{}}.
Each cell is scored once, on another text. Losses are in nats a token above the dense model's, means over seeds; ± is half of a 95 % interval of the paired difference over documents for the mean over seeds, and *seeds* is the standard deviation of a single training over the seeds, which decide the order of the rows and LoRA's first weights.
Intervals of differences between ways have both: the standard errors over documents and over seeds, in squares, with Welch and Satterthwaite's degrees of freedom. Each is of its comparison alone. Times are left out: they were not taken on an idle machine.
"""

Cells = dict[str, dict[str, Any]]


class Between(NamedTuple):
    """How much more one way loses than another, and half of a 95 % interval over documents and seeds."""

    value: float
    half: float

    def __str__(self) -> str:
        return f"{self.value:+.4f} ± {self.half:.4f}"

    @property
    def sure(self) -> bool:
        """Whether the interval leaves out 0."""
        return abs(self.value) > self.half


def page() -> str:
    """The text."""
    trials = f" and with another seed ({TRIAL_SEED})"
    return BEGIN.replace("{}", trials) + "".join(about(plan) for plan in PLANS if len(plan.whole().cells()) > 1)


def about(plan: Plan) -> str:
    """The tables of a model."""
    study = plan.whole()
    dense, cells = study.dense, study.cells()
    widened = "; while the best of these is the first or the last, the one beside it is tried too" * plan.widened
    share = "" if plan.trial == 1 else f", with {plan.trial:.0%} of the steps in trials"
    rates = ", ".join(f"{rate:g}" for rate in plan.first_rates)
    rows = about_rows(study, rows=f", {plan.rows} in a step", fitted="fitted and trained")
    begin = f"\n## {study.model}\n\n{rows} Learning rates tried: {rates}{widened}{share}.\n"
    if len(cells) < len(study.ways):
        begin += f"\n{len(cells)} of {len(study.ways)} cells are made; ways and seeds that are not there are left out below.\n"
    return begin + "".join(section(plan, start, cells, dense) for start in plan.starts)


def section(plan: Plan, start: str, cells: Cells, dense: dict[str, Any]) -> str:
    """A start's tables; nothing while no way to train it has a cell."""
    groups = {budget: by_way(plan, start, budget, cells) for budget in ("compute", "tokens")}
    if not groups["compute"]:
        return ""
    none = cells[f"{start}-none"]
    where = ", ".join(map(str, none["blocks"]))
    text = f"\n### {STARTS[plan.study.model, start]} ({where})\n\nNot trained: {loss_of(none, dense, 'all')}, {none['parameters']:,} parameters.\n\n"
    text += "At the same compute:\n\n" + table_of(groups["compute"], none, dense)
    text += f"\n\n{ranking(groups['compute'])}\n"
    if groups["tokens"]:
        reference = plan.reference(start)
        same = {reference: groups["compute"][reference]} | groups["tokens"]
        text += "\nAt the same tokens:\n\n" + table_of(same, none, dense) + f"\n\n{ranking(same)}\n"
    return text + "\n" + choices(groups["compute"]) + "\n\n" + trials(plan, start) + "\n"


def by_way(plan: Plan, start: str, budget: str, cells: Cells) -> dict[str, list[dict[str, Any]]]:
    """The cells of each way, one a seed; those ways that have any."""
    found = {
        name: [cells[cell] for seed in plan.seeds if (cell := f"{start}-{name}-{budget}-{seed}") in cells]
        for name in plan.ways
    }
    return {name: each for name, each in found.items() if each}


def table_of(ways: dict[str, list[dict[str, Any]]], none: dict[str, Any], dense: dict[str, Any]) -> str:
    """Ways, the least loss first."""
    least = min(each[0]["operations"] for each in ways.values())
    rows, whole = [], difference(none, dense, "all")[0]
    for name, each in sorted(ways.items(), key=lambda item: total(item[1])):
        one = each[0]
        gained = 1 - difference(averaged(each), dense, "all")[0] / whole
        seeds = f"{statistics.stdev(mean_loss(cell) for cell in each):.4f} (n = {len(each)})" if len(each) > 1 else ""
        rank = f" (rank {one['rank']})" if one["rank"] else ""
        rows.append(
            [
                NAMES[name],
                loss_of(averaged(each), dense, "all"),
                seeds,
                loss_of(averaged(each), dense, "late"),
                f"{gained:.1%}",
                f"{one['trained']:,}{rank}",
                f"{one['rate']:g}",
                f"{one['steps']:,}",
                f"{one['tokens']:,}",
                f"{one['operations'] / least:.2f}",
            ]
        )
    headings = ["way", "loss", "seeds", "late", "of the loss made good", "trained", "learning rate", "steps", "tokens"]
    return table([*headings, "compute, of the least"], rows)


def averaged(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """A cell with the means over seeds."""
    sums = {
        name: [statistics.fmean(each) for each in zip(*(cell["sums"][name] for cell in cells), strict=True)]
        for name in ("all", "late")
    }
    return {"sums": sums, "sizes": cells[0]["sizes"]}


def mean_loss(cell: dict[str, Any]) -> float:
    """Nats a token."""
    return sum(cell["sums"]["all"]) / sum(cell["sizes"]["all"])


def total(cells: list[dict[str, Any]]) -> float:
    """Nats a token, a mean over seeds."""
    return statistics.fmean(map(mean_loss, cells))


def between(ones: list[dict[str, Any]], others: list[dict[str, Any]]) -> Between:
    """How much more some cells lose than others of the same seeds."""
    value, by_document, groups = difference(averaged(ones), averaged(others), "all")
    errors = [(by_document or 0.0, groups - 1)]
    apart = [mean_loss(one) - mean_loss(other) for one, other in zip(ones, others, strict=False)]
    if len(apart) > 1:
        errors.append((statistics.stdev(apart) / math.sqrt(len(apart)), len(apart) - 1))
    stderr = math.hypot(*(error for error, _ in errors))
    freedom = stderr**4 / sum(error**4 / n for error, n in errors) if stderr else 1.0
    return Between(value, half_width(stderr, freedom + 1))  # type: ignore[arg-type]


def ranking(ways: dict[str, list[dict[str, Any]]]) -> str:
    """Which way loses least, and by how much."""
    first, *rest = sorted(ways, key=lambda name: total(ways[name]))
    found = {name: between(ways[name], ways[first]) for name in rest}
    more = [f"*{NAMES[name]}* by {each}" for name, each in found.items() if each.sure]
    alike = [f"*{NAMES[name]}* ({each})" for name, each in found.items() if not each.sure]
    words = f"Least loss: *{NAMES[first]}*. "
    words += f"Others lose more: {', '.join(more)}. " if more else ""
    words += f"Not told apart from it: {', '.join(alike)}." if alike else ""
    few = min(map(len, ways.values()))
    return words.strip() + (" Of a single seed, so that intervals are over documents alone." if few < 2 else "")


def choices(ways: dict[str, list[dict[str, Any]]]) -> str:
    """What single choices cost."""
    rows = []
    for one, other, words in COMPARED:
        if one in ways and other in ways:
            found = between(ways[one], ways[other])
            rows.append([words, NAMES[one], NAMES[other], str(found), "" if found.sure else "not told apart"])
    return "What single choices cost at the same compute:\n\n" + table(["choice", "of", "against", "costs", ""], rows)


def trials(plan: Plan, start: str) -> str:
    """Losses on held-out rows of the fit's text, by learning rate."""
    known = {}
    for name in plan.ways_of(start):
        file = plan.whole().file(f"rates-{start}-{name}")
        if file.exists():
            known[name] = json.loads(file.read_text())
    rates = sorted({float(rate) for each in known.values() for rate in each})
    rows = [[NAMES[name], *(shown(each, rate) for rate in rates)] for name, each in known.items()]
    begin = "Losses on the held-out rows of the fit's text, by the learning rate, from which it was chosen:\n\n"
    return begin + table(["way", *(f"{rate:g}" for rate in rates)], rows)


def shown(losses: dict[str, float | None], rate: float) -> str:
    """A loss; the least of its way in bold."""
    if str(rate) not in losses:
        return ""
    loss = losses[str(rate)]
    if loss is None:
        return "not finite"
    return f"**{loss:.4f}**" if loss == min(each for each in losses.values() if each is not None) else f"{loss:.4f}"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
