"""What does replacing cost, and what does it save: kinds, targets, blocks and ranks beside the published methods?

Perplexity of a small trained decoder on text it was not calibrated on, its parameters and its
cache, after each of a grid of replacements (its speed, where that can be told from noise, is in decoding.py). The published training-free methods are among the
kinds: ShortGPT is drop chosen by influence, SLEB drop chosen by loss, ReplaceMe folded, NBL
affine attention, and the paper's own method affine blocks chosen by score (and healed, where
steps are given). Rows named "window" keep the attention's own weights but let a token see only
the last w: nothing is fitted, and the state is bounded too.

    python benchmarks/quality.py MODEL CALIBRATION SCORED NAME [--case TEXT]

Results are kept case by case in ``quality-NAME.json``, so that a stopped run goes on.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from common import command_line, linearize, save
from torch import nn
from transformers import AutoModelForCausalLM

import rectilinear
from rectilinear.evaluation.speed import measure_speed
from rectilinear.linearization.plan import Plan
from rectilinear.measurement.perplexity import Perplexity, measure_perplexity
from rectilinear.models.describe import count_parameters
from rectilinear.models.load import resolve
from rectilinear.models.origin import Origin
from rectilinear.models.part_probe import probe_parts
from rectilinear.text.settings import Rows

CALIBRATION, SCORED, SEQ_LEN = 300_000, 100_000, 256
PROMPT, NEW_TOKENS = 128, 32


def cases(blocks: int, width: int) -> dict[str, dict[str, Any]]:
    """Options of `common.linearize` by name, for a decoder of some blocks."""
    few, low = 3 * width // 8, width // 8
    middle, most, all_of_them = [blocks // 2], list(range(1, blocks - 1)), list(range(blocks))
    found: dict[str, dict[str, Any]] = {}
    for block in range(blocks):
        for kind in ("drop", "folded", "affine", "filter"):
            if not (kind == "folded" and block == 0):
                found[f"{kind} block {block}"] = {"kind": kind, "blocks": [block]}
        found[f"filter block {block} rank {few}"] = {"kind": "filter", "blocks": [block], "rank": few}
    for name, chosen in (("middle", middle), ("inner", most), ("all", all_of_them)):
        at = {"target": "attention", "blocks": chosen}
        found[f"drop {name} attentions"] = {"kind": "drop", **at}
        found[f"affine {name} attentions (NBL)"] = {"kind": "affine", **at}
        for rank in (None, few, low):
            rank_name = f" rank {rank}" if rank else ""
            found[f"filter {name} attentions{rank_name}"] = {"kind": "filter", "rank": rank, **at}
        found[f"filter, 3 taps and the mean alone, {name} attentions rank {few}"] = {
            "kind": "filter",
            "rank": few,
            "taps": 3,
            "rates": (1.0,),
            **at,
        }
        for window in (4, 8, 16):
            found[f"window {window} {name} attentions"] = {"window": window, **at}
    pair, healed = {"count": 2}, {"heal_steps": 300, "heal_logits": 0.0}  # towards hidden states alone, as the paper
    found |= {
        "drop 2 by influence (ShortGPT)": {"kind": "drop", "select": "influence", **pair},
        "drop 2 by loss (SLEB)": {"kind": "drop", "select": "loss", **pair},
        "folded 2 by influence (ReplaceMe)": {"kind": "folded", "select": "influence", **pair},
        "affine 2 by score (the paper)": {"kind": "affine", "select": "score", **pair},
        "affine 2 by score, healed (the paper)": {"kind": "affine", "select": "score", **healed, **pair},
        "filter 2 by score": {"kind": "filter", "select": "score", **pair},
        "filter 2 by loss": {"kind": "filter", "select": "loss", **pair},
        "filter 2 by loss, merged": {"kind": "filter", "select": "loss", "merge": True, **pair},
        "filter 2 by loss, healed": {"kind": "filter", "select": "loss", **healed, **pair},
        f"filter all attentions rank {few}, healed": {
            "kind": "filter",
            "target": "attention",
            "blocks": all_of_them,
            "rank": few,
            **healed,
        },
    }
    return dict(sorted(found.items(), key=lambda case: "heal_steps" in case[1]))  # the slow ones last


@contextmanager
def windowed(model: nn.Module, rows: torch.Tensor, blocks: list[int], window: int) -> Iterator[None]:
    """While open, the attentions of some blocks, found on some rows, see the last ``window`` tokens alone."""
    parts = probe_parts(model, rectilinear.find_blocks(model), rows)

    def narrow(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        tokens = (args[0] if args else kwargs["hidden_states"]).shape[1]
        age = torch.arange(tokens)[:, None] - torch.arange(tokens)
        return args, {**kwargs, "attention_mask": ((age >= 0) & (age < window))[None, None]}

    paths = [parts.part(block, "attention").path for block in blocks]
    handles = [model.get_submodule(path).register_forward_pre_hook(narrow, with_kwargs=True) for path in paths]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def score(model: nn.Module, dense: nn.Module, rows: torch.Tensor, baseline: Perplexity) -> dict[str, Any]:
    """What is reported of one edited model."""
    perplexity = measure_perplexity(model, rows, 16)
    increase, stderr = perplexity.minus(baseline)
    return {
        "perplexity": perplexity.perplexity,
        "loss_increase": increase,
        "loss_increase_stderr": stderr,
        "parameters": count_parameters([model]),
        "cache_ratio": cache_ratio(model, dense, rows),
    }


def cache_ratio(model: nn.Module, dense: nn.Module, rows: torch.Tensor) -> float:
    """The cache after a prompt and new tokens over the dense model's."""
    ours, theirs = (measure_speed(m, rows[:1, :PROMPT], NEW_TOKENS, 1) for m in (model, dense))
    return ours.cache_bytes / theirs.cache_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("calibration")
    parser.add_argument("scored")
    parser.add_argument("name")
    parser.add_argument("--case", default="", help="only cases whose name has this in it")
    asked = parser.parse_args()
    script = Path(__file__).with_name(f"quality-{asked.name}.py")  # gives the result file its name
    kept = json.loads(script.with_suffix(".json").read_text())["cases"] if script.with_suffix(".json").exists() else {}
    rows = Origin(asked.model).rows(asked.scored, Rows(max_tokens=SCORED, seq_len=SEQ_LEN, seed=1)).ids
    dense = AutoModelForCausalLM.from_pretrained(resolve(asked.model)).eval()
    baseline = measure_perplexity(dense, rows, 16)
    config = dense.config
    for name, arguments in cases(config.num_hidden_layers, config.hidden_size).items():
        if name in kept or asked.case not in name:
            continue
        start, plan = perf_counter(), None
        if "window" in arguments:
            with windowed(dense, rows, arguments["blocks"], arguments["window"]):
                perplexity = measure_perplexity(dense, rows, 16)
            increase, stderr = perplexity.minus(baseline)
            result = {
                "perplexity": perplexity.perplexity,
                "loss_increase": increase,
                "loss_increase_stderr": stderr,
                "parameters": count_parameters([dense]),
            }
        else:
            done = linearize(asked.model, asked.calibration, CALIBRATION, arguments)
            plan = done.plan
            result = score(done.model, dense, rows, baseline)
        kept[name] = {
            **result,
            "replaced": blocks_of(plan) if plan else arguments["blocks"],
            "seconds": perf_counter() - start,
        }
        print(name, kept[name], flush=True)
        save(
            str(script),
            __doc__.splitlines()[0],
            {
                "model": asked.model if asked.model == "storyteller" else Path(asked.model).name,
                "calibration": {"text": Path(asked.calibration).name, "tokens": CALIBRATION},
                "scored": {"text": Path(asked.scored).name, "tokens": baseline.tokens, "rows": len(rows)},
                "dense": {
                    "perplexity": baseline.perplexity,
                    "loss": baseline.loss,
                    "stderr": baseline.stderr,
                    "parameters": count_parameters([dense]),
                },
                "cases": kept,
            },
            command=command_line(),
            show=False,
        )


def blocks_of(plan: Plan) -> list[int]:
    """Indices of the blocks that a plan replaces."""
    return [index for replacement in plan.replacements for index in replacement.blocks]


if __name__ == "__main__":
    main()
