"""Which training-free way to replace blocks or attentions of a decoder costs least, of those that are published?

A cell is a published method, or one of ours, at a number of blocks or attentions. Each is a file of its own in
benchmarks/rivals, and one that is there is not made again. All choices and fits are made on one text; each cell is
scored once, on another, on the same rows as benchmarks/bounded.py, which has the cells of the dense models. What is
chosen by is measured once for all cells of a model (MODEL-survey.json, MODEL-trials.json).

    python benchmarks/rivals.py MODELS TEXTS [CELL ...]

MODELS, TEXTS: folders as for benchmarks/bounded.py. Cells are named as their files. Those of kvpress are left out
where it is not installed (see benchmarks/pressing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from attention_recipes import llm_drop, llm_drop_affine, nbl, nbl_sequential, tova
from choosing import Choosing
from editing import Made
from recipes import best_span, cuts, ghosted, linearpatch, mixed, replaceme, shortgpt, sleb, uidl
from scoring import SMOLLM2, STORIES, Study, make_cells, score

from rectilinear import Affine, Drop, Filter, Folded
from rectilinear.linearization.kinds.base import Kind

COMMAND = "python benchmarks/rivals.py MODELS TEXTS"
Recipe = Callable[[Choosing], Made]


@dataclass(frozen=True)
class Plan:
    """What is compared on a model.

    Attributes:
        study: the model and the texts.
        trial_tokens: how many tokens losses of trials are measured on.
        blocks, attentions: how many of them are replaced.
        spans: how many spans are fitted where the best is sought, those of least cosine distance; None for all.
        rank: of a filter that has about as many parameters as an affine map.
        kept: tokens that kvpress keeps, about the caches of bounded attention.
        search: kinds of mixed plans, and how they are chosen.
    """

    study: Study
    trial_tokens: int
    blocks: Sequence[int]
    attentions: Sequence[int]
    spans: int | None
    rank: int
    kept: Sequence[int]
    search: Mapping[str, Any] = field(default_factory=dict)

    def whole(self) -> Study:
        """The study with its cells."""
        return replace(self.study, ways=self.ways(), folder="rivals")

    def ways(self) -> dict[str, Recipe]:
        """Recipes by the names of their cells."""
        found: dict[str, Recipe] = {}
        small = Filter(rank=self.rank)
        for count in self.blocks:
            recipes = {
                "shortgpt": shortgpt,
                "sleb": partial(sleb, ends=False),
                "sleb-ends": partial(sleb, ends=True),
                "uidl": uidl,
                "linearpatch": linearpatch,
                "ghosted": ghosted,
                "replaceme": replaceme,
                "mixed": partial(mixed, **self.search),
                "cuts-affine": partial(cuts, kind=Affine()),
                "cuts-folded": partial(cuts, kind=Folded()),
                "cuts-folded-bias": partial(cuts, kind=Folded(bias=True)),
                "cuts-filter-small": partial(cuts, kind=small),
                **{f"span-{name}": partial(best_span, kind=kind, most=self.spans) for name, kind in SPANS.items()},
                "span-filter-small": partial(best_span, kind=small, most=self.spans),
            }
            found |= {f"{name}-{count}": partial(recipe, count=count) for name, recipe in recipes.items()}
        for count in self.attentions:
            of_attentions = {
                "llmdrop": llm_drop,
                "nbl": nbl,
                "nbl-sequential": nbl_sequential,
                "llmdrop-affine": llm_drop_affine,
            }
            found |= {f"{name}-{count}-attentions": partial(one, count=count) for name, one in of_attentions.items()}
        return found | {f"kvpress-tova-{tokens}": partial(tova, tokens=tokens) for tokens in self.kept}


#: Kinds that spans are searched for.
SPANS: dict[str, Kind] = {
    "drop": Drop(),
    "folded": Folded(),
    "folded-bias": Folded(bias=True),
    "affine": Affine(),
    "filter": Filter(),
}

PLANS = [
    Plan(
        STORIES,
        trial_tokens=32_768,
        blocks=(1, 2),
        attentions=(2, 5),
        spans=None,
        rank=8,
        kept=(10, 18),
        search={"choices": "affine,folded,drop", "span": 2, "trials": 6, "rounds": 2, "swaps": 10},
    ),
    Plan(
        SMOLLM2,
        trial_tokens=4_096,
        blocks=(6,),
        attentions=(15,),
        spans=6,
        rank=72,
        kept=(26, 43, 72),
        search={"choices": "affine", "span": 6, "trials": 3},
    ),
]
STUDIES = [plan.whole() for plan in PLANS]
TRIAL_TOKENS = {plan.study.model: plan.trial_tokens for plan in PLANS}


def main() -> None:
    """Make the cells that are not there, or those that are named."""
    studies = STUDIES if find_spec("kvpress") else [replace(study, ways=without_kvpress(study)) for study in STUDIES]
    make_cells(studies, measure, __doc__.splitlines()[0], COMMAND)


def without_kvpress(study: Study) -> dict[str, Recipe]:
    """The cells of a study that can be made, or are there, where kvpress is not installed."""
    return {name: way for name, way in study.ways.items() if "kvpress" not in name or study.file(name).exists()}


def measure(study: Study, model: Path, texts: Path, recipe: Recipe) -> dict[str, Any]:
    """A cell: losses by document, overall and of late positions, what was chosen and how long that took."""
    made = recipe(Choosing(study, model, texts, TRIAL_TOKENS[study.model]))
    found = {"model": study.model, "seq_len": study.seq_len, "blocks": made.blocks, "scores": made.scores}
    found |= {"where": made.where} if made.where else {}
    seconds = {f"{what}_seconds": value for what, value in made.seconds.items()}
    return {**found, **seconds, **score(study, model, texts, made.model, made.how)}


if __name__ == "__main__":
    main()
