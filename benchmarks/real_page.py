"""Write docs/real.md and its figures from the cells of benchmarks/real.

python benchmarks/real_page.py
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from page import table
from real import CELLS, EXPLANATION, LONG, MODELS, NAMES, OWN_BOS, SHORT, TEXTS, Cell, cells

from rectilinear import Explanation, Profile, Report
from rectilinear.measurement.profile import BlockRecord
from rectilinear.measurement.profile_charts import pairs_chart, profile_chart
from rectilinear.report.static import save
from rectilinear.settings import as_ranges

DOCS = Path(__file__).parents[1] / "docs"
#: What is to be known of all of it.
QUANTISED = "the weights were quantised to four bits and dequantised: the original ones give slightly other numbers"
PAGE = DOCS / "smollm2-135m.html"
SHORT_NAMES = {"smollm2-135m": "SmolLM2-135M", "gemma3-270m": "Gemma-3-270M"}
TEXT_NAMES = {"wikitext": "WikiText", "tinystories": "TinyStories", "chat": "chat"}


def load(cell: Cell) -> Profile | None:
    """A cell's profile, where it was made."""
    return Profile.load(cell.file) if cell.file.exists() else None


def number(value: float | None) -> str:
    """A score as the page has it."""
    return "-" if value is None else f"{value:.3f}"


def held_out(block: BlockRecord) -> str:
    """The held-out update linearity without sinks, with its interval."""
    scores = block.without_sinks.update_linearity
    return "-" if scores.held_out is None else f"{scores.held_out:.3f} ± {scores.half_width or 0.0:.3f}"


def sinks(block: BlockRecord) -> str:
    """How many, how many of them first in their row, and their share of the variation of y."""
    without = block.without_sinks
    first = without.sinks_by.first_of_row if without.sinks_by else 0
    return f"{without.sinks:,} ({first:,}), {without.sink_energy or 0.0:.1%}" if without.sinks else "0"


def by_block(profile: Profile) -> str:
    """A line a block."""
    rows = [
        [
            str(block.index),
            number(block.linearity.in_sample),
            number(block.identity),
            sinks(block),
            number(block.without_sinks.linearity.in_sample),
            number(block.without_sinks.identity),
            number(block.without_sinks.update_linearity.in_sample),
            held_out(block),
            number(block.without_sinks.null_shifted),
        ]
        for block in profile.blocks
    ]
    headings = ["block", "linearity", "identity", "sinks (first of a row), share", "linearity without sinks"]
    headings += ["identity without", "update linearity without", "held out, 95 % interval", "shifted null without"]
    return table(headings, rows)


def middle(values: Sequence[float | None]) -> str:
    """Median, and from the least to the most, over blocks."""
    known = [value for value in values if value is not None]
    return f"{statistics.median(known):.3f} ({min(known):.3f} to {max(known):.3f})" if known else "-"


def high(profile: Profile) -> str:
    """How many blocks score .99 or more, as the paper computes it and without sinks."""
    whole = sum((block.linearity.in_sample or 0.0) >= 0.99 for block in profile.blocks)
    without = sum((block.without_sinks.linearity.in_sample or 0.0) >= 0.99 for block in profile.blocks)
    return f"{whole} / {without}"


def summary(name: str, profile: Profile) -> list[str]:
    """A line of the table of what moves a profile."""
    width = profile.model.width or 1
    without = [block.without_sinks for block in profile.blocks]
    return [
        name,
        f"{profile.data.tokens:,} ({profile.data.tokens / width:.0f})",
        high(profile),
        middle([block.linearity.in_sample for block in profile.blocks]),
        middle([part.linearity.in_sample for part in without]),
        middle([part.update_linearity.held_out for part in without]),
        middle([part.update_linearity.adjusted for part in without]),
        middle([part.null_shifted for part in without]),
    ]


SUMMARY = ["", "tokens (a feature)", "blocks at .99, all / without sinks", "linearity", "without sinks"]
SUMMARY += ["update, held out", "update, adjusted", "shifted null"]


def answers(model: str, profile: Profile) -> str:
    """What the long cell on WikiText says, in words."""
    blocks = profile.blocks
    above = [block.index for block in blocks if (block.linearity.in_sample or 0.0) >= 0.99]
    still = [block.index for block in blocks if (block.without_sinks.linearity.in_sample or 0.0) >= 0.99]
    gains = [
        (block.without_sinks.linearity.in_sample or 0.0) - (block.without_sinks.identity or 0.0) for block in blocks
    ]
    margins = [
        (block.without_sinks.update_linearity.in_sample or 0.0) - (block.without_sinks.null_shifted or 0.0)
        for block in blocks
    ]
    return (
        f"**{SHORT_NAMES[model]}.** Over all tokens {len(above)} of {len(blocks)} blocks score .99 or more"
        f"{f' (blocks {as_ranges(above)})' if above else ''}; without sinks {len(still) or 'none'} "
        f"{'does' if len(still) == 1 else 'do'}{f' (blocks {as_ranges(still)})' if still else ''}. Without sinks, the linear map explains "
        f"{middle(gains)} more of the output than doing nothing, and {middle(margins)} more of the update than inputs of "
        "other rows do (median over blocks, least and most)."
    )


def about_parts(cell: Cell, profile: Profile) -> list[list[str]]:
    """Blocks, attentions and MLPs of a model on a text, a line each."""
    lines = []
    for target, blocks in profile.scores.items():
        without = [block.without_sinks for block in blocks]
        lines.append(
            [
                f"{SHORT_NAMES[cell.model]}, {TEXT_NAMES[cell.text]}, {target}",
                middle([part.update_linearity.in_sample for part in without]),
                middle([part.update_linearity.held_out for part in without]),
                middle([part.null_shifted for part in without]),
            ]
        )
    return lines


def changed(cell: Cell) -> str:
    """What a cell is called in a table."""
    if not cell.changes:
        return f"as usual, {TEXTS[cell.text]}"
    said = {"seq_len": "rows of {}", "dtype": "{}", "bos": "BOS by {}", "convention": "the {}'s convention"}
    said["sink_ratio"] = "sinks from {:g} medians"
    return ", ".join(said[name].format(value) for name, value in cell.changes.items())


def page() -> str:
    """The page."""
    made = {cell: profile for cell in cells() if (profile := load(cell))}
    missing = [cell.name for cell in cells() if cell not in made]
    any_one = next(iter(made.values()))
    parts = [
        "# Real decoders",
        "How linear are the blocks of decoders that people use? [SmolLM2-135M-Instruct](https://huggingface.co/HuggingFaceTB/SmolLM2-135M-Instruct) (30 blocks of width 576) and "
        "[Gemma-3-270M](https://huggingface.co/google/gemma-3-270m) (18 of width 640), with weights that were quantised to four bits and dequantised: their "
        "original weights give slightly other numbers. Text: articles of WikiText-2, TinyStories, and questions of BoolQ with their answers as turns of a chat, in the chat template of SmolLM2. As usual: float32, "
        "rows of 512 tokens, SmolLM2 with rows that begin anywhere, Gemma with BOS at the beginning of each row, as it was trained.",
        "`make real MODELS=... TEXTS=...` makes the profiles in `benchmarks/real`, cell by cell, and this page "
        f"(rectilinear {any_one.environment.rectilinear}, torch {any_one.environment.torch}, transformers {any_one.environment.transformers}). "
        "One cell by hand, in float32, is",
        f"    rectilinear measure {NAMES['smollm2-135m']} --text score.txt --max-tokens {LONG} --seq-len 512 --dtype float32 --target block,attention,mlp",
        f"[{PAGE.name}]({PAGE.name}) has profiles, pairs of depths and the maps of two blocks on one page, to open in a browser (`rectilinear report`).",
        "Terms are those of [method.md](method.md): sinks are tokens whose input, output or update is more than ten times as long as that of others; the shifted null is "
        "what inputs of other rows, which have nothing to do with an update, explain of it.",
    ]
    if missing:
        parts.append(f"Not made yet: {', '.join(missing)}.")
    parts.append("## Is .99 seen?")
    parts.append(
        "The paper reports a linearity of .99 and more between neighbouring layers, for decoders of 125 million to 7 billion parameters "
        "([arXiv 2405.12250](https://arxiv.org/abs/2405.12250)), over all tokens, in sample, and .62 for the updates of Llama-2-7B (by its official code, on 15,000 tokens of width 4,096)."
    )
    for model in MODELS:
        if profile := first(model):
            per = profile.data.tokens / (profile.model.width or 1)
            parts += [
                answers(model, profile),
                f"![Linearity of {SHORT_NAMES[model]} by block](real-{model}.png)",
                f"{SHORT_NAMES[model]}, {profile.data.tokens:,} tokens of WikiText ({per:.0f} a feature), in sample but for the held-out column:",
                by_block(profile),
            ]
    parts += [
        "## Attention and MLP apart",
        "What each adds to the residual stream, from what it is given; without sinks, median over blocks (least to most). Of blocks it is the update.",
        table(
            ["", "in sample", "held out", "shifted null"],
            [line for cell, profile in made.items() if longest(cell, made) for line in about_parts(cell, profile)],
        ),
        "## What moves it",
        "Medians over blocks (least to most). The paper's convention takes the last block's output after the final norm, so that it differs in the last block alone.",
    ]
    for model in MODELS:
        rows = [
            summary(changed(cell), profile)
            for cell, profile in made.items()
            if cell.model == model and not {"sink_ratio", "pairs"} & {*cell.changes}
        ]
        if rows:
            parts += [f"{SHORT_NAMES[model]} (BOS by {OWN_BOS[model]} as usual):", table(SUMMARY, rows)]
    parts += [part for model in MODELS if (profile := load(pairs_cell(model))) for part in far(model, profile)]
    rows = []
    for model in MODELS:
        for ratio in (3.0, 10.0, 30.0):
            cell = Cell(model, "wikitext", SHORT, {"sink_ratio": ratio} if ratio != 10.0 else {})
            if cell in made:
                counts = [block.without_sinks.sinks for block in made[cell].blocks]
                shares = [block.without_sinks.sink_energy for block in made[cell].blocks]
                rows.append(
                    [
                        f"{SHORT_NAMES[model]}, {ratio:g}",
                        f"{statistics.median(counts):.0f} ({min(counts):,} to {max(counts):,})",
                        middle(shares),
                        *summary("", made[cell])[2:],
                    ]
                )
    if rows:
        parts += [
            "## What counts as a sink",
            f"`--sink-ratio`: how many times the median norm makes one. {SHORT:,} tokens of WikiText; sinks of a block, and their share of the variation of its output:",
            table(["", "sinks", "share of y", *SUMMARY[2:]], rows),
        ]
    return "\n\n".join(parts) + "\n"


def pairs_cell(model: str) -> Cell:
    """Where all pairs of a model's depths are."""
    return Cell(model, "wikitext", SHORT, {"pairs": True})


def far(model: str, profile: Profile) -> list[str]:
    """What becomes of linearity over several blocks."""
    pairs = profile.pairs
    if pairs is None:
        return []
    *some, (last, [whole]) = pairs.by_length().items()
    rows = [
        [
            f"{steps}",
            middle([one.linearity.adjusted for one in ways]),
            middle([one.identity for one in ways]),
            middle([one.update_linearity.adjusted for one in ways]),
        ]
        for steps, ways in some
    ]
    rows.append(
        [
            f"all {last}",
            number(whole.linearity.adjusted),
            number(whole.identity),
            number(whole.update_linearity.adjusted),
        ]
    )
    return [
        f"## Do linear steps add up? {SHORT_NAMES[model]}",
        "One linear map over several blocks: the later hidden state, what doing nothing explains of it, and the change up to there; adjusted for the number of tokens, "
        f"without sinks, median over where it begins (least to most); {pairs.tokens:,} tokens of WikiText ({pairs.tokens / (profile.model.width or 1):.0f} a feature).",
        table(["blocks", "later state", "identity", "change"], rows),
        f"![Linearity of {SHORT_NAMES[model]} from every depth to every later one](real-{model}-pairs.png)",
    ]


def write_page() -> None:
    """One page of the long profiles, of pairs of depths and of what two blocks' maps do."""
    profiles = [profile for model in MODELS if (profile := load(Cell(model, "wikitext", LONG)))]
    pairs = load(pairs_cell(MODELS[0]))
    if len(profiles) < 2 or pairs is None or not EXPLANATION.exists():
        return
    one, other = profiles
    far_apart = replace(
        pairs.section(), title="From every depth to every later one", words=(), tables=(), charts=pairs.charts()[1:]
    )
    sections = (
        Profile.together(profiles),
        one.section(),
        far_apart,
        Explanation.load(EXPLANATION).section(),
        other.section(),
    )
    told = tuple(replace(section, warnings=(QUANTISED, *section.warnings), command="") for section in sections)
    title = f"{SHORT_NAMES[MODELS[0]]}, and {SHORT_NAMES[MODELS[1]]} beside it"
    report = Report(title, told, len(sections) - 1)
    PAGE.write_text(report.to_html(), encoding="utf-8")
    print(f"wrote {PAGE}")


def longest(cell: Cell, made: dict[Cell, Profile]) -> bool:
    """Whether it is a model's longest cell of a text, measured as usual."""
    same = [other for other in made if (other.model, other.text) == (cell.model, cell.text) and not other.changes]
    return not cell.changes and cell.tokens == max(other.tokens for other in same)


def first(model: str) -> Profile | None:
    """A model on WikiText at length, or on what there is."""
    return load(Cell(model, "wikitext", LONG)) or load(Cell(model, "wikitext"))


def main() -> None:
    """Write the page and its figures."""
    for model in MODELS:
        if profile := first(model):
            save(replace(profile_chart(profile), name=f"real-{model}"), DOCS, ("png",))
        if (profile := load(pairs_cell(model))) and profile.pairs:
            save(replace(pairs_chart(profile, profile.pairs), name=f"real-{model}-pairs"), DOCS, ("png",))
    (DOCS / "real.md").write_text(page(), encoding="utf-8")
    write_page()
    print(f"wrote {DOCS / 'real.md'} from {len([*CELLS.glob('*.json')])} cells")


if __name__ == "__main__":
    main()
