"""Does measuring ten times as many tokens take ten times as long, and no more memory?

`rectilinear measure` of a small decoder on texts of growing length, each in a process of its own, one thread: seconds of
the whole command and its largest resident memory.

    python benchmarks/long_texts.py MODEL TEXT
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from common import save

TOKENS = (100_000, 300_000, 1_000_000)

# Runs in a process of its own, which knows what it took.
WORK = """
import json, resource, sys, time
import rectilinear
begin = time.perf_counter()
profile = rectilinear.measure(
    sys.argv[1], sys.argv[2], rectilinear.Measurement(reuse=False), rows=rectilinear.Rows(max_tokens=int(sys.argv[3])),
    loading=rectilinear.Loading(device="cpu"), progress=False,
)
seconds = time.perf_counter() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(json.dumps({"tokens": profile.data.tokens, "seconds": seconds, "peak_bytes": peak}))
"""


def measure(model: Path, text: Path, tokens: int) -> dict[str, Any]:
    """What it takes to measure a model on so many tokens."""
    command = [sys.executable, "-c", WORK, str(model), str(text), str(tokens)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    return json.loads(done.stdout)


def main() -> None:
    model, text = map(Path, sys.argv[1:3])
    runs = [measure(model, text, tokens) for tokens in TOKENS]
    first, last = runs[0], runs[-1]
    save(
        __file__,
        __doc__.splitlines()[0],
        {
            "model": model.name,
            "runs": runs,
            "times_the_tokens": last["tokens"] / first["tokens"],
            "times_the_seconds": last["seconds"] / first["seconds"],
            "times_the_memory": last["peak_bytes"] / first["peak_bytes"],
        },
    )


if __name__ == "__main__":
    main()
