"""``rectilinear measure``."""

from __future__ import annotations

from rectilinear.cli.panels import (
    BatchSizeOption,
    LoadingOptions,
    MeasurementOptions,
    ModelArgument,
    OutputOptions,
    RowsOptions,
    TextOption,
)
from rectilinear.measurement.settings import Measurement
from rectilinear.models.settings import Loading
from rectilinear.runs import Output, claim
from rectilinear.text.settings import Rows


def measure(
    model: ModelArgument,
    /,
    *,
    text: TextOption,
    rows: RowsOptions = Rows(),
    measurement: MeasurementOptions = Measurement(),
    loading: LoadingOptions = Loading(),
    batch_size: BatchSizeOption = "auto",
    output: OutputOptions = Output(),
) -> None:
    """Profile how linear each block of a decoder is on some text.

    Prints a table; with --out also writes profile.json, profile.png and profile.svg.

    Example: rectilinear measure storyteller --text stories --out profile
    """
    with claim(output.out, overwrite=output.overwrite) as folder:
        import rectilinear
        from rectilinear.cli.console import conclude

        profile = rectilinear.measure(model, text, measurement, rows=rows, loading=loading, batch_size=batch_size)
        conclude(profile, folder)
