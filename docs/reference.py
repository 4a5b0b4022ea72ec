"""Pages of the site that are generated: the README, commands' help, public names."""

from __future__ import annotations

import io
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages."""
    for name, content in (("index", start()), ("reference/commands", commands()), ("reference/python", names())):
        files.append(File.generated(config, f"{name}.md", content=content))
    return files


def start() -> str:
    """The README, whose links go out from the folder above; those to other files there are names alone."""
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")
    return re.sub(r"\[([A-Z]+\.\w+)\]\(\1\)", r"`\1`", text)


def commands() -> str:
    """What ``--help`` prints."""
    from rich.console import Console

    from rectilinear.cli.main import COMMANDS, build

    program = build()
    parts = ["# Commands", "Exit codes: 0 done, 1 the job failed, 2 the request was wrong, 130 interrupted."]
    for name in COMMANDS:
        text = io.StringIO()
        program.help_print([name], console=Console(file=text, width=100, color_system=None))
        parts += [f"## {name}", f"```text\n{text.getvalue().strip()}\n```"]
    return "\n\n".join(parts) + "\n"


def names() -> str:
    """A section for each public name, from its docstring."""
    import rectilinear

    homes = rectilinear._HOMES
    entries = [f"::: {homes[name]}.{name}" for name in sorted(rectilinear.__all__, key=str.lower)]
    return "\n\n".join(["# Python", "All of it can be imported from `rectilinear`.", *entries]) + "\n"
