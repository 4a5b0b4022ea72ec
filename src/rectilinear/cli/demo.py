"""``rectilinear demo``."""

from __future__ import annotations

from rectilinear.cli import options
from rectilinear.cli.console import check_out, progress, staged, stdout


def demo(out: options.Out = None, overwrite: options.Overwrite = False, seed: options.Seed = 0) -> None:
    """Profile the built-in decoder on generated stories and say in plain words what the numbers mean.

    Offline, in under two minutes.

    Example: rectilinear demo
    """
    check_out(out, overwrite)

    import rectilinear
    from rectilinear.models.load import STORYTELLER
    from rectilinear.report.explain import explain_profile
    from rectilinear.report.plots import save_profile_figure
    from rectilinear.report.tables import print_profile

    console = stdout()
    with progress() as report:
        profile = rectilinear.measure(STORYTELLER, "stories", seed=seed, device="cpu", progress=report)
    print_profile(profile, console)
    for paragraph in explain_profile(profile):
        console.print(f"\n{paragraph}", markup=False, highlight=False)
    if out:
        with staged(out) as folder:
            profile.save(folder)
            save_profile_figure(profile, folder)
        console.print(f"\nwrote profile.json, profile.png and profile.svg to {out}", markup=False, highlight=False)
