"""Does a mixed plan under a budget lose less than the best plan of a single kind that is chosen greedily?

A cell is a budget and a way to meet it: one kind for one target, blocks chosen greedily by the loss or the divergence,
or several kinds, chosen by an integer program over what each replacement costs alone. Each is a file of its own in
benchmarks/mixed, and one that is there is not made again. All choices and fits are made on one text; each cell is
scored once, on another, on the same rows as benchmarks/bounded.py, which has the cells of the dense models.

    python benchmarks/mixed.py MODELS TEXTS [CELL ...]

MODELS, TEXTS: folders as for benchmarks/bounded.py. Cells are named as their files.
"""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from scoring import SMOLLM2, STORIES, Study, linearized, make_cells, score

from rectilinear import Selection
from rectilinear.linearization.kinds import parse_kinds

COMMAND = "python benchmarks/mixed.py MODELS TEXTS"


@dataclass(frozen=True)
class Way:
    """How a budget is met.

    Attributes:
        budget: as ``--budget`` has it.
        kinds: one, or several as ``--choices`` has them.
        target: what is replaced; None for whatever a kind can take the place of.
        select: what a single kind's blocks are chosen by, greedily; None for the integer program.
        span: most consecutive blocks that one stand-in takes the place of.
        trials, rounds, swaps: of the search around the integer program.
        tokens: after which a budget counts the cache.
    """

    budget: str
    kinds: str
    target: str | None = None
    select: str | None = None
    span: int = 1
    trials: int = 1
    rounds: int = 1
    swaps: int = 0
    tokens: int | None = None

    def selection(self) -> tuple[Any, Selection]:
        """Kind and selection."""
        options: dict[str, Any] = {"budget": self.budget}
        options |= {} if self.target is None else {"target": self.target}
        options |= {} if self.tokens is None else {"budget_tokens": self.tokens}
        if self.select:
            (kind,) = parse_kinds(self.kinds)
            return kind, Selection(select=self.select, **options)
        search = {"trials": self.trials, "rounds": self.rounds, "swaps": self.swaps}
        search |= {} if self.span == 1 else {"span": self.span}
        return None, Selection(choices=self.kinds, **search, **options)


#: Kinds that whole models can be made smaller by alone, and their targets; filters of all blocks save a third.
SMALL = [("drop", "block"), ("folded", "block"), ("affine", "block"), ("affine", "mlp"), ("drop", "mlp")]
SINGLE = [*SMALL, ("filter", "block")]


def of_parameters(
    share: int, select: str | None, single: list[tuple[str, str]], mixed: dict[str, Way]
) -> dict[str, Way]:
    """Ways to keep so many per cent of the parameters."""
    budget = f"parameters={share}%"
    greedy = {f"{kind}-{target}": Way(budget, kind, target, select) for kind, target in single}
    every = greedy | {name: replace(way, budget=budget) for name, way in mixed.items()}
    return {f"parameters-{share}-{name}": way for name, way in every.items()}


def of_cache(share: int, windows: list[int], tokens: int) -> dict[str, Way]:
    """Ways to keep so many per cent of the cache after a row."""
    budget, bounded = f"cache={share}%", [f"bounded:window={window}:sinks=0:centroids=2" for window in windows]
    every = {f"bounded-{window}": Way(budget, kind) for window, kind in zip(windows, bounded, strict=True)}
    every["drop-attention"] = Way(budget, "drop")
    every["mixed"] = Way(budget, ",".join([*bounded, "affine", "drop"]))
    every["mixed-searched"] = replace(every["mixed"], trials=4, rounds=2)
    return {f"cache-{share}-{name}": replace(way, target="attention", tokens=tokens) for name, way in every.items()}


SHORT = [("drop", "block"), ("affine", "block"), ("affine", "mlp"), ("drop", "mlp")]
#: Kinds that make a model smaller, and some that mix tokens as well.
MIXED = {
    "mixed": Way("", "drop,affine"),
    "mixed-tried": Way("", "drop,affine", trials=4),
    "mixed-searched": Way("", "drop,affine", trials=6, rounds=2, swaps=10),
}
FILTERS = Way("", "drop,affine,filter:rank=8,filter:rank=16", trials=6, rounds=2, swaps=10)
#: Runs of blocks as well; one kind for blocks alone is no mixed plan.
RUNS = {"affine-runs": Way("", "affine", "block", span=6), "mixed-runs": Way("", "affine", span=6)}
STUDIES = [
    replace(
        STORIES,
        folder="mixed",
        ways={
            **of_parameters(90, "loss", SINGLE, MIXED),
            **of_parameters(85, "loss", SINGLE, MIXED),
            **of_parameters(80, "loss", SINGLE, {**MIXED, "mixed-filters": FILTERS}),
            **of_parameters(75, "loss", SINGLE, MIXED),
            **of_parameters(70, "loss", SINGLE, MIXED),
            **of_parameters(65, "loss", SMALL, MIXED),
            **of_parameters(60, "loss", SMALL, MIXED),
            **of_cache(10, [4, 8, 16], STORIES.seq_len),
        },
    ),
    replace(
        SMOLLM2,
        folder="mixed",
        ways=of_parameters(80, None, SHORT, {"mixed": MIXED["mixed"], **RUNS}),
    ),
]


def main() -> None:
    """Make the cells that are not there, or those that are named."""
    make_cells(STUDIES, measure, __doc__.splitlines()[0], COMMAND)


def measure(study: Study, model: Path, texts: Path, way: Way) -> dict[str, Any]:
    """A cell: losses by document, overall and of late positions, what was chosen and how long that took."""
    start = time.perf_counter()
    kind, selection = way.selection()
    made = linearized(study, model, texts, kind, selection)
    chosen = made.plan.selection
    assert chosen is not None
    found = {
        "model": study.model,
        "way": asdict(way),
        "seq_len": study.seq_len,
        "replacements": [
            {"by": str(one.by), "target": one.target, "blocks": one.where} for one in made.plan.replacements
        ],
        "parameters_share": made.plan.parameters and made.plan.parameters.after / made.plan.parameters.before,
        "held_out": {"before": chosen.loss_before, "after": chosen.loss_after, "trials": [*chosen.losses]},
        "fit_seconds": time.perf_counter() - start,
    }
    return {**found, **score(study, model, texts, made.model)}


if __name__ == "__main__":
    main()
