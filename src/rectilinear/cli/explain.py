"""``rectilinear explain``."""

from __future__ import annotations

from rectilinear.cli.panels import ModelArgument, ModelOptions, RuntimeOptions, TextOption, TextOptions, WorkOptions
from rectilinear.measurement.settings import Explaining
from rectilinear.models.settings import Loading
from rectilinear.runs import Runtime, claim
from rectilinear.text.settings import Rows


def explain(
    model: ModelArgument,
    /,
    *,
    text: TextOption,
    explaining: WorkOptions[Explaining],
    rows: TextOptions[Rows] = Rows(),
    loading: ModelOptions[Loading] = Loading(),
    runtime: RuntimeOptions[Runtime] = Runtime(),
) -> None:
    """Fit the linear maps of some blocks, and say what they do and where they fail.

    What simpler maps explain (the identity, a multiple of it, a rotation, few directions), what a map writes into the
    logits, and the tokens whose updates are furthest from it, on rows that it was not fitted on. With --depths also
    the geometry of hidden states and what they say of the next token, depth by depth. With --out also writes
    explanation.json, maps.safetensors and figures; rectilinear report shows a text with its tokens marked.

    Example: rectilinear explain storyteller --text stories --max-tokens 20000 --blocks 3,5 --out explained
    """
    with claim(runtime.out, overwrite=runtime.overwrite, reads=[model, text]) as out:
        import rectilinear
        from rectilinear.cli.conclude import conclude

        found = rectilinear.explain(model, text, explaining, rows=rows, loading=loading, batch_size=runtime.batch_size)
        conclude(found.explanation, out, found.save_maps)
