"""``rectilinear demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rectilinear.cli.panels import RuntimeOptions
from rectilinear.models.settings import Loading, Placement
from rectilinear.publish import stage
from rectilinear.runs import Runtime, claim
from rectilinear.settings import BatchSize
from rectilinear.text.settings import Rows, Seeded

if TYPE_CHECKING:
    from rich.console import Console

    from rectilinear.linearization.linearize import Linearized

_BEGINNING_WORDS, _NEW_TOKENS, _TOKENS = 24, 100, 50_000


def demo(
    *,
    seeded: RuntimeOptions[Seeded] = Seeded(),
    placement: RuntimeOptions[Placement] = Placement(),
    runtime: RuntimeOptions[Runtime] = Runtime(),
) -> None:
    """Take the built-in decoder through all of it and say in plain words what the numbers mean.

    Its profile on generated stories, how that came about over its training, half of its attentions replaced by causal
    linear filters, what that cost and saved, and a story told by both. Offline, in under two minutes. With --out also
    writes a page of it all, report.html, the results that it shows, and the linearized checkpoint in a folder of its
    own.

    Example: rectilinear demo
    """
    with claim(runtime.out, overwrite=runtime.overwrite) as out:
        from rectilinear.progress import reporting
        from rectilinear.report.page import make_report
        from rectilinear.report.terminal import say, show, stdout
        from rectilinear.report.write import write_result

        with reporting(True) as report:
            common = {"loading": Loading(**placement.model_dump()), "progress": report}
            profile, dynamics, linearized, evaluation = _results(seeded.seed, runtime.batch_size, common)
            beginning, stories = _stories(seeded.seed, placement, linearized)
        if out:
            with stage(out) as folder:
                for result in (profile, dynamics, evaluation):
                    write_result(result, folder)
                linearized.save(folder / "linearized")
                make_report(profile, dynamics, linearized.plan, evaluation).write(folder)
        console = stdout()
        for result, also in ((profile, ()), (dynamics, ()), (evaluation, linearized.plan.words())):
            show(result, console)
            _say(console, *also, *result.words())
            console.print()
        _say(console, f"A story that begins: {beginning}", f"The original goes on:{stories[0]}")
        _say(console, f"The linearized one goes on:{stories[1]}")
        if out:
            say(f"\nwrote results, figures, and the folder linearized, to {out}; open {out / 'report.html'}")


def _results(seed: int, batch_size: BatchSize, common: dict[str, Any]) -> tuple[Any, ...]:
    """The profile and the dynamics of the built-in decoder, what is left of it, and what that cost."""
    import rectilinear
    from rectilinear.models.load import STORYTELLER, resolve

    profile = rectilinear.measure(STORYTELLER, "stories", rows=Rows(seed=seed), batch_size=batch_size, **common)
    # Half of the attentions, by filters that are smaller than they are.
    linearized = rectilinear.linearize(
        STORYTELLER,
        "stories",
        rectilinear.Filter(rank=24),
        rectilinear.Selection(target="attention", count=4),
        rows=rectilinear.CalibrationRows(max_tokens=_TOKENS, seed=seed),
        batch_size=batch_size,
        **common,
    )
    linearized.model.name_or_path = f"{STORYTELLER}, linearized"
    evaluation = rectilinear.evaluate(
        linearized.model,
        "stories",
        rectilinear.Evaluating(batch_size=batch_size),
        against=STORYTELLER,
        rows=Rows(max_tokens=_TOKENS, seed=seed + 1),
        tokenizer=linearized.tokenizer,
        **common,
    )
    return profile, rectilinear.Dynamics.load(resolve(STORYTELLER)), linearized, evaluation


def _stories(seed: int, placement: Placement, linearized: Linearized) -> tuple[str, list[str]]:
    """The beginning of a story that was not fitted on, and how the original and the linearized decoder go on."""
    import rectilinear
    from rectilinear.models.completion import complete
    from rectilinear.models.load import STORYTELLER, load_model

    beginning = " ".join(next(rectilinear.generate_stories(seed + 1)).split()[:_BEGINNING_WORDS])
    models = (load_model(STORYTELLER, Loading(**placement.model_dump()), head=True), linearized.model)
    tokenizer = linearized.tokenizer
    return beginning, [complete(model, tokenizer, [beginning], max_new_tokens=_NEW_TOKENS)[0] for model in models]


def _say(console: Console, *paragraphs: str) -> None:
    for paragraph in paragraphs:
        console.print(f"\n{paragraph}", markup=False, highlight=False)
