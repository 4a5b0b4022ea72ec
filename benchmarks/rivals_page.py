"""Write docs/rivals.md: published ways to replace parts of a decoder beside ours, from the cells in benchmarks/rivals.

python benchmarks/rivals_page.py
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bounded import STUDIES as BOUNDED
from page import table
from rivals import COMMAND, PLANS, Plan
from scoring import Study, about_rows, cache_of_replaced, cache_share, difference, interval_of, loss_of

from rectilinear.linearization.kinds import make_kind
from rectilinear.settings import as_ranges

PAGE = Path(__file__).parent.parent / "docs" / "rivals.md"

#: What a cell is, by its name without numbers: who has it, and in words.
METHODS = {
    "shortgpt": "ShortGPT: least influence, removed",
    "sleb": "SLEB: least loss, removed one by one, the ends spared",
    "sleb-ends": "SLEB without sparing the ends",
    "uidl": "UIDL: the span of least angle, removed",
    "linearpatch": "LinearPatch: scaled channels in a Hadamard basis",
    "ghosted": "Ghosted Layers: a matrix",
    "replaceme": "ReplaceMe: a map folded into the projection before",
    "span-drop": "*ours*: the span of least loss, removed",
    "span-folded": "*ours*: the span of least loss, folded",
    "span-folded-bias": "*ours*: the span of least loss, folded, with a bias",
    "span-affine": "*ours*: the span of least loss, affine",
    "span-filter": "*ours*: the span of least loss, filter of full rank",
    "span-filter-small": "*ours*: the span of least loss, filter of the size of a matrix",
    "mixed": "*ours*: a mixed plan",
    "cuts-affine": "*ours*: blocks as of SLEB without sparing the ends, affine for each run",
    "cuts-folded": "*ours*: blocks as of SLEB without sparing the ends, folded for each run",
    "cuts-folded-bias": "*ours*: blocks as of SLEB without sparing the ends, folded for each run, with a bias",
    "cuts-filter-small": "*ours*: blocks as of SLEB without sparing the ends, a filter of the size of a matrix for each run",
    "llmdrop": "LLM-Drop: those that turn the stream least, removed",
    "nbl": "NBL: least CCA bound, affine maps of the stream",
    "nbl-sequential": "*ours*: NBL's choice, affine, fitted in sequence",
    "llmdrop-affine": "*ours*: LLM-Drop's choice, affine, fitted in sequence",
    "kvpress-tova": "TOVA by kvpress, {0} tokens kept after the first half",
}

#: Cells of which each pair differs in what is said: what the first loses more than the second is what that costs.
COMPARED = [
    ("sleb", "sleb-ends", "sparing the ends"),
    ("shortgpt", "sleb-ends", "choosing blocks by influence, not by loss"),
    ("uidl", "span-drop", "choosing a span by angle, not by loss"),
    ("linearpatch", "ghosted", "scaled channels, not a matrix"),
    ("replaceme", "ghosted", "a map of what the MLP before gives, not of the stream"),
    ("ghosted", "span-affine", "a span by cosine, without bias and folds for the ridge, not by loss and with them"),
    ("span-affine", "cuts-affine", "a span, not blocks one by one"),
    ("span-folded", "span-folded-bias", "folding without a bias"),
    ("cuts-folded", "cuts-folded-bias", "folding without a bias, for each run"),
    ("span-filter-small", "span-affine", "a filter of the size of a matrix, not a matrix"),
    ("span-affine", "span-filter", "a matrix, not a filter of full rank"),
    ("nbl", "nbl-sequential", "independent fits of the stream, not fits in sequence of what the norm gives"),
    ("nbl-sequential", "llmdrop-affine", "choosing attentions by CCA, not by cosine"),
    ("llmdrop", "llmdrop-affine", "nothing in their place, not affine maps"),
]

#: Why, as far as it is measured, by model.
WHY = {
    "stories260K": """Why, as far as these figures show it:

- *Which blocks.* For one block all criteria agree. For two, those that look at directions take 2 and 3, and SLEB's rule keeps it from the last block, which is the better second one.
- *What is put there.* At the same span the loss falls with what the map can be: nothing, scaled channels, a map of what the MLP before gives, a matrix of the stream. A filter of full rank, which sees earlier tokens and has seven times a matrix's parameters, loses least at block 0, where a matrix does not; a filter of a matrix's size loses more than the matrix.
- *Which attentions.* CCA takes 2 and 3, the cosine 2 and 4; with the same fit the former choice costs more than affine maps gain over nothing. Fitting in sequence pays with all five replaced, not with two.
- *Memory.* Attentions that keep a window, or a window and a summary of the rest, lose a small part of what those lose that keep nothing.
""",
    "smollm2-135m": """Why, as far as these figures show it:

- *Which blocks.* Directions and measured losses agree on blocks 12 to 17 or so, and removal costs about a nat by either. One at a time, both also take a block near the end (25, 26); the span of least cosine distance is 13 to 18.
- *What is put there* saves more than the choice: a map of the stream in the place of one span loses less than half of what removing as many blocks does by either choice, and one map for the span less than three maps for the three runs that SLEB leaves, though these have more parameters. By cosine and by loss the same span is found, and at that span Ghosted Layers' matrix is a hair before our affine map, which has a bias and a ridge chosen by folds instead: how the matrix is solved for hardly matters there, and what would is something else than a matrix.
- *Under a budget* that counts parameters alone, the integer program takes the same span by itself from 225 replacements of blocks, runs of them and parts (by divergences, without looking at cosines), and pays for the map with an attention near the end.
- *Attentions*: as for stories260K, what keeps a little of its memory loses a hundredth or so of what keeps none.
""",
}

BEGIN = f"""# Rivals

Published ways to replace blocks or attentions of a decoder without training, each as a recipe on the same rows as ours: `{COMMAND}`, and for bounded attention `python benchmarks/bounded.py MODELS TEXTS`.
All choices and fits are made on one text, and each row of a table is scored once on another. Losses are in nats a token above the dense model's; ± is half of a 95 % interval over documents of the paired
difference (Student's t); *late* is the second half of each row. *Parameters* are all that are left; *cache* is what a row leaves in it, of what the dense model does; *choice* and *fit* are seconds on one
thread of a busy machine, the pass that many choices share counted for each. What of a recipe is as published, and what is not, is in its docstring in `benchmarks/recipes.py` and
`benchmarks/attention_recipes.py`: none has its training, all have the same text to choose and fit on, and losses alone are compared, no answers to questions. Blocks are counted from 0. Where only some
attentions are bounded, they are those where that moves predictions least, for StreamingLLM's windows too.
"""


ABOUT_KVPRESS = """
## kvpress

kvpress 0.5.5 asks for transformers below 5.3, this package for 5.23 and above, so that their own rules keep them apart; `benchmarks/pressing.py` says how its presses run all the same. The first half of
a row is the dense model's there, and its cache is compressed when that has been read, where bounded attention is bounded from a row's beginning: the loss over all positions is no comparison, and *late* is in
TOVA's favour.
"""

Cells = dict[str, dict[str, Any]]


def page() -> str:
    """The text."""
    return "\n".join([BEGIN, *(about(plan) for plan in PLANS if plan.whole().cells()), ABOUT_KVPRESS])


def about(plan: Plan) -> str:
    """The tables of a model."""
    study, dense = plan.study, plan.study.dense
    spans = (
        "All spans are tried" if plan.spans is None else f"The {plan.spans} spans of least cosine distance are tried"
    )
    begin = (
        f"\n## {study.model}\n\n{about_rows(study)} It has {dense['parameters']:,} parameters. "
        f"{spans} where the best is sought; losses of SLEB's trials are of {plan.trial_tokens:,} tokens.\n"
    )
    why = f"\n{WHY[study.model]}" if study.model in WHY else ""
    return (
        begin
        + why
        + "".join(
            f"\n### {title}\n\n{table_of(cells, plan.study)}{findings(cells, plan.study)}"
            for title, cells in sections(plan)
            if cells
        )
    )


def sections(plan: Plan) -> Iterator[tuple[str, Cells]]:
    """Titles and cells that belong together, by what METHODS calls them or what they are in words."""
    cells = plan.whole().cells()
    for count in plan.blocks:
        yield f"{count} of {plan.study.depth} blocks", ending(cells, f"-{count}")
    (bounded,) = (each.cells() for each in BOUNDED if each.model == plan.study.model)
    for count in sorted({*plan.attentions, plan.study.depth}):
        found = ending(cells, f"-{count}-attentions")
        for cell in bounded.values():
            options = dict(cell["options"] or {})
            if options and (cell.get("chosen") or {}).get("count", plan.study.depth) == count:
                found[
                    f"*ours*: {make_kind(options.pop('kind'), options)}".replace(
                        "*ours*: bounded, window", words_of(options)
                    )
                ] = cell
        pressed = {
            METHODS["kvpress-tova"].format(name.split("-")[-1]): cell for name, cell in cells.items() if "tova" in name
        }
        yield f"{count} of {plan.study.depth} attentions", found | (pressed if count == plan.study.depth else {})


def words_of(options: Mapping[str, Any]) -> str:
    """Who has bounded attention of some options."""
    return (
        "StreamingLLM: window" if options.get("uniform") and options.get("far") == "none" else "*ours*: bounded, window"
    )


def ending(cells: Cells, end: str) -> Cells:
    """Cells whose names end so, by what comes before."""
    return {name.removesuffix(end): cell for name, cell in cells.items() if re.fullmatch(r"[a-z-]+" + end, name)}


def table_of(cells: Cells, study: Study) -> str:
    """Cells, the least loss of late positions first."""
    rows, dense = [], study.dense
    for name, cell in sorted(cells.items(), key=lambda item: difference(item[1], dense, "late")[0]):
        overall = "" if "TOVA" in name else loss_of(cell, dense, "all")
        spent = (f"{cell[key]:.0f}" if cell.get(key) else "" for key in ("choice_seconds", "fit_seconds"))
        where = cell.get("where") or (as_ranges(cell["blocks"]) if "blocks" in cell else "all")
        rows.append(
            [
                METHODS.get(name, name),
                where or "all",
                overall,
                loss_of(cell, dense, "late"),
                f"{cell['parameters']:,}",
                cache_share(cell, study),
                *spent,
            ]
        )
    return table(["method", "where", "loss", "late", "parameters", "cache", "choice", "fit"], rows) + "\n"


def findings(cells: Cells, study: Study) -> str:
    """Which cells lose least, what is saved at a cache, and what single choices cost."""
    mapped = {name: cell for name, cell in cells.items() if name in METHODS}
    parts = [winners(mapped), caches(cells, study), spans(cells)]
    pairs = [
        [told, METHODS[one], METHODS[other], loss_of(cells[one], cells[other], "all")]
        for one, other, told in COMPARED
        if one in cells and other in cells and cells[one]["sums"] != cells[other]["sums"]
    ]
    if pairs:
        parts.append(
            "What single choices cost, as paired differences of the loss over all positions:\n\n"
            + table(["choice", "of", "against", "costs"], pairs)
        )
    return "".join(f"\n{part}\n" for part in parts if part)


def winners(cells: Cells) -> str:
    """Of cells that add nothing, little or whatever, the best, and the best of the others' or of ours."""
    removed = cells["shortgpt"]["parameters"] if "shortgpt" in cells else 0
    small = [name for name in cells if name != "span-filter"]
    groups = {"Nothing there, or an affine map": small}
    if "shortgpt" in cells:
        groups = {
            "No parameter more than where blocks are removed": [n for n in cells if cells[n]["parameters"] <= removed],
            "At most a matrix for each run of blocks": small,
            "Whatever is put there": [*cells],
        }
    lines = []
    for title, group in groups.items():
        ranked = sorted(group, key=lambda name: sum(cells[name]["sums"]["all"]))
        rest = [name for name in ranked if is_ours(name) != is_ours(ranked[0])]
        if rest:
            more = f"{loss_of(cells[rest[0]], cells[ranked[0]], 'all')}{apart(cells[rest[0]], cells[ranked[0]])}"
            lines.append(
                f"- {title}: least loss with *{plain(ranked[0])}*; of {'published' if is_ours(ranked[0]) else 'our'} ways *{plain(rest[0])}* is the best"
                + (", which is the same model." if cells[rest[0]]["sums"] == cells[ranked[0]]["sums"] else f", {more}.")
            )
    return "\n".join(lines)


def apart(cell: dict[str, Any], other: dict[str, Any]) -> str:
    """What is said of a difference whose interval has zero in it."""
    value, half = interval_of(cell, other, "all")
    return "" if abs(value) > half else ", not told apart"


def caches(cells: Cells, study: Study) -> str:
    """Ours that loses least at late positions with no more cache than each published way to bound it."""
    rows = []
    for name, cell in cells.items():
        mine = [
            (difference(other, cell, "late")[0], each)
            for each, other in cells.items()
            if each.startswith("*ours*: bounded")
            and cache_of_replaced(other, study) <= cache_of_replaced(cell, study) * 1.02
        ]
        if mine and name.startswith(("TOVA", "StreamingLLM")):
            least = min(mine)[1]
            sizes = [f"{cache_of_replaced(each, study):,}" for each in (cell, cells[least])]
            rows.append([name, sizes[0], least, sizes[1], loss_of(cell, cells[least], "late")])
    if not rows:
        return ""
    begin = "With at most as many numbers a layer of the cache (2 % more at most), and what the published way loses more at late positions:\n\n"
    return begin + table(["published", "numbers a layer", "ours", "numbers a layer", "loses more"], rows)


def spans(cells: Cells) -> str:
    """Losses of spans on rows of the fit's text that were not fitted on, by their first block."""
    searched = {name: cells[name]["scores"] for name in cells if name.startswith("span-")}
    firsts = sorted({int(first) for scores in searched.values() for first in scores})
    if not firsts:
        return ""
    rows = [
        [
            plain(name).split(", ", 1)[1],
            *(f"{scores[str(first)]:.3f}" if str(first) in scores else "" for first in firsts),
        ]
        for name, scores in searched.items()
    ]
    begin = "Losses of the spans that were tried, by their first block, on the held-out rows of the fit's text:\n\n"
    return begin + table(["what is put there", *map(str, firsts)], rows)


def is_ours(name: str) -> bool:
    """Whether a cell is none that others published."""
    return METHODS[name].startswith("*ours*")


def plain(name: str) -> str:
    """What METHODS says, without who says it of ours."""
    return METHODS[name].removeprefix("*ours*: ")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
