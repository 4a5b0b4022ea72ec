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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import typer

from rectilinear import Dynamics
from rectilinear.training.record import Training

HERE = Path(__file__).parent
RESULTS = HERE / "pretraining.json"


class Arm(NamedTuple):
    """One way to train."""

    regularizer: str
    strength: float

    @property
    def name(self) -> str:
        """As the results have it."""
        return "none" if self.regularizer == "none" else f"{self.regularizer} {self.strength:g}"


# The paper's arms first, then other strengths. 0.5 / 192 is what 0.5 would be if squares were averaged over the width.
ARMS = [
    Arm("none", 0),
    Arm("cosine", 0.5),
    Arm("mse", 0.5),
    Arm("cosine", 0.1),
    Arm("cosine", 2.0),
    Arm("mse", 0.0026),
]


def main(
    train: Annotated[Path, typer.Option(help="Text to train on.")],
    held_out: Annotated[Path, typer.Option(help="Text to measure on.")],
    preset: Annotated[str, typer.Option(help="Of rectilinear pretrain.")] = "mistral-4m",
    epochs: Annotated[float, typer.Option(help="Passes over the text.")] = 2,
    seeds: Annotated[int, typer.Option(help="Runs of each arm.")] = 3,
    probes: Annotated[int, typer.Option(help="Steps between profiles.")] = 31,
    jobs: Annotated[int, typer.Option(help="Runs at once, of one thread each.")] = 2,
    work: Annotated[Path, typer.Option(help="Folder for the runs.")] = HERE / "runs",
) -> None:
    """Run what is missing and gather the results."""
    cases = [(arm, seed) for arm in ARMS for seed in range(seeds)]

    def run(case: tuple[Arm, int]) -> dict[str, Any]:
        arm, seed = case
        out = work / f"{preset}-{arm.name.replace(' ', '-')}-{seed}"
        options = {
            "--preset": preset,
            "--text": train,
            "--held-out": held_out,
            "--held-out-tokens": 40_000,
            "--epochs": epochs,
            "--regularizer": arm.regularizer,
            "--strength": arm.strength,
            "--seed": seed,
            "--probe-every": probes,
            "--out": out,
        }
        words = [str(word) for pair in options.items() for word in pair]
        command = [sys.executable, "-m", "rectilinear", "pretrain", *words, "--resume"]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        return summary(arm, seed, out)

    with ThreadPoolExecutor(jobs) as pool:
        results = []
        for result in pool.map(run, cases):
            results.append(result)
            told = {
                "command": f"python experiments/pretraining.py --preset {preset} --epochs {epochs:g} --seeds {seeds}",
                "results": results,
            }
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
