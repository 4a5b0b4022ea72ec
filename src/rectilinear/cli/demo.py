"""``rectilinear demo``."""

from __future__ import annotations

from rectilinear.cli import options
from rectilinear.cli.console import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, parse_batch_size
from rectilinear.staging import staged


def demo(
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DType = DTypeName.auto,
    batch_size: options.BatchSize = "auto",
) -> None:
    """Profile the built-in decoder on generated stories and say in plain words what the numbers mean.

    Offline, in under two minutes.

    Example: rectilinear demo
    """
    check_out(out, overwrite)
    rows_at_once = parse_batch_size(batch_size)

    import rectilinear
    from rectilinear.models.load import STORYTELLER
    from rectilinear.report.explain import explain_profile
    from rectilinear.report.tables import print_profile
    from rectilinear.report.write import write_profile

    console = stdout()
    with progress() as report:
        profile = rectilinear.measure(
            STORYTELLER,
            "stories",
            seed=seed,
            device=device,
            dtype=dtype.value,
            batch_size=rows_at_once,
            progress=report,
        )
    if out:
        with staged(out) as folder:
            write_profile(profile, folder)
    print_profile(profile, console)
    for paragraph in explain_profile(profile):
        console.print(f"\n{paragraph}", markup=False, highlight=False)
    if out:
        print(f"\nwrote profile.json, profile.png and profile.svg to {out}")
