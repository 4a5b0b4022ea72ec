"""Write docs/mixed.md: what mixed plans lose beside plans of a single kind, from the cells in benchmarks/mixed.

python benchmarks/mixed_page.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mixed import COMMAND, STUDIES
from page import table
from scoring import Study, about_rows, cache_share, difference, loss_of

from rectilinear.linearization.replacement import in_words

PAGE = Path(__file__).parent.parent / "docs" / "mixed.md"

BEGIN = f"""# Mixed plans under a budget

What is lost where a model has to become smaller, or its cache: by plans of a single kind whose blocks are chosen greedily (or by the same program, where that is said), and by plans of several kinds that an integer program puts together from what each replacement costs alone
(`--choices`, [linearization.md](linearization.md#several-kinds-under-a-budget)). No training. `{COMMAND}`; all choices and fits are made on one text, and each row of a table is scored once on another. Losses are in nats a token above the
dense model's; ± is half of a 95 % interval over documents of the paired difference (Student's t); *late* is the second half of each row. *Parameters* and *cache* are what is left of the model's and of what a row leaves in the cache.
Greedy plans end with the replacement that meets the budget, and so may save more than they have to; *least divergence* is the program's choice for one kind, which is that of the smallest divergences where all replacements save the same. *Trials*, *rounds* and *swaps* are options of the search, which takes the
fitted choice with the least loss on held-out rows of the fit's text. Costs are divergences on such rows, too, but for *drop, affine* on SmolLM2 and for budgets of the cache, which were chosen when they were still measured on rows that are fitted on, and may come out a little differently now.
"""


def page() -> str:
    """The text."""
    return "\n".join([BEGIN, *(about(study) for study in STUDIES if study.cells())])


def about(study: Study) -> str:
    """The cells of a model that are there, by budget."""
    dense, cells = study.dense, study.cells()
    parts = [f"\n## {study.model}\n\n{about_rows(study)}\n"]
    for budget in dict.fromkeys(cell["way"]["budget"] for cell in cells.values()):
        of_it = {name: cell for name, cell in cells.items() if cell["way"]["budget"] == budget}
        parts.append(f"### {budget}\n\n{rows_of(of_it, study)}\n\n{verdict(of_it, dense)}")
    if missing := [name for name in study.ways if name not in cells]:
        parts.append(f"Cells that are not made yet, so that plans of these are not compared: {', '.join(missing)}.\n")
    return "\n".join(parts)


def rows_of(cells: dict[str, dict[str, Any]], study: Study) -> str:
    """A table of what some cells lose, the least first."""
    rows, dense = [], study.dense
    for cell in sorted(cells.values(), key=lambda cell: difference(cell, dense, "all")[0]):
        rows.append(
            [
                named(cell["way"]),
                in_words((f"{one['target']} {one['by']}", one["blocks"]) for one in cell["replacements"]),
                f"{cell['parameters'] / dense['parameters']:.1%}",
                cache_share(cell, study),
                *(loss_of(cell, dense, name) for name in ("all", "late")),
            ]
        )
    return table(["plan", "replaced", "parameters", "cache", "loss", "late"], rows)


def is_mixed(way: dict[str, Any]) -> bool:
    """Whether there are several kinds, or one for several targets."""
    return "," in way["kinds"] or way["target"] is None


def named(way: dict[str, Any]) -> str:
    """A way to meet a budget."""
    if way["select"]:
        return f"{way['kinds']} for the {way['target']}, greedily by {way['select']}"
    kinds = way["kinds"].replace(",", ", ")
    span = way.get("span", 1)
    runs = f" and runs of up to {span} blocks" if span > 1 else ""
    if is_mixed(way):
        chosen = f"*mixed*: {kinds}{f' for attentions, MLPs, blocks{runs}' if runs else ''}"
    else:
        chosen = f"{kinds} for the {way['target']}{runs}, least divergence"
    search = [
        f"{way[name]} {name}"
        for name, usual in (("trials", 1), ("rounds", 1), ("swaps", 0))
        if way.get(name, usual) > usual
    ]
    return ", ".join([chosen, *search])


def verdict(cells: dict[str, dict[str, Any]], dense: dict[str, Any]) -> str:
    """How much of what the best single kind loses a mixed plan does not."""
    mixed = {name: cell for name, cell in cells.items() if is_mixed(cell["way"])}
    single = [cell for name, cell in cells.items() if name not in mixed]
    if not mixed or not single:
        return ""
    best = min(single, key=lambda cell: difference(cell, dense, "all")[0])
    lines = []
    for cell in mixed.values():
        share = -difference(cell, best, "all")[0] / difference(best, dense, "all")[0]
        beside = f"the best plan of a single kind ({named(best['way'])})"
        if cell["sums"] == best["sums"]:
            lines.append(f"- {named(cell['way'])}: the same as {beside}.")
        else:
            recovered = f"{share:.0%} of what that loses is recovered" if share > 0 else "which loses less"
            lines.append(f"- {named(cell['way'])}: {loss_of(cell, best, 'all')} beside {beside}; {recovered}.")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
