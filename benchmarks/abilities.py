"""What can a decoder still do whose attentions are bounded: longer rows, other text, tasks, recall, writing?

A cell is a model as a cell of benchmarks/bounded.py makes it, all choices and fits on one text, in rows of the length
that is given there; each is a file of its own in benchmarks/abilities, and one that is there is not made again. That of
the dense model is made first, as others are compared with what it writes. Which attentions a cell has chosen is taken
from there.

    python benchmarks/abilities.py MODELS TEXTS [CELL ...]

MODELS, TEXTS: folders as for benchmarks/bounded.py; TEXTS has eval/lambada_openai.jsonl (objects with context and
continuation) and eval/arc_easy.jsonl (query, choices, gold) as well. Cells are named as their files.

Recall: text that models were fitted on, a stretch of random tokens, more of the text, and the same stretch again; a
model that finds it predicts the second but for its first token. Writing: greedy, with a cache.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from bounded import STUDIES as BOUNDED
from bounded import Some, Way, bounded
from scoring import Study, make_cells, score
from transformers import GenerationConfig

import rectilinear
from rectilinear import Evaluating, Loading, Rows
from rectilinear.intervals import half_width
from rectilinear.measurement.perplexity import token_losses
from rectilinear.models.load import load_tokenizer
from rectilinear.models.logits import row_logits
from rectilinear.models.origin import Origin
from rectilinear.models.running import evaluating

COMMAND = "python benchmarks/abilities.py MODELS TEXTS"

#: Random tokens that are seen twice, and tokens of text before them, so that they are not attention sinks.
STRETCH, BEFORE = 32, 32

#: Of each task.
DOCUMENTS = 500

#: Texts that are gone on with, tokens of each, and tokens that are written.
PROMPTS, PROMPT, WRITTEN = 32, 128, 64


@dataclass(frozen=True)
class Plan:
    """What a model is tried on.

    Attributes:
        study: the model and the texts, with the ways to bound its attentions.
        long: tokens in longer rows.
        other: texts that it is not fitted on, of which so many tokens.
        tasks: of lm-evaluation-harness, and what is scored of each; the first DOCUMENTS of it.
        distances: between the beginnings of a stretch.
        recalls: stretches for each distance.
    """

    study: Study
    long: int
    other: Mapping[str, int]
    tasks: Mapping[str, str]
    distances: Sequence[int]
    recalls: int


def of_bounded(model: str, *names: str) -> Study:
    """Cells of benchmarks/bounded.py of a model."""
    (study,) = (study for study in BOUNDED if study.model == model)
    return replace(study, folder="abilities", ways={name: study.ways[name] for name in ("dense", *names)})


PLANS = [
    Plan(
        of_bounded("smollm2-135m", "far-33", "streaming-39", "half-33", "half-streaming-39"),
        long=2048,
        other={"tinystories/valid.txt": 50_000},
        tasks={"lambada_openai": "acc", "arc_easy": "acc"},
        distances=(200, 500, 1000, 2000),
        recalls=16,
    ),
]
PLAN_OF = {plan.study.model: plan for plan in PLANS}


def main() -> None:
    """Make the cells that are not there, or those that are named."""
    make_cells([plan.study for plan in PLANS], measure, __doc__.splitlines()[0], COMMAND, recalled)


def measure(study: Study, model: Path, texts: Path, way: Way) -> dict[str, Any]:
    """A cell: losses by document on each text, losses and hits of each stretch, what is written."""
    plan, start = PLAN_OF[study.model], time.perf_counter()
    dense = None if way is None else json.loads(study.file("dense").read_text())
    edited, _ = bounded(study, model, texts, way, known_blocks(study, way))
    found: dict[str, Any] = {"model": study.model, "fit_seconds": time.perf_counter() - start}
    longer = replace(study, seq_len=plan.long, batch=max(1, study.batch * study.seq_len // plan.long))
    found["long"] = score(longer, model, texts, edited)
    found["other"] = {
        text: score(replace(study, score=text, scored=tokens), model, texts, edited)
        for text, tokens in plan.other.items()
    }
    found["tasks"] = answer(plan, model, texts, edited)
    with evaluating(edited), torch.no_grad():
        found["recall"] = {str(distance): recall(plan, model, texts, edited, distance) for distance in plan.distances}
        found["writing"] = write(study, model, texts, edited, dense)
    return {**found, "seconds": time.perf_counter() - start}


def known_blocks(study: Study, way: Way) -> list[int] | None:
    """Which attentions a cell of benchmarks/bounded.py has chosen; None where there was no choice."""
    if not isinstance(way, Some):
        return None
    (name,) = (name for name, each in study.ways.items() if each is way)
    return list(json.loads(replace(study, folder="bounded").file(name).read_text())["blocks"])


def answer(plan: Plan, model: Path, texts: Path, edited: Any) -> dict[str, list[float]]:
    """Of each task: what each document scores."""
    asked = Evaluating(tasks=tuple(plan.tasks), data=texts / "eval", limit=DOCUMENTS, batch_size=8 * plan.study.batch)
    items = rectilinear.evaluate(edited, None, asked, tokenizer=load_tokenizer(model), progress=False).items.tasks
    return {task: [*(items[task][metric].values or ())] for task, metric in plan.tasks.items()}


def recall(plan: Plan, model: Path, texts: Path, edited: Any, distance: int) -> dict[str, list[float]]:
    """Of each stretch: the loss when it is first seen, and the loss and the share of hits when it comes again."""
    study, tokenizer = plan.study, load_tokenizer(model)
    length = BEFORE + distance - STRETCH
    rows = Rows(max_tokens=plan.recalls * length, seq_len=length)
    text = Origin(model, Loading()).rows(texts / study.fit, rows, tokenizer).ids
    drawn = torch.Generator().manual_seed(distance)
    known = torch.tensor([each for each in range(len(tokenizer)) if each not in tokenizer.all_special_ids])
    stretches = known[torch.randint(len(known), (len(text), STRETCH), generator=drawn)]
    found: dict[str, list[float]] = {"first": [], "again": [], "hits": []}
    for row in torch.cat([text[:, :BEFORE], stretches, text[:, BEFORE:], stretches], 1).split(1):
        logits = row_logits(edited, row)
        losses, hits = token_losses(logits, row)[0], logits[0, :-1].argmax(-1) == row[0, 1:]
        found["first"].append(float(losses[BEFORE : BEFORE + STRETCH - 1].mean()))
        found["again"].append(float(losses[1 - STRETCH :].mean()))
        found["hits"].append(float(hits[1 - STRETCH :].double().mean()))
    return found


def write(study: Study, model: Path, texts: Path, edited: Any, dense: dict[str, Any] | None) -> dict[str, Any]:
    """What is written after some texts, how much of it repeats itself, and how much of it the dense model writes."""
    rows = Rows(max_tokens=PROMPTS * study.seq_len, seq_len=study.seq_len)
    prompts = Origin(model, Loading()).rows(texts / study.score, rows, load_tokenizer(model)).ids[:, :PROMPT]
    usual = GenerationConfig(
        do_sample=False, max_new_tokens=WRITTEN, min_new_tokens=WRITTEN, eos_token_id=None, pad_token_id=0
    )
    mask = torch.ones_like(prompts)
    written = edited.generate(prompts, attention_mask=mask, generation_config=usual)[:, PROMPT:]
    found: dict[str, Any] = {"tokens": [" ".join(map(str, row)) for row in written.tolist()]}
    found["repeated"] = [repeated(row) for row in written.tolist()]
    if dense:
        theirs = torch.tensor([[*map(int, row.split())] for row in dense["writing"]["tokens"]])
        found["same_so_far"] = (written == theirs).long().cumprod(1).sum(1).tolist()
        logits = edited(torch.cat([prompts, theirs], 1), use_cache=False).logits[:, PROMPT - 1 : -1]
        found["same_choices"] = (logits.argmax(-1) == theirs).double().mean(1).tolist()
    return found


def repeated(tokens: Sequence[int], length: int = 4) -> float:
    """Share of runs of tokens that were there before."""
    runs = [tuple(tokens[begin : begin + length]) for begin in range(len(tokens) - length + 1)]
    return 1 - len({*runs}) / len(runs)


def mean_of(values: Sequence[float], form: str = ".2f") -> str:
    """A mean over independent cases, with half of its 95 % interval."""
    spread = half_width(statistics.stdev(values) / len(values) ** 0.5, len(values))
    return f"{statistics.mean(values):{form}} ± {spread:{form.removeprefix('+')}}"


def recalled(cell: dict[str, Any], study: Study) -> str:
    """What is found again."""
    return ", ".join(f"{distance} tokens on {mean_of(found['hits'])}" for distance, found in cell["recall"].items())


if __name__ == "__main__":
    main()
