"""``rectilinear judge``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rectilinear.cli import options
from rectilinear.cli.legacy import check_out, progress, stdout
from rectilinear.cli.options import DTypeName
from rectilinear.errors import RequestError


def judge(
    context: typer.Context,
    model: options.Model,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder for stories, answers and judge.json.")],
    judge_model: options.JudgeModel = None,
    judge_url: options.JudgeUrl = None,
    text: options.StoryText = "stories",
    count: options.StoryCount = 100,
    beginning_words: options.BeginningWords = 40,
    max_new_tokens: options.MaxNewTokens = 200,
    temperature: options.Temperature = 1.0,
    reference: options.Reference = None,
    concurrency: options.Concurrency = 4,
    structured: options.Structured = True,
    reasoning: options.Reasoning = False,
    prices: options.Prices = None,
    dry_run: options.DryRun = False,
    column: options.Column = "text",
    config: options.Config = None,
    split: options.Split = "train",
    resume: options.ResumeJudging = False,
    overwrite: options.Overwrite = False,
    seed: options.Seed = 0,
    device: options.Device = "auto",
    dtype: options.DType = DTypeName.auto,
    batch_size: options.StoriesAtOnce = 16,
    revision: options.Revision = None,
    trust_remote_code: options.TrustRemoteCode = False,
) -> None:
    """Have a model complete held-out stories, measure what it wrote, and have a judge mark it.

    Grammar, creativity, consistency and plot from 1 to 10, as in the TinyStories and the linearity paper.

    Example: OPENAI_API_KEY=... rectilinear judge MODEL --judge-model gpt-4o --text valid.txt --out judged

    Example: rectilinear judge storyteller --judge-url http://localhost:8000/v1 --judge-model mine --out judged
    """
    if judge_url is not None and judge_model is None:
        raise RequestError(f"expected --judge-model, the name of a model at {judge_url}, got none")
    options.refuse_idle(
        context,
        (judge_model is None, "without --judge-model", ("concurrency", "structured", "reasoning", "prices", "dry_run")),
    )
    check_out(out, overwrite or resume or (out / "request.json").exists())  # of a run there is more to say

    import rectilinear
    from rectilinear.evaluation.judge_client import JudgeEndpoint
    from rectilinear.report.judge_table import print_judge

    asked = None
    if judge_model is not None:
        asked = JudgeEndpoint(
            judge_model,
            judge_url,
            concurrency=concurrency,
            structured=structured,
            reasoning=reasoning,
            prices=prices,
            key="none" if dry_run else None,  # nothing is asked
        )
    recipe = rectilinear.StoryRecipe(
        model,
        text,
        count=count,
        beginning_words=beginning_words,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
        column=column,
        config=config,
        split=split,
        revision=revision,
        dtype=dtype.value,
    )

    def announce(stories: int, prompt_tokens: int, answer_tokens: int) -> None:
        about = f"about {prompt_tokens:,} tokens of requests and at most {answer_tokens:,} of answers"
        cost = asked and asked.cost(prompt_tokens, answer_tokens)
        price = "; see --prices for what that costs" if cost is None else f", at most about {cost:.2g} by --prices"
        print(f"{judge_model} is asked about {stories:,} stories: {about}{price}", file=sys.stderr)
        if dry_run:
            raise typer.Exit

    try:
        with progress() as report:
            judged = rectilinear.judge(
                recipe,
                out,
                asked,
                reference=reference,
                resume=resume,
                overwrite=overwrite,
                device=device,
                trust_remote_code=trust_remote_code,
                announce=announce,
                progress=report,
            )
    except KeyboardInterrupt:
        if (out / "stories.jsonl").exists():
            kept = f"{out} keeps the stories and the answers so far; to go on, add --resume"
            raise typer.Abort(kept) from None
        raise
    print_judge(judged, stdout())
    print(f"wrote {judged.file_name} to {out}")
