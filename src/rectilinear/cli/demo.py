"""``rectilinear demo``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

from cyclopts import Parameter

from rectilinear.cli.panels import RUNTIME, BatchSizeOption, OutputOptions
from rectilinear.models.settings import Loading, Placement
from rectilinear.runs import Output, claim, stage
from rectilinear.settings import BatchSize
from rectilinear.text.settings import Rows, Seeded

if TYPE_CHECKING:
    from rectilinear import Dynamics, Evaluation, Linearized, Profile
    from rectilinear.results import ResultFile

_BEGINNING_WORDS, _NEW_TOKENS, _TOKENS = 24, 100, 50_000


def demo(
    *,
    seeded: Annotated[Seeded, Parameter("*", group=RUNTIME)] = Seeded(),
    placement: Annotated[Placement, Parameter("*", group=RUNTIME)] = Placement(),
    batch_size: BatchSizeOption = "auto",
    output: OutputOptions = Output(),
) -> None:
    """Take the built-in decoder through all of it and say in plain words what the numbers mean.

    Its profile on generated stories, how that came about over its training, half of its attentions replaced by causal
    linear filters, what that cost and saved, and a story told by both. Offline, in under two minutes. With --out also
    writes the profile, the dynamics, the evaluation, and the linearized checkpoint in a folder of its own.

    Example: rectilinear demo
    """
    with claim(output.out, overwrite=output.overwrite) as out:
        from rectilinear.report.explain import explain_dynamics, explain_linearization, explain_profile
        from rectilinear.report.terminal import show, stdout
        from rectilinear.report.write import write_result

        shown = _run(seeded.seed, Loading(**placement.model_dump()), batch_size)
        if out:
            with stage(out) as folder:
                for each in (shown.profile, shown.dynamics, shown.evaluation):
                    write_result(each, folder)
                shown.linearized.save(folder / "linearized")
        console = stdout()
        told: list[tuple[ResultFile, list[str]]] = [
            (shown.profile, explain_profile(shown.profile)),
            (shown.dynamics, explain_dynamics(shown.dynamics)),
            (shown.evaluation, explain_linearization(shown.linearized.plan, shown.evaluation) + shown.stories),
        ]
        for result, paragraphs in told:
            show(result, console)
            for paragraph in paragraphs:
                console.print(f"\n{paragraph}", markup=False, highlight=False)
            console.print()
        if out:
            print(f"wrote profile, dynamics and evaluation, and the folder linearized, to {out}")


class _Shown(NamedTuple):
    profile: Profile
    dynamics: Dynamics
    linearized: Linearized
    evaluation: Evaluation
    stories: list[str]


def _run(seed: int, loading: Loading, batch_size: BatchSize) -> _Shown:
    """Everything that there is to show."""
    import rectilinear
    from rectilinear.models.completion import complete
    from rectilinear.models.load import STORYTELLER, load_model, resolve
    from rectilinear.progress import reporting

    with reporting(True) as report:
        common: Any = {"loading": loading, "progress": report}
        profile = rectilinear.measure(STORYTELLER, "stories", rows=Rows(seed=seed), batch_size=batch_size, **common)
        # Half of the built-in decoder's attentions, by filters that are smaller than they are.
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
        beginning = " ".join(next(rectilinear.generate_stories(seed + 1)).split()[:_BEGINNING_WORDS])
        original = load_model(STORYTELLER, device=loading.device, dtype=loading.dtype, head=True)
        first, second = (
            complete(model, linearized.tokenizer, [beginning], max_new_tokens=_NEW_TOKENS)[0]
            for model in (original, linearized.model)
        )
    stories = [f"A story that begins: {beginning}"]
    stories += [f"The original goes on:{first}", f"The linearized one goes on:{second}"]
    return _Shown(profile, rectilinear.Dynamics.load(resolve(STORYTELLER)), linearized, evaluation, stories)
