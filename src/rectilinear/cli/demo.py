"""``rectilinear demo``."""

from __future__ import annotations

from typing import Annotated, Any

from cyclopts import Parameter

from rectilinear.cli.panels import RUNTIME, RuntimeOptions
from rectilinear.models.settings import Loading, Placement
from rectilinear.runs import Runtime, claim, stage
from rectilinear.text.settings import Rows, Seeded

_BEGINNING_WORDS, _NEW_TOKENS, _TOKENS = 24, 100, 50_000


def demo(
    *,
    seeded: Annotated[Seeded, Parameter("*", group=RUNTIME)] = Seeded(),
    placement: Annotated[Placement, Parameter("*", group=RUNTIME)] = Placement(),
    runtime: RuntimeOptions = Runtime(),
) -> None:
    """Take the built-in decoder through all of it and say in plain words what the numbers mean.

    Its profile on generated stories, how that came about over its training, half of its attentions replaced by causal
    linear filters, what that cost and saved, and a story told by both. Offline, in under two minutes. With --out also
    writes the profile, the dynamics, the evaluation, and the linearized checkpoint in a folder of its own.

    Example: rectilinear demo
    """
    with claim(runtime.out, overwrite=runtime.overwrite) as out:
        import rectilinear
        from rectilinear.evaluation.settings import Evaluating
        from rectilinear.models.completion import complete
        from rectilinear.models.load import STORYTELLER, load_model, resolve
        from rectilinear.progress import reporting
        from rectilinear.report.explain import explain_dynamics, explain_linearization, explain_profile
        from rectilinear.report.terminal import show, stdout
        from rectilinear.report.write import write_result

        console, seed, loading = stdout(), seeded.seed, Loading(**placement.model_dump())
        with reporting(True) as report:
            profile = rectilinear.measure(
                STORYTELLER,
                "stories",
                rows=Rows(seed=seed),
                loading=loading,
                batch_size=runtime.batch_size,
                progress=report,
            )
            dynamics = rectilinear.Dynamics.load(resolve(STORYTELLER))
            # Half of the built-in decoder's attentions, by filters that are smaller than they are.
            linearized = rectilinear.linearize(
                STORYTELLER,
                "stories",
                rectilinear.Filter(rank=24),
                rectilinear.Selection(target="attention", count=4),
                rows=rectilinear.CalibrationRows(max_tokens=_TOKENS, seed=seed),
                loading=loading,
                batch_size=runtime.batch_size,
                progress=report,
            )
            tokenizer = linearized.tokenizer
            linearized.model.name_or_path = f"{STORYTELLER}, linearized"
            evaluation = rectilinear.evaluate(
                linearized.model,
                "stories",
                Evaluating(batch_size=runtime.batch_size),
                against=STORYTELLER,
                rows=Rows(max_tokens=_TOKENS, seed=seed + 1),
                loading=loading,
                tokenizer=tokenizer,
                progress=report,
            )
            beginning = " ".join(next(rectilinear.generate_stories(seed + 1)).split()[:_BEGINNING_WORDS])
            models = (load_model(STORYTELLER, **placement.model_dump(), head=True), linearized.model)
            stories = [complete(model, tokenizer, [beginning], max_new_tokens=_NEW_TOKENS)[0] for model in models]
        if out:
            with stage(out) as folder:
                for result in (profile, dynamics, evaluation):
                    write_result(result, folder)
                linearized.save(folder / "linearized")
        explained = (
            (profile, explain_profile(profile)),
            (dynamics, explain_dynamics(dynamics)),
            (evaluation, explain_linearization(linearized.plan, evaluation)),
        )
        for result, paragraphs in explained:
            show(result, console)
            _say(console, paragraphs)
            console.print()
        told = [f"The original goes on:{stories[0]}", f"The linearized one goes on:{stories[1]}"]
        _say(console, [f"A story that begins: {beginning}", *told])
        if out:
            print(f"\nwrote profile, dynamics and evaluation, and the folder linearized, to {out}")


def _say(console: Any, paragraphs: list[str]) -> None:
    for paragraph in paragraphs:
        console.print(f"\n{paragraph}", markup=False, highlight=False)
