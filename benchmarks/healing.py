"""Does healing towards the original's hidden states pay, beside fine-tuning and LoRA at the same compute?

A cell is an edited model, a way to train it, a budget and a seed; each is a file of its own in benchmarks/healing, and
one that is there is not made again. Budgets are those of the reference, so many steps of healing towards hidden states
or, where no stand-in is there to heal, of fine-tuning: cells of ``compute`` have as many floating-point operations,
cells of ``tokens`` as many steps. What steps cost is counted once (MODEL-costs-START.json). The learning rate of each
way is chosen by the loss on rows of the fit's text that nothing is trained on, with a seed of its own
(MODEL-rates-START-WAY.json). Each cell is scored once, on another text, on the same rows as benchmarks/bounded.py,
which has the cells of the dense models.

    python benchmarks/healing.py MODELS TEXTS [CELL ...]

MODELS, TEXTS: folders as for benchmarks/bounded.py. Cells are named as their files. About 45 minutes of one core for
stories260K; of SmolLM2-135M, by what its forward passes take, some three hours for each seed, and two for its learning
rates.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from choosing import best, kept
from retraining import Course, Edited, Way, costs, lora_rank, steps_within, train, trained_parameters
from scoring import SMOLLM2, STORIES, Study, make_cells, score

from rectilinear import Affine, Drop, Filter, Selection
from rectilinear.errors import JobError
from rectilinear.linearization.kinds.base import Kind

COMMAND = "python benchmarks/healing.py MODELS TEXTS"

#: Ways to train, by their names.
WAYS = {
    "states": Way("states"),
    "states-logits": Way("states-logits"),
    "text": Way("text"),
    "logits": Way("logits"),
    "lora": Way("text", lora=True),
    "lora-logits": Way("logits", lora=True),
}

#: Learning rates that can be tried.
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)

#: Of trials of learning rates.
TRIAL_SEED = 0


@dataclass(frozen=True)
class Plan:
    """What is compared on a model.

    Attributes:
        study: the model and the texts.
        starts: kinds and selections that make edited models, by name.
        steps, rows: of the reference; rows of all.
        ways: names of those that are tried at the same compute.
        same_tokens: of these also at the same steps.
        rates: how many of RATES are tried at first, from the third on.
        widened: whether the next one is tried while the best is the first or the last of those tried.
        trial: share of the steps in trials of learning rates.
        seeds: of the cells.
    """

    study: Study
    starts: Mapping[str, tuple[Kind, Selection]]
    steps: int
    rows: int
    ways: Sequence[str]
    same_tokens: Sequence[str]
    rates: int = 3
    widened: bool = True
    trial: float = 1.0
    seeds: Sequence[int] = (1, 2, 3)

    @property
    def first_rates(self) -> Sequence[float]:
        """Learning rates that every way is tried with."""
        return RATES[2 : 2 + self.rates]

    def ways_of(self, start: str) -> list[str]:
        """Those that an edited model can be trained by: without a stand-in there is none to heal."""
        return [name for name in self.ways if self.starts[start][0].trainable or not name.startswith("states")]

    def reference(self, start: str) -> str:
        """The way whose steps are given."""
        return self.ways_of(start)[0]

    def cells(self) -> dict[str, Cell]:
        """Cells by their names."""
        found = {f"{start}-none": Cell(start) for start in self.starts}
        budgets = {"compute": self.ways, "tokens": self.same_tokens}
        for budget, seed, start in product(budgets, self.seeds, self.starts):
            ways = self.ways_of(start)
            for name in ways if budget == "compute" else ways[1:]:
                if name in budgets[budget]:
                    found[f"{start}-{name}-{budget}-{seed}"] = Cell(start, name, budget, seed)
        return found

    def whole(self) -> Study:
        """The study with its cells."""
        return replace(self.study, ways=self.cells(), folder="healing")


@dataclass(frozen=True)
class Cell:
    """An edited model and how it is trained; not at all without a way."""

    start: str
    way: str | None = None
    budget: str = ""
    seed: int = 0


PLANS = [
    Plan(
        STORIES,
        starts={
            "affine": (Affine(), Selection(blocks=[2, 4], merge=True)),
            "filter": (Filter(rank=24), Selection(blocks=[*range(5)], target="attention")),
            "drop": (Drop(), Selection(blocks=[2])),
        },
        steps=120,
        rows=8,
        ways=[*WAYS],
        same_tokens=["states-logits", "text", "logits", "lora"],
    ),
    Plan(
        replace(SMOLLM2, fitted=100_000),
        starts={"affine": (Affine(), Selection(count=6, select="divergence", merge=True))},
        steps=97,
        rows=2,
        ways=["states", "states-logits", "text", "logits", "lora"],
        same_tokens=[],
        widened=False,
        trial=0.25,
    ),
]


def main() -> None:
    """Make the cells that are not there, or those that are named."""
    make_cells([plan.whole() for plan in PLANS], measure, __doc__.splitlines()[0], COMMAND)


def plan_of(model: str) -> Plan:
    """What is compared on a model."""
    return next(plan for plan in PLANS if plan.study.model == model)


@cache
def edited_of(name: str, start: str, model: Path, texts: Path) -> Edited:
    """The edited model that a start of a model's plan is."""
    plan = plan_of(name)
    return Edited.of(plan.study, model, texts, *plan.starts[start])


def measure(study: Study, model: Path, texts: Path, cell: Cell) -> dict[str, Any]:
    """A cell: losses by document, overall and of late positions, and how it was trained."""
    edited = edited_of(study.model, cell.start, model, texts)
    found: dict[str, Any] = {"model": study.model, "seq_len": study.seq_len, "start": cell.start, "way": cell.way}
    found["blocks"] = [index for one in edited.plan.replacements for index in one.blocks]
    if cell.way is None:
        held_out = {"held_out": edited.held_out_loss(edited.model), "dense": edited.held_out_loss(edited.original)}
        return {**found, **held_out, **score(study, model, texts, edited.model)}
    way, plan = WAYS[cell.way], plan_of(study.model)
    cost, steps = costs_of(study, edited, cell.start)[cell.way], steps_of(study, edited, cell)
    course = Course(steps, chosen_rate(study, edited, cell), plan.rows, cell.seed)
    start = time.process_time()
    trained = train(edited, way, course)
    found |= {
        "budget": cell.budget,
        "seed": cell.seed,
        "rate": course.rate,
        "steps": steps,
        "tokens": steps * plan.rows * study.seq_len,
        "operations": cost["once"] + steps * cost["step"],
        "trained": trained_parameters(edited, way),
        "rank": lora_rank(edited) if way.lora else None,
        "held_out": edited.held_out_loss(trained),
        "processor_seconds": time.process_time() - start,
    }
    return {**found, **score(study, model, texts, trained)}


def costs_of(study: Study, edited: Edited, start: str) -> dict[str, dict[str, int]]:
    """What training costs, by way (see `costs`)."""
    plan = plan_of(study.model)

    def count() -> dict[str, dict[str, int]]:
        return {name: costs(edited, WAYS[name], plan.rows) for name in plan.ways_of(start)}

    return kept(study.file(f"costs-{start}"), count)


def steps_of(study: Study, edited: Edited, cell: Cell) -> int:
    """How many steps a cell has: those of the reference, or those that cost as much as these do."""
    plan, known = plan_of(study.model), costs_of(study, edited, cell.start)
    if cell.budget == "tokens" or cell.way is None:
        return plan.steps
    reference = known[plan.reference(cell.start)]
    return steps_within(reference["once"] + plan.steps * reference["step"], known[cell.way])


def chosen_rate(study: Study, edited: Edited, cell: Cell) -> float:
    """The learning rate of least loss on held-out rows, of those tried; each trial is written down when it is done.

    Trials have the steps that cost as much as the reference, or a share of them; cells of both budgets have its choice.
    """
    plan, file = plan_of(study.model), study.file(f"rates-{cell.start}-{cell.way}")
    known: dict[str, float | None] = json.loads(file.read_text()) if file.exists() else {}
    steps = max(1, round(plan.trial * steps_of(study, edited, replace(cell, budget="compute"))))
    tried = [*plan.first_rates]
    while True:
        for rate in tried:
            if str(rate) not in known:
                known[str(rate)] = trial(edited, WAYS[str(cell.way)], Course(steps, rate, plan.rows, TRIAL_SEED))
                file.parent.mkdir(exist_ok=True)
                file.write_text(json.dumps(known, indent=1) + "\n")
        chosen = best({rate: float("inf") if known[str(rate)] is None else known[str(rate)] for rate in tried})
        place = RATES.index(chosen)
        beside = RATES[place - 1 : place] if chosen == tried[0] else RATES[place + 1 : place + 2]
        if not plan.widened or chosen not in (tried[0], tried[-1]) or not beside:
            return chosen
        tried = sorted({*tried, *beside})


def trial(edited: Edited, way: Way, course: Course) -> float | None:
    """The loss on held-out rows of the fit's text after training; None where that was not finite."""
    try:
        return edited.held_out_loss(train(edited, way, course))
    except JobError:
        return None


if __name__ == "__main__":
    main()
