"""``rectilinear inspect``."""

from __future__ import annotations

import json

from rectilinear.cli import options
from rectilinear.cli.console import check_out
from rectilinear.staging import staged


def inspect(
    model: options.Model,
    blocks: options.Blocks = None,
    out: options.Out = None,
    overwrite: options.Overwrite = False,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Show the block stack that would be measured, without loading weights.

    With --out also writes inspect.json.

    Example: rectilinear inspect storyteller
    """
    check_out(out, overwrite)

    from rectilinear.models.blocks import find_blocks
    from rectilinear.models.load import build_without_weights, describe, load_config

    settings = load_config(model, revision=revision, trust_remote_code=trust_remote_code)
    built = build_without_weights(settings, trust_remote_code=trust_remote_code)
    described = {"id": model, "revision": revision, **describe(built, find_blocks(built, blocks))}
    for name, value in described.items():
        if value is not None:
            shown = f"{value:,}" if isinstance(value, int) else value
            print(f"{name.replace('_', ' '):<18} {shown}")
    if out:
        with staged(out) as folder:
            text = json.dumps({"schema": "rectilinear.inspect/1", **described}, indent=2) + "\n"
            (folder / "inspect.json").write_text(text, encoding="utf-8")
        print(f"wrote inspect.json to {out}")
