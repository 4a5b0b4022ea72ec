"""What does it take to measure and to linearize a model that does not fit in memory?

A Llama of a 7B model's shape, its weights random and in bfloat16, in one process each in a control group of 6 GiB, in
which the system's cache of files counts as well: `measure` without folds, and `linearize` of four attentions by the
first four tokens and a window of 32 of their own. Weights are read from disk a block at a time and computed with in float32.

There are no more tokens than features: the scores mean nothing, and only memory, bytes and time are of interest.

    python benchmarks/larger_than_memory.py FOLDER [measure|linearize]

FOLDER: where the model and the checkpoint are written: 41 GB. With a command that one alone is run, and what the result
has of the other stays. Control groups take the rights of root.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.utils.offload import OffloadedWeightsLoader
from common import save
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

import rectilinear
from rectilinear import CalibrationRows, Fitting, Loading, Measurement, Rows, Selection
from rectilinear.linearization.kinds import make_kind
from rectilinear.models.load import STORYTELLER, load_tokenizer

LIMIT = 6 * 2**30
BLOCKS, WIDTH = 32, 4096
INSIDE = "inside"  # in the process of one command
TOKENS, SEQ_LEN, BATCH = 4096, 512, 8
TEXT = "stories"


def main() -> None:
    folder = Path(sys.argv[1])
    if sys.argv[2:3] == [INSIDE]:
        print(json.dumps(work(folder, sys.argv[3])))
        return
    commands, earlier = sys.argv[2:] or ["measure", "linearize"], Path(__file__).with_suffix(".json")
    config = write_model(folder / "model", BLOCKS, WIDTH)
    size = sum(file.stat().st_size for file in (folder / "model").glob("*.safetensors"))
    start = time.perf_counter()
    for file in sorted((folder / "model").glob("*.safetensors")):
        with file.open("rb") as stream:
            while stream.read(2**24):
                pass
    read_once = time.perf_counter() - start
    speeds = {str(dtype).removeprefix("torch."): speed(dtype) for dtype in (torch.float32, torch.float64)}
    forward = 2 * config["parameters"] * TOKENS
    moments = 3 * 2 * WIDTH**2 * TOKENS * BLOCKS
    floor = forward / speeds["float32"] + moments / speeds["float64"]
    result = {
        "tokens": TOKENS,
        "rows": TOKENS // SEQ_LEN,
        "limit_bytes": LIMIT,
        "model": {**config, "bytes": size},
        "seconds_to_read_once": read_once,
        "flops": {"forward": forward, "moments": moments, "a_second": speeds},
        "floor_seconds": {"read": read_once, "forward_and_moments": floor},
        "runs": json.loads(earlier.read_text())["runs"] if sys.argv[2:] else {},
    }
    for command in commands:
        result["runs"][command] = within(LIMIT, folder, command)
        save(__file__, __doc__.splitlines()[0], result, show=False)


def within(limit: int, folder: Path, command: str) -> dict[str, Any]:
    """What a command took in a process of its own, in a control group."""
    with control_group(limit) as group:
        enter = ["sh", "-c", f'echo $$ > {group}/cgroup.procs; exec "$@"', "sh"]
        line = [*enter, sys.executable, __file__, str(folder), INSIDE, command]
        run = subprocess.run(line, stdout=subprocess.PIPE, check=True)
    return json.loads(run.stdout.splitlines()[-1])


@contextmanager
def control_group(limit: int) -> Iterator[Path]:
    """A control group below that of this process, whose memory is limited."""
    lines = [line.split(":", 2) for line in Path("/proc/self/cgroup").read_text().splitlines()]
    places = [(Path("/sys/fs/cgroup/memory"), own) for _, kind, own in lines if kind == "memory"]
    root, own = (places or [(Path("/sys/fs/cgroup"), own) for _, kind, own in lines if not kind])[0]
    group = root / own.lstrip("/") / "rectilinear"
    group.mkdir()
    try:
        (group / ("memory.limit_in_bytes" if places else "memory.max")).write_text(str(limit))
        yield group
    finally:
        group.rmdir()


def write_model(folder: Path, blocks: int, width: int) -> dict[str, Any]:
    """A checkpoint of random weights, written a block at a time."""
    config = LlamaConfig(
        vocab_size=32000,
        hidden_size=width,
        intermediate_size=width * 43 // 16,
        num_hidden_layers=blocks,
        num_attention_heads=width // 128,
        num_key_value_heads=width // 128,
        max_position_embeddings=4096,
        dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in LlamaForCausalLM(config).state_dict().items()}
    facts = {"blocks": blocks, "width": width, "parameters": sum(shape.numel() for shape in shapes.values())}
    if (folder / "model.safetensors.index.json").exists():
        return facts
    folder.mkdir(parents=True, exist_ok=True)
    generator, weight_map = torch.Generator().manual_seed(0), {}
    parts: dict[str, list[str]] = {}
    for name in shapes:
        layer = name.split(".")[2] if ".layers." in name else "rest"
        parts.setdefault(f"model-{layer}.safetensors", []).append(name)
    for file, names in parts.items():
        tensors = {}
        for name in names:
            noise = torch.randn(shapes[name], generator=generator)
            tensors[name] = (noise / shapes[name][-1] ** 0.5 if noise.ndim > 1 else noise * 0.1 + 1).bfloat16()
        save_file(tensors, folder / file, {"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    config.save_pretrained(folder)
    load_tokenizer(STORYTELLER).save_pretrained(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return facts


def speed(dtype: torch.dtype) -> float:
    """Floating-point operations a second in a product of two matrices."""
    one, times = torch.randn(2048, 2048, dtype=dtype), []
    for _ in range(5):
        start = time.perf_counter()
        one @ one
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def work(folder: Path, command: str) -> dict[str, Any]:
    """One command: how long it took, what it read, and the most memory of its own that it had."""
    counts, peak, done = {"bytes": 0, "weights": 0}, [0], threading.Event()
    own = OffloadedWeightsLoader.__getitem__

    def read(self: Any, key: str) -> torch.Tensor:
        tensor: torch.Tensor = own(self, key)
        counts["bytes"] += tensor.numel() * 2  # as they are on disk
        counts["weights"] += 1
        return tensor

    def watch() -> None:
        while not done.wait(0.05):
            status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
            peak[0] = max(peak[0], int(status["RssAnon"].split()[0]) * 1024)

    OffloadedWeightsLoader.__getitem__ = read
    threading.Thread(target=watch, daemon=True).start()
    loading, start, stages = Loading(device="cpu", dtype="float32"), time.perf_counter(), {}

    def progress(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage.split(" of ")[0], round(time.perf_counter() - start, 1))

    if command == "measure":
        rows = Rows(max_tokens=TOKENS, seq_len=SEQ_LEN)
        rectilinear.measure(
            folder / "model",
            TEXT,
            Measurement(folds=1, reuse=False),
            rows=rows,
            loading=loading,
            batch_size=BATCH,
            progress=progress,
        )
    else:
        rectilinear.linearize(
            folder / "model",
            TEXT,
            make_kind("bounded", {"window": 32, "sinks": 4, "far": "none", "uniform": True}),
            Selection(target="attention", blocks="0-3"),
            rows=CalibrationRows(max_tokens=TOKENS, seq_len=SEQ_LEN),
            loading=loading,
            fitting=Fitting(folds=1),
            batch_size=BATCH,
            out=folder / "linearized",
            overwrite=True,
            progress=progress,
        )
    seconds = time.perf_counter() - start
    done.set()
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "seconds": seconds,
        "processor_seconds": usage.ru_utime + usage.ru_stime,
        "bytes_of_weights_read": counts["bytes"],
        "peak_anonymous_bytes": peak[0],
        "stages_began": stages,
    }


if __name__ == "__main__":
    main()
