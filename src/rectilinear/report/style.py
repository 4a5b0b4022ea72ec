"""What all figures share: colours, style, the line that says what is shown, files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from rectilinear.results import DataRecord

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito's colours, told apart by colour-blind readers and in grey.
BLUE, ORANGE, GREY, GREEN = "#0072B2", "#D55E00", "#666666", "#009E73"

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "rectilinear",
}


def say_what(figure: Figure, model: str, data: DataRecord) -> None:
    """Head a figure with the model and the text."""
    name, source = (Path(text).name or text for text in (model, data.source))
    figure.suptitle(
        f"{name}, {data.tokens:,} tokens of {source}", x=0.01, ha="left", fontsize=9, color=GREY, parse_math=False
    )


def save_figure(figure: Figure, folder: str | Path, name: str) -> None:
    """Write ``NAME.png`` (300 dpi) and ``NAME.svg`` into a folder."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure.savefig(Path(folder) / f"{name}.png", dpi=300)
        figure.savefig(Path(folder) / f"{name}.svg", metadata={"Date": None})
