"""``rectilinear demo``."""

from __future__ import annotations

from typing import Any

from rectilinear.cli import options
from rectilinear.cli.legacy import check_out, progress, stdout
from rectilinear.cli.options import DTypeName, parse_batch_size
from rectilinear.models.settings import Loading
from rectilinear.runs import stage
from rectilinear.text.settings import Rows

_BEGINNING_WORDS, _NEW_TOKENS = 24, 100


def demo(
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DType = DTypeName.auto,
    batch_size: options.BatchSize = "auto",
) -> None:
    """Take the built-in decoder through all of it and say in plain words what the numbers mean.

    Its profile on generated stories, how that came about over its training, half of its attentions replaced by causal
    linear filters, what that cost and saved, and a story told by both. Offline, in under two minutes. With --out also
    writes the profile, the dynamics, the evaluation, and the linearized checkpoint in a folder of its own.

    Example: rectilinear demo
    """
    check_out(out, overwrite)
    common: dict[str, Any] = {"device": device, "dtype": dtype.value, "batch_size": parse_batch_size(batch_size)}

    import rectilinear
    from rectilinear.models.completion import complete
    from rectilinear.models.load import STORYTELLER, load_model, resolve
    from rectilinear.report.evaluation_table import print_evaluation
    from rectilinear.report.explain import explain_dynamics, explain_linearization, explain_profile
    from rectilinear.report.terminal import show
    from rectilinear.report.write import write_result

    console = stdout()

    def say(paragraphs: list[str]) -> None:
        for paragraph in paragraphs:
            console.print(f"\n{paragraph}", markup=False, highlight=False)

    with progress() as report:
        told = {**common, "progress": report}
        profile = rectilinear.measure(
            STORYTELLER,
            "stories",
            rows=Rows(seed=seed),
            loading=Loading(device=device, dtype=dtype.value),
            batch_size=common["batch_size"],
            progress=report,
        )
        dynamics = rectilinear.Dynamics.load(resolve(STORYTELLER))
        # Half of the built-in decoder's attentions, by filters that are smaller than they are.
        linearized = rectilinear.linearize(
            STORYTELLER,
            "stories",
            rectilinear.Filter(rank=24),
            rectilinear.Selection(target="attention", count=4),
            rows=rectilinear.CalibrationRows(max_tokens=50_000, seed=seed),
            loading=Loading(device=device, dtype=dtype.value),
            batch_size=common["batch_size"],
            progress=report,
        )
        tokenizer = linearized.tokenizer
        linearized.model.name_or_path = f"{STORYTELLER}, linearized"
        other: dict[str, Any] = {"tokenizer": tokenizer, "against": STORYTELLER, "max_tokens": 50_000, "seed": seed + 1}
        evaluation = rectilinear.evaluate(linearized.model, "stories", **other, **told)
        story = next(rectilinear.generate_stories(seed + 1)).split()
        beginning = " ".join(story[:_BEGINNING_WORDS])
        original = load_model(STORYTELLER, device=device, dtype=dtype.value, head=True)
        stories = [
            complete(model, tokenizer, [beginning], max_new_tokens=_NEW_TOKENS)[0]
            for model in (original, linearized.model)
        ]
        if out:
            with stage(out) as folder:
                write_result(profile, folder)
                write_result(dynamics, folder)
                evaluation.save(folder)
                linearized.save(folder / "linearized")
    show(profile, console)
    say(explain_profile(profile))
    console.print()
    show(dynamics, console)
    say(explain_dynamics(dynamics))
    console.print()
    print_evaluation(evaluation, console)
    say(explain_linearization(linearized.plan, evaluation))
    say([f"A story that begins: {beginning}"])
    say([f"The original goes on:{stories[0]}", f"The linearized one goes on:{stories[1]}"])
    if out:
        print(f"\nwrote profile, dynamics and evaluation, and the folder linearized, to {out}")
