"""Does fine-tuning make a model more linear? (arXiv 2405.12250, Table 1.)

Every model is fine-tuned on every task, once for each seed, by ``rectilinear finetune``. What is there already is not
run again:

    python experiments/finetuning.py MODEL... --data superglue
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from rectilinear import Finetuning

HERE = Path(__file__).parent
RESULTS = HERE / "finetuning.json"

# The paper's three, and one more; of MultiRC the training part here has 32 passages.
TASKS = ("multirc", "boolq", "cb", "rte")


def main(
    models: Annotated[list[Path], typer.Argument(help="Folders of models; their names go into the results.")],
    data: Annotated[Path, typer.Option(help="Folder of SuperGLUE's files.")],
    seeds: Annotated[int, typer.Option(help="Runs of each model and task.")] = 3,
    learning_rate: Annotated[float, typer.Option(help="The highest.")] = 3e-4,
    max_examples: Annotated[int, typer.Option(help="Lines of each file to read.")] = 1000,
    work: Annotated[Path, typer.Option(help="Folder for the runs.")] = HERE / "runs",
) -> None:
    """Run what is missing and gather the results."""
    options = {"--seeds": seeds, "--learning-rate": learning_rate, "--max-tokens": 50_000}
    command = f"python experiments/finetuning.py --learning-rate {learning_rate:g} --max-examples {max_examples}"
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    done = kept["results"] if kept.get("command") == command else []
    for task in TASKS:
        for model in models:
            if any((result["model"], result["task"]) == (model.name, task) for result in done):
                continue
            out = work / f"{model.name}-{task}"
            lines = max_examples if task != "multirc" else 32  # passages, each with many answers
            own = {"--task": task, "--data": data, "--max-examples": lines, "--out": out}
            words = [str(word) for pair in {**options, **own}.items() for word in pair]
            process = [sys.executable, "-m", "rectilinear", "finetune", str(model), *words]
            if any(out.glob("seed-*.json")):
                process.append("--resume")
            if not (out / Finetuning.file_name).exists():
                subprocess.run(process, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
            done.append(summary(model.name, out))
            done.sort(key=lambda result: (result["model"], TASKS.index(result["task"])))
            told = {"command": command, "date": date.today().isoformat(), "results": done}
            RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def summary(model: str, out: Path) -> dict[str, Any]:
    """What is kept of a model's runs on a task."""
    found = Finetuning.load(out)
    return {
        "model": model,
        "task": found.task,
        "parameters": found.model.parameters,
        "train": found.data.train,
        "validation": found.data.validation,
        "cut": found.data.cut,
        "linearity_tokens": found.text.tokens,
        "environment": found.environment.model_dump(),
        "before": found.before.update_linearity.model_dump(),
        "runs": [
            {
                "seed": run.seed,
                "steps": run.steps,
                "change": run.change.update_linearity.model_dump(),
                "change_by_block": [
                    _difference(before.update_linearity.held_out, after.update_linearity.held_out)
                    for before, after in zip(found.before.blocks, run.after.blocks, strict=True)
                ],
                "metrics": {name: metric.model_dump() for name, metric in run.metrics.items()},
                "loss": [entry["loss"] for entry in run.log if "loss" in entry][-1],
            }
            for run in found.runs
        ],
        "warnings": list(found.warnings),
    }


def _difference(before: float | None, after: float | None) -> float | None:
    return None if before is None or after is None else after - before


if __name__ == "__main__":
    typer.run(main)
