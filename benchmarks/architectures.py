"""Which decoder architectures does `find_blocks` understand?

Builds every causal language model that transformers knows, from its default config and without weights, and
looks for its block stack. Writes `benchmarks/architectures.json` and `docs/architectures.md`.

    python benchmarks/architectures.py               survey, then write both files (about a minute)
    python benchmarks/architectures.py --page-only   rewrite the page from the JSON
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import sys
import time
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

import rectilinear
from rectilinear.errors import RequestError
from rectilinear.models.find_blocks import find_blocks

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "benchmarks" / "architectures.json"
PAGE = ROOT / "docs" / "architectures.md"

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
COMPLETED: dict[str, dict[str, Any]] = {  # defaults that build no model as they are, and what completes them
    "cohere_compass_text": {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
    "dbrx": {"attn_config": {"rope_theta": 10000.0}},
    "dots1": {"n_routed_experts": 8, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma4_assistant": {"text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0}},
    "hunyuan_v1_dense": {"head_dim": 128},
    "hunyuan_v1_moe": {"head_dim": 128},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "ministral": {"head_dim": 128},
    "nemotron": {"head_dim": 128, "num_key_value_heads": 8},
    "qwen4_exp_text": {
        "indexer_n_heads": 4,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 256,
        "indexer_budget": 64,
        "indexer_compress_ratio": 4,
    },
    "reformer": {"is_decoder": True},
}
COMPLETED["qwen4_exp"] = {"text_config": COMPLETED["qwen4_exp_text"]}

NOTES = {  # learned from the source: why a stack is not found, or what to know before measuring it
    "blenderbot": "`num_hidden_layers` is the encoder's depth; the decoder has `decoder_layers` blocks",
    "blt": "three transformers in a row over bytes, patches, bytes, and a patcher beside them",
    "deepseek_v4": "blocks pass on several residual streams, `[batch, tokens, streams, width]`",
    "gemma3n": "needs timm",
    "gemma3n_text": "blocks pass on several residual streams, `[streams, batch, tokens, width]`",
    "gemma4_assistant": "runs on the cache of another model; its config is refused when built alone",
    "gemma4_unified_assistant": "runs on the cache of another model; its config is refused when built alone",
    "hrm_text": "two stacks of equal rank, each applied several times in turn",
    "hy_v4": "blocks pass on several residual streams, `[batch, tokens, streams, width]`",
    "longcat_flash": "a block holds two attention and two feed-forward sublayers; the config counts both",
    "mllama": "cross-attention blocks are skipped when there is no image",
    "qwen4_exp": "blocks pass on several residual streams, `[batch, tokens, streams * width]`",
    "qwen4_exp_text": "blocks pass on several residual streams, `[batch, tokens, streams * width]`",
    "reformer": "reversible blocks: two streams, both passed by keyword",
    "rwkv": "in evaluation, halves the stream between blocks every `rescale_every` blocks",
    "xlm": "has no block modules, only parallel lists of attentions, feed-forwards and norms",
}


def survey_one(model_type: str) -> dict[str, Any]:
    """Build one architecture on the meta device and look for its blocks."""
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    row: dict[str, Any] = {"model_type": model_type}
    if model_type in NOTES:
        row["note"] = NOTES[model_type]
    if model_type in COMPLETED:
        row["completed"] = COMPLETED[model_type]
    try:
        config = AutoConfig.for_model(model_type, **COMPLETED.get(model_type, {}))
        model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
        row["class"] = model_class.__name__
        with torch.device("meta"):
            try:
                model = AutoModelForCausalLM.from_config(config)
            except AttributeError:
                model = model_class(config.get_text_config(decoder=True))
                row["config_used"] = "the decoder's part"
    except Exception as error:
        return row | {"status": "not built", "error": " ".join(f"{type(error).__name__}: {error}".split())}
    row["expected"] = getattr(model.config.get_text_config(decoder=True), "num_hidden_layers", None)
    try:
        stack = find_blocks(model)
    except RequestError as error:
        return row | {"status": "not found", "error": str(error)}
    classes = dict(Counter(type(block).__name__ for block in stack))
    found = {"path": stack.path, "blocks": len(stack), "distinct": len(set(map(id, stack.blocks)))}
    return row | {"status": "found", "rule": stack.rule, **found, "block_classes": classes}


def _report(model_type: str, pipe: Any) -> None:
    pipe.send(survey_one(model_type))


def survey_apart(model_type: str, limit: float) -> dict[str, Any]:
    """Run `survey_one` in a process of its own, so that a hang or a crash stops that one only."""
    context = multiprocessing.get_context("fork")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_report, args=(model_type, send))
    process.start()
    send.close()
    try:
        if receive.poll(limit):
            row: dict[str, Any] = receive.recv()
            return row
        error = f"TimeoutError: not done after {limit:g} s"
    except EOFError:
        error = "the process died"
    finally:
        process.kill()
        process.join()
    return {"model_type": model_type, "status": "not built", "error": error}


def survey(jobs: int, limit: float) -> dict[str, Any]:
    model_types = sorted({config.model_type for config in MODEL_FOR_CAUSAL_LM_MAPPING})
    start = time.perf_counter()
    with ThreadPoolExecutor(jobs) as pool:
        rows = list(pool.map(lambda name: survey_apart(name, limit), model_types))
    return {
        "schema": "rectilinear.architectures/1",
        "command": " ".join(["python", "benchmarks/architectures.py", *sys.argv[1:]]),
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - start, 1),
        "environment": {
            "rectilinear": rectilinear.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
        "totals": totals(rows),
        "architectures": rows,
    }


def totals(rows: list[dict[str, Any]]) -> dict[str, Any]:
    found = [row for row in rows if row["status"] == "found"]
    return {
        "known": len(rows),
        "built": sum(row["status"] != "not built" for row in rows),
        "built_from_bare_defaults": sum(row["status"] != "not built" and "completed" not in row for row in rows),
        "found": len(found),
        "found_with_expected_length": sum(row["blocks"] == row["expected"] for row in found),
        "by_rule": dict(Counter(row["rule"] for row in found)),
    }


INTRODUCTION = """\
Rectilinear finds the blocks of a decoder by structure, without a table of architectures: the module list that
is as long as the config says the text decoder is deep ("depth" below), else the one whose modules are all of
transformers' own layer class ("layer class"); in both cases the one under `get_decoder()` first. Where that
leaves none or several, it stops and lists them, and `--blocks path.to.layers` (in Python:
`blocks="path.to.layers"`) decides. This page is generated by `benchmarks/architectures.py`, which builds
every causal language model that transformers knows, at full depth, from its default config on the meta
device, and looks for the stack. It shows that the stack is found, not that every measurement of it makes
sense: see the notes at the end."""


def page(result: dict[str, Any]) -> str:
    """Write the documentation page; nothing on it comes from anywhere but the result."""
    total, versions = result["totals"], result["environment"]
    rules = ", ".join(f"{count} by {rule}" for rule, count in total["by_rule"].items())
    lines = [
        "# Architectures",
        "",
        "<!-- Written by benchmarks/architectures.py from architectures.json beside it. Do not edit. -->",
        "",
        INTRODUCTION,
        "",
        f"With transformers {versions['transformers']}, torch {versions['torch']} and rectilinear "
        f"{versions['rectilinear']}, on {result['date']}:",
        "",
        "| | |",
        "|---|---|",
        f"| architectures known to transformers | {total['known']} |",
        f"| built | {total['built']} ({total['built_from_bare_defaults']} from bare defaults) |",
        f"| block stack found | {total['found']} ({rules}) |",
        f"| of these, as long as `num_hidden_layers` | {total['found_with_expected_length']} |",
        "",
        "| model type | class | blocks at | number | block class | config says | found by |",
        "|---|---|---|---|---|---|---|",
    ]
    notes = []
    for row in result["architectures"]:
        name, model_class = row["model_type"], row.get("class", "")
        if row["status"] == "found":
            classes = ", ".join(row["block_classes"])
            cells = f"`{row['path']}` | {row['blocks']} | {classes} | {row['expected'] or ''} | {row['rule']}"
        else:
            cells = f"{row['status']} | | | {row.get('expected') or ''} |"
        lines.append(f"| {name} | {model_class} | {cells} |")
        if "completed" in row:
            notes.append(f"- {name}: defaults completed with `{json.dumps(row['completed'])}`.")
        if "note" in row:
            notes.append(f"- {name}: {row['note']}.")
        if "config_used" in row:
            notes.append(f"- {name}: built from {row['config_used']} of its config.")
        if row["status"] == "not built":
            notes.append(f"- {name}: could not be built here, `{row['error']}`")
        if row.get("distinct", 0) != row.get("blocks", 0):
            notes.append(f"- {name}: {row['blocks']} blocks, of which {row['distinct']} distinct modules.")
    return "\n".join([*lines, "", "Notes:", "", *notes, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--page-only", action="store_true", help="rewrite the page from the JSON")
    parser.add_argument("--jobs", type=int, default=2, help="architectures at a time (default 2)")
    parser.add_argument("--limit", type=float, default=60, help="seconds for one architecture (default 60)")
    arguments = parser.parse_args()
    if not arguments.page_only:
        result = survey(arguments.jobs, arguments.limit)
        RESULT.write_text(json.dumps(result, indent=1) + "\n")
    result = json.loads(RESULT.read_text())
    PAGE.write_text(page(result))
    print(json.dumps(result["totals"]))


if __name__ == "__main__":
    main()
