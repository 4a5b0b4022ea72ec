"""Does a penalty on neighbouring hidden states make a model less linear, and better? (arXiv 2405.12250, section 5.)

Every arm is trained on the same tokens in the same order, once for each seed, by ``rectilinear pretrain``. What is
there already is not run again:

    python experiments/pretraining.py --train train.txt --held-out valid.txt
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor, as_completed
from datetime import date
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from rectilinear import Dynamics, Training

HERE = Path(__file__).parent
RESULTS = HERE / "pretraining.json"


class Arm(NamedTuple):
    """One way to train."""

    regularizer: str
    strength: float
    embedding: bool = True

    @property
    def name(self) -> str:
        """As the results have it."""
        spared = "" if self.embedding else " spared"
        return "none" if self.regularizer == "none" else f"{self.regularizer} {self.strength:g}{spared}"


# The paper's arms, then other strengths, and the embedding spared: the paper does not say whether it counts. 0.5 / 192
# is what 0.5 would be were squares averaged over the width.
PAPER = [Arm("none", 0), Arm("cosine", 0.5), Arm("mse", 0.5)]
SWEEP = [Arm("cosine", 0.1), Arm("cosine", 2.0), Arm("cosine", 0.5, embedding=False), Arm("mse", 0.0026)]


def main(
    train: Annotated[Path, typer.Option(help="Text to train on.")],
    held_out: Annotated[Path, typer.Option(help="Text to measure on.")],
    preset: Annotated[str, typer.Option(help="Of rectilinear pretrain.")] = "mistral-4m",
    epochs: Annotated[float, typer.Option(help="Passes over the text.")] = 2,
    rows: Annotated[int, typer.Option(help="Rows in a step.")] = 8,
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 3,
    probes: Annotated[int, typer.Option(help="Steps between profiles.")] = 124,
    jobs: Annotated[int, typer.Option(help="Runs at once, of one thread each.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder for the runs.")] = HERE / "runs",
) -> None:
    """Run what is missing and gather the results."""
    options = {
        "--preset": preset,
        "--text": train,
        "--held-out": held_out,
        "--held-out-tokens": 40_000,
        "--epochs": epochs,
        "--batch-size": rows,
        "--gradient-accumulation": 1,
        "--probe-every": probes,
        "--save-every": probes,
    }
    command = f"python experiments/pretraining.py --preset {preset} --epochs {epochs:g} --rows {rows} --probes {probes}"
    kept = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    done = kept["results"] if kept.get("command") == command else []
    order = [(arm, seed) for arm in (*PAPER, *SWEEP) for seed in range(seeds)]
    missing = [(arm, seed) for arm, seed in order if not any((r["arm"], r["seed"]) == (arm.name, seed) for r in done)]

    def run(case: tuple[Arm, int]) -> dict[str, Any]:
        arm, seed = case
        out = work / f"{arm.name.replace(' ', '-')}-{seed}"
        own = {"--seed": seed, "--out": out, "--regularizer": arm.regularizer}
        if arm.regularizer != "none":
            own["--strength"] = arm.strength
        words = [str(word) for pair in {**options, **own}.items() for word in pair]
        process = [sys.executable, "-m", "rectilinear", "pretrain", *words, "--resume"]
        if not arm.embedding:
            process.append("--spare-embedding")
        subprocess.run(process, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return summary(arm, seed, out)

    with ThreadPoolExecutor(jobs) as pool:
        for ended in as_completed([pool.submit(run, case) for case in missing]):
            done.append(ended.result())
            done.sort(key=lambda result: (result["arm"], result["seed"]))
            told = {"command": command, "date": date.today().isoformat(), "results": done}
            RESULTS.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")


def summary(arm: Arm, seed: int, out: Path) -> dict[str, Any]:
    """What is kept of a run."""
    training, dynamics = Training.load(out), Dynamics.load(out)
    losses = {entry["step"]: entry["eval_loss"] for entry in training.log if "eval_loss" in entry}
    penalties = [entry["penalty"] for entry in training.log if "penalty" in entry]
    return {
        "arm": arm.name,
        "seed": seed,
        "parameters": training.model.parameters,
        "tokens": training.data.tokens,
        "steps": training.steps,
        "held_out_tokens": training.held_out.data.tokens,
        "loss": training.held_out.loss,
        "stderr": training.held_out.stderr,
        "penalty": penalties[-1] if penalties else None,
        "environment": training.environment.model_dump(),
        "points": [
            {
                "step": point.step,
                "loss": losses.get(point.step),
                "update_linearity": [block.update_linearity.held_out for block in point.blocks],
                "linearity": [block.linearity.held_out for block in point.blocks],
                "update_ratio": [block.update_ratio for block in point.blocks],
                "cosine": [block.cosine for block in point.blocks],
            }
            for point in dynamics.points
        ],
    }


if __name__ == "__main__":
    typer.run(main)
