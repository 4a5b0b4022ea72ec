"""How much sooner is a measurement done by two processes than by one?

`rectilinear measure` of a decoder that people use, started by torchrun with one process and with two, of one thread
each, in turns; seconds of the measurement itself, loading and libraries left out.

    python benchmarks/processes.py MODEL TEXT [TOKENS]
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import save, spread

PROCESSES, REPEATS = (1, 2), 3


def work() -> None:
    """What each process does; the first one says how long it took."""
    import time

    import torch

    import rectilinear
    from rectilinear.measurement.inputs import read_inputs
    from rectilinear.measurement.measure import profile_model
    from rectilinear.models.origin import Origin

    torch.set_num_threads(1)
    model, text, tokens = sys.argv[2:5]
    measurement = rectilinear.Measurement(reuse=False)
    with rectilinear.sharing() as ranks:
        origin = Origin(model, rectilinear.Loading(device="cpu", dtype="float32"), None)
        inputs = read_inputs(origin, text, rectilinear.Rows(max_tokens=int(tokens), seq_len=512))
        ranks.gather(None)
        begin = time.perf_counter()
        profile = profile_model(origin, inputs, measurement, 4, lambda *_: None)
        if ranks.is_first:
            scores = [block.update_linearity.in_sample for block in profile.blocks]
            print(json.dumps({"seconds": time.perf_counter() - begin, "scores": scores}))


def run(processes: int, arguments: list[str]) -> dict[str, Any]:
    """One measurement."""
    start = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        f"--nproc-per-node={processes}",
        __file__,
        "work",
        *arguments,
    ]
    done = subprocess.run(start, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    if sys.argv[1:2] == ["work"]:
        work()
        return
    arguments = [*sys.argv[1:], "16384"][:3]
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in PROCESSES}
    for _ in range(REPEATS):
        for count, runs in found.items():
            runs.append(run(count, arguments))
    one, two = (runs[0]["scores"] for runs in found.values())
    seconds = {count: [each["seconds"] for each in runs] for count, runs in found.items()}
    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "model": Path(arguments[0]).name,
            "tokens": int(arguments[2]),
            "seconds": {str(count): spread(times) for count, times in seconds.items()},
            "speedup": statistics.median(a / b for a, b in zip(seconds[1], seconds[2], strict=True)),
            "largest_difference": max(abs(a - b) for a, b in zip(one, two, strict=True)),
        },
    )


if __name__ == "__main__":
    main()
