"""What the benchmarks share: the model they time, and how a result is kept."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import rectilinear
from rectilinear.linearization.kinds import make_kind

SEQ_LEN = 256


def gpt2_small_shape() -> GPT2LMHeadModel:
    """GPT-2 small's shape (12 blocks of width 768), random weights, float32."""
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)).eval()


def wide_llama(blocks: int, context: int, key_value_heads: int = 16) -> LlamaForCausalLM:
    """A Llama of width 1,024 with 16 heads, random weights, float32, whose texts may be twice a context."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4_096,
        hidden_size=1_024,
        intermediate_size=2_816,
        num_hidden_layers=blocks,
        num_attention_heads=16,
        num_key_value_heads=key_value_heads,
        max_position_embeddings=2 * context,
    )
    return LlamaForCausalLM(config).eval()


def random_rows(tokens: int, vocabulary: int = 50257) -> torch.Tensor:
    """Rows of random token ids, ``[tokens // 256, 256]``."""
    return torch.randint(vocabulary, (tokens // SEQ_LEN, SEQ_LEN), generator=torch.Generator().manual_seed(0))


def seconds(function: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def spread(values: list[float]) -> dict[str, Any]:
    """Median, extremes and number of some measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values), "n": len(values)}


def command_line() -> str:
    """The command that runs."""
    return _without_places(" ".join(["python", "benchmarks/" + Path(sys.argv[0]).name, *sys.argv[1:]]))


def _without_places(text: str) -> str:
    """Test material is named by ``$RECTILINEAR_SHARED``, wherever it is."""
    shared = os.environ.get("RECTILINEAR_SHARED")
    return text.replace(shared, "$RECTILINEAR_SHARED") if shared else text


def linearize(model: str, calibration: str, tokens: int, options: dict[str, Any]) -> rectilinear.Linearized:
    """`rectilinear.linearize` on some tokens, with the options of its settings side by side."""
    selection, fitting = (
        settings(**{name: options[name] for name in options.keys() & settings.model_fields.keys()})
        for settings in (rectilinear.Selection, rectilinear.Fitting)
    )
    others = options.keys() - selection.model_fields_set - fitting.model_fields_set - {"kind"}
    kind = make_kind(options["kind"], {name: options[name] for name in others})
    rows = rectilinear.CalibrationRows(max_tokens=tokens, seq_len=SEQ_LEN)
    return rectilinear.linearize(model, calibration, kind, selection, rows=rows, fitting=fitting, batch_size=16)


def peak_memory_bytes() -> int:
    """Largest resident size of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def save(script: str, question: str, result: dict[str, Any], command: str | None = None, show: bool = True) -> None:
    """Write ``NAME.json`` beside ``NAME.py``; ``command`` is what made it, where that is not this process's own."""
    processor = next(
        (line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    record = {
        "question": question,
        "command": command or f"python benchmarks/{Path(script).name}" + "".join(f" {word}" for word in sys.argv[1:]),
        "date": date.today().isoformat(),
        "versions": {
            "rectilinear": rectilinear.__version__,
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "python": platform.python_version(),
        },
        "machine": {"processor": processor, "threads": torch.get_num_threads()},
        **result,
    }
    path = Path(script).with_suffix(".json")
    path.write_text(_without_places(json.dumps(record, indent=2)) + "\n", encoding="utf-8")
    if show:
        print(json.dumps(result, indent=2))
        print(f"wrote {path}")


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
