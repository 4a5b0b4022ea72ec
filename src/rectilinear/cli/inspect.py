"""``rectilinear inspect``."""

from __future__ import annotations

from typing import Any

from rectilinear.cli.panels import ModelArgument, ModelOptions, RuntimeOptions, WorkOptions
from rectilinear.models.settings import Access, Loading, Stack
from rectilinear.publish import stage
from rectilinear.runs import Output, claim


def inspect(
    model: ModelArgument,
    /,
    *,
    stack: WorkOptions[Stack] = Stack(),
    access: ModelOptions[Access] = Access(),
    output: RuntimeOptions[Output] = Output(),
) -> None:
    """Show the block stack that would be measured, without loading weights.

    With --out also writes inspect.json.

    Example: rectilinear inspect storyteller
    """
    with claim(output.out, overwrite=output.overwrite, reads=[model]) as out:
        from rectilinear.models.describe import describe
        from rectilinear.models.find_blocks import find_blocks
        from rectilinear.models.origin import Origin
        from rectilinear.report.terminal import say
        from rectilinear.results import json_text

        built: Any = Origin(model, Loading(**access.model_dump()), stack.blocks).skeleton()
        described = {"id": model, "revision": access.revision, **describe(built, find_blocks(built, stack.blocks))}
        if out:
            with stage(out) as folder:
                text = json_text({"schema": "rectilinear.inspect/1", **described})
                (folder / "inspect.json").write_text(text, encoding="utf-8")
        for name, value in described.items():
            if value is not None:
                shown = f"{value:,}" if isinstance(value, int) else value
                say(f"{name.replace('_', ' '):<18} {shown}")
        if out:
            say(f"wrote inspect.json to {out}")
