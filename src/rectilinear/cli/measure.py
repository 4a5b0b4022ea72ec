"""``rectilinear measure``."""

from __future__ import annotations

from rectilinear.cli.panels import ModelArgument, ModelOptions, RuntimeOptions, TextOption, TextOptions, WorkOptions
from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Loading
from rectilinear.runs import Runtime, claim
from rectilinear.text.settings import Rows


def measure(
    model: ModelArgument,
    /,
    *,
    text: TextOption,
    rows: TextOptions[Rows] = Rows(),
    measurement: WorkOptions[Measurement] = Measurement(),
    loading: ModelOptions[Loading] = Loading(),
    runtime: RuntimeOptions[Runtime] = Runtime(),
) -> None:
    """Profile how linear each block of a decoder is on some text.

    Prints a table; with --out also writes profile.json, profile.png and profile.svg, with --pairs pairs.png and
    pairs.svg too.

    Example: rectilinear measure storyteller --text stories --out profile
    """
    with claim(runtime.out, overwrite=runtime.overwrite, reads=[model, text]) as folder:
        import rectilinear
        from rectilinear.cli.conclude import conclude

        profile = rectilinear.measure(
            model, text, measurement, rows=rows, loading=loading, batch_size=runtime.batch_size
        )
        conclude(profile, folder)
