"""What do measuring and replacing cost on an accelerator, at the shape of a 7B model?

One process, at most eight minutes; nothing is downloaded. A Llama of 32 blocks of width 4,096 with random weights is
built on the device in bfloat16. First scores of a small model are checked against a least-squares solution in float64 of
the very states that the device computed. Then, in turns: a plain forward pass of the base model, and a full profile with
products as by default, in float32 and in float64; what one block's solves take; and `linearize` of two attentions.
Whatever is done when the time is up is kept.

    python benchmarks/gpu.py            # the first accelerator; its table comes last
    python benchmarks/gpu.py tiny       # a small shape, wherever it runs, to try the script out
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from common import save, spread
from transformers import LlamaConfig, LlamaForCausalLM

import rectilinear
from rectilinear.core.block_moments import BlockAccumulator
from rectilinear.core.scores import score_block
from rectilinear.models.capture import capture_blocks

LIMIT, REPEATS = 480.0, 5
LARGE = {"blocks": 32, "width": 4096, "inner": 11008, "heads": 32, "tokens": 16_384, "seq_len": 2048, "batch": 4}
TINY = {"blocks": 3, "width": 64, "inner": 128, "heads": 4, "tokens": 2048, "seq_len": 128, "batch": 4}
BEGAN = time.perf_counter()


def main() -> None:
    tiny = sys.argv[1:2] == ["tiny"]
    device = torch.device("cpu") if tiny and not torch.cuda.is_available() else torch.device("cuda")
    shape = TINY if tiny else LARGE
    found: dict[str, Any] = {"device": name_of(device), "shape": shape, "target_ratio": 1.15}
    for section in (check, speeds, profiles, solves, replacements):
        if time.perf_counter() - BEGAN > LIMIT:
            found.setdefault("left_out", []).append(section.__name__)
            continue
        try:
            found[section.__name__] = section(device, shape)
        except (RuntimeError, rectilinear.JobError) as error:  # the others may go
            found[section.__name__] = {"failed": str(error).splitlines()[0]}
        print(section.__name__, found[section.__name__], file=sys.stderr, flush=True)
    found["seconds"] = time.perf_counter() - BEGAN
    if not tiny:
        save(__file__, __doc__.splitlines()[0], found, show=False)
    table(found)


def name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"


def build(
    device: torch.device, blocks: int, width: int, inner: int, heads: int, dtype: torch.dtype
) -> LlamaForCausalLM:
    """A Llama of random weights, made where it is to be."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=4_096,
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=4_096,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)


def random_ids(tokens: int, seq_len: int) -> torch.Tensor:
    return torch.randint(4_096, (tokens // seq_len, seq_len), generator=torch.Generator().manual_seed(0))


@contextmanager
def timing(device: torch.device, seconds: list[float]) -> Iterator[None]:
    """Add what passes until the device is done."""
    wait(device)
    start = time.perf_counter()
    yield
    wait(device)
    seconds.append(time.perf_counter() - start)


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check(device: torch.device, shape: dict[str, int]) -> dict[str, Any]:
    """Scores in sample of four blocks of width 256, against least squares in float64 of the states themselves."""
    model, ids = build(device, 4, 256, 512, 4, torch.float32), random_ids(8192, 256)
    states: dict[int, list[torch.Tensor]] = {}

    def note(index: int, x: torch.Tensor, y: torch.Tensor) -> None:
        states.setdefault(index, []).append(torch.stack([x, y]).flatten(1, 2).double().cpu())

    with torch.no_grad(), capture_blocks(rectilinear.find_blocks(model).blocks, note):
        for batch in ids.split(8):
            model.model(batch.to(device), use_cache=False)
    profile = rectilinear.measure(model, ids, batch_size=8, progress=False)
    worst = 0.0
    for block in profile.blocks:
        x, y = torch.cat(states[block.index], 1)
        x, d = x - x.mean(0), (y - x) - (y - x).mean(0)
        residual = d - x @ torch.linalg.lstsq(x, d).solution
        exact = 1 - float(residual.square().sum() / d.square().sum())
        worst = max(worst, abs(exact - block.update_linearity.in_sample))
    return {"largest_difference": worst, "is_right": worst < 1e-6}


def speeds(device: torch.device, shape: dict[str, int]) -> dict[str, float]:
    """TFLOP/s of products of two square matrices as wide as the model."""
    found = {}
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        one = torch.randn(shape["width"], shape["width"], device=device).to(dtype)
        seconds: list[float] = []
        for _ in range(4):
            with timing(device, seconds):
                one @ one
        found[str(dtype).removeprefix("torch.")] = 2 * shape["width"] ** 3 / min(seconds) / 1e12
    return found


def large(device: torch.device, shape: dict[str, int]) -> tuple[LlamaForCausalLM, torch.Tensor]:
    sizes = (shape[name] for name in ("blocks", "width", "inner", "heads"))
    return build(device, *sizes, torch.bfloat16), random_ids(shape["tokens"], shape["seq_len"])


def profiles(device: torch.device, shape: dict[str, int]) -> dict[str, Any]:
    """Profiles over the plain passes right before and after them."""
    model, ids = large(device, shape)

    def forward() -> None:
        with torch.no_grad():
            for batch in ids.split(shape["batch"]):
                model.model(batch.to(device), use_cache=False)

    def profile(products: Any) -> None:
        measurement = rectilinear.Measurement(products=products)
        rectilinear.measure(model, ids, measurement, batch_size=shape["batch"], progress=False)

    forward()
    found: dict[str, Any] = {}
    ways = ("auto", "float32", "float64")
    plain: list[float] = []
    full: dict[str, list[float]] = {way: [] for way in ways}
    ratios: dict[str, list[float]] = {way: [] for way in ways}
    peaks: dict[str, int] = {}
    for _ in range(REPEATS):
        for way in ways:
            if time.perf_counter() - BEGAN > LIMIT * 0.7 and ratios[way]:
                continue
            with timing(device, plain):
                forward()
            peaks[way] = max(peaks.get(way, 0), peak(device, full[way], lambda way=way: profile(way)))
            with timing(device, plain):
                forward()
            ratios[way].append(full[way][-1] / statistics.mean(plain[-2:]))
    found["forward_seconds"] = spread(plain)
    for way in ways:
        found[way] = {"ratio": spread(ratios[way]), "seconds": spread(full[way]), "peak_bytes": peaks[way]}
    return found


def peak(device: torch.device, seconds: list[float], act: Callable[[], None]) -> int:
    """Run something, note its time, and return the most memory of the device that was taken meanwhile."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with timing(device, seconds):
        act()
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else 0


def solves(device: torch.device, shape: dict[str, int]) -> dict[str, Any]:
    """What scoring one block of the model's width takes, four folds and no sinks."""
    accumulator, width = BlockAccumulator(4, products=torch.float32), shape["width"]
    for fold in range(4):
        x = torch.randn(2 * width, width, device=device)
        accumulator.update(x, x + torch.tanh(x), fold)
    moments, seconds = accumulator.freeze().to(device), list[float]()
    for _ in range(2):
        with timing(device, seconds):
            score_block(moments)
    return {"seconds_a_block": min(seconds)}


def replacements(device: torch.device, shape: dict[str, int]) -> dict[str, Any]:
    """Two attentions in the middle by affine maps, on half of the tokens, over one plain pass on as many."""
    from transformers import PreTrainedTokenizerFast

    model, ids = large(device, shape)
    del ids
    tokenizer: PreTrainedTokenizerFast = rectilinear.models.load.load_tokenizer("storyteller")
    tokens, middle, seconds = shape["tokens"] // 2, shape["blocks"] // 2, list[float]()
    reading = rectilinear.CalibrationRows(max_tokens=tokens, seq_len=shape["seq_len"])
    selection = rectilinear.Selection(target="attention", blocks=(middle - 1, middle))
    with timing(device, seconds):
        rectilinear.linearize(
            model, "stories", rectilinear.Affine(), selection, rows=reading, tokenizer=tokenizer, progress=False
        )
    return {"tokens": tokens, "seconds": seconds[0]}


def table(found: dict[str, Any]) -> None:
    """The figures, a line each."""
    print(f"{found['device']}, {found['shape']}, {found['seconds']:.0f} s in all")
    for section in ("check", "speeds", "profiles", "solves", "replacements"):
        for name, value in (found.get(section) or {"": "left out"}).items():
            if isinstance(value, dict) and "ratio" in value:
                ratio, seconds = value["ratio"], value["seconds"]
                value = (
                    f"{ratio['median']:.3f} times a forward pass ({ratio['min']:.3f} to {ratio['max']:.3f}, n = {ratio['n']}; target "
                    f"{found['target_ratio']}), {seconds['median']:.2f} s, {value['peak_bytes'] / 2**30:.1f} GiB at most"
                )
            elif isinstance(value, dict):
                value = f"{value['median']:.3f} ({value['min']:.3f} to {value['max']:.3f}, n = {value['n']})"
            print(f"{section:>14} {name:<20} {value}")


if __name__ == "__main__":
    main()
