"""What can smaller models still do: tasks, probes and stories beside perplexity?

Some replacements of each kind in one small trained decoder, each judged by every yardstick of
``rectilinear evaluate`` that needs no judge, and compared with the original on the same rows,
documents, questions and stories.

    python benchmarks/yardsticks.py MODEL CALIBRATION SCORED SUPERGLUE [--work DIR]
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from common import command_line, linearize, save

import rectilinear
from rectilinear import Evaluating, Evaluation, Judging, Probing, Rows, Stories

CALIBRATION, SCORED, SEQ_LEN = 300_000, 100_000, 256
TASKS, LIMIT = ("superglue", "wsc"), 1000
PROBES, EXAMPLES = ("boolq", "cb", "copa", "rte", "wic"), 1000
STORIES = {"count": 200, "max_new_tokens": 150, "batch_size": 50}

# Options of `common.linearize` by name.
CASES: dict[str, dict[str, Any]] = {
    "drop block 2": {"kind": "drop", "blocks": [2]},
    "affine block 2 (the paper)": {"kind": "affine", "blocks": [2]},
    "filter block 2": {"kind": "filter", "blocks": [2]},
    "affine attentions 1 to 3 (NBL)": {"kind": "affine", "target": "attention", "blocks": [1, 2, 3]},
    "filter attentions 1 to 3, rank 24": {"kind": "filter", "target": "attention", "blocks": [1, 2, 3], "rank": 24},
    "filter all attentions, rank 24": {"kind": "filter", "target": "attention", "blocks": [0, 1, 2, 3, 4], "rank": 24},
}


def main() -> None:
    """Make the models, apply the yardsticks, and put the results side by side."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("model", "calibration", "scored", "superglue"):
        parser.add_argument(name)
    with tempfile.TemporaryDirectory() as scratch:
        parser.add_argument("--work", default=scratch, help="folder of this MODEL's results, to go on from")
        asked = parser.parse_args()
        models = dict(replaced(asked.model, asked.calibration, Path(asked.work) / "models"))
        results = Path(asked.work) / "results"
        for name, model in {"the original": asked.model, **models}.items():
            apply_probes_and_stories(str(model), asked, results / name)
        compared = rectilinear.evaluate_all(
            [*models.values()],
            asked.scored,
            Evaluating(tasks=TASKS, data=asked.superglue, limit=LIMIT, include=[results], speed=False),
            against=asked.model,
            rows=Rows(max_tokens=SCORED, seq_len=SEQ_LEN),
        )
        found = dict(zip(models, compared, strict=True))
    first = next(iter(found.values()))
    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "model": Path(asked.model).name,
            "calibration": {"text": Path(asked.calibration).name, "tokens": CALIBRATION},
            "scored": {"text": Path(asked.scored).name, "tokens": first.tokens},
            "settings": {"limit": LIMIT, "max_examples": EXAMPLES, **STORIES},
            "dense": summary(first.against),
            "own endings": first.stories.endings.model_dump() if first.stories else None,
            "cases": {name: summary(evaluation) for name, evaluation in found.items()},
        },
        command=command_line(),
        show=False,
    )


def replaced(model: str, calibration: str, folder: Path) -> Iterator[tuple[str, Path]]:
    """Checkpoints with something replaced, made where they are missing."""
    for name, arguments in CASES.items():
        out = folder / name.replace(" ", "-")
        if not out.exists():
            done = linearize(model, calibration, CALIBRATION, arguments)
            done.save(out)
        yield name, out


def apply_probes_and_stories(model: str, asked: Any, out: Path) -> None:
    """Write the results that there are not yet into a folder."""
    for task in PROBES:
        if not (out / task).exists():
            rectilinear.probe(model, task, Probing(data=asked.superglue, max_examples=EXAMPLES)).save(out / task)
    if not (out / "stories" / "judge.json").exists():
        stories, judging = Stories(text=asked.scored, **STORIES), Judging(reference=asked.model)
        rectilinear.judge(model, out / "stories", stories, judging, resume=True)


def summary(evaluation: Any) -> dict[str, Any]:
    """What is kept of an evaluation: scores, and their differences from the original's."""
    between = evaluation.differences if isinstance(evaluation, Evaluation) else None
    return {
        "perplexity": evaluation.perplexity,
        "parameters": evaluation.parameters,
        "loss_increase": between and between.loss,
        "loss_increase_stderr": between and between.loss_stderr,
        "tasks": {
            name: {
                "n": task.n,
                **task.metrics["acc"].model_dump(include={"value", "stderr", "constant"}),
                "difference": between and between.tasks[name]["acc"].model_dump(),
            }
            for name, task in evaluation.tasks.items()
        },
        "superglue": {
            **evaluation.groups["superglue"].metrics["mean"].model_dump(include={"value", "stderr", "constant"}),
            "difference": between and between.groups["superglue"]["mean"].model_dump(),
        },
        "probes": {
            task: {
                "n": probe.data.validation,
                "depth": probe.best.depth,
                **probe.best.metrics["accuracy"].model_dump(),
                "difference": between and between.probes[task].model_dump(),
            }
            for task, probe in evaluation.probes.items()
        },
        "stories": evaluation.stories.completions.model_dump(),
        "reference": evaluation.stories.reference.model_dump(),
    }


if __name__ == "__main__":
    main()
