"""Try every causal language model type of transformers and write down what can be done with it.

python -m tests.matrix FILE.json [TYPE ...] [--processes N]
"""

import argparse
import json
import tempfile
import time
from datetime import date
from multiprocessing import get_context
from pathlib import Path
from unittest import mock

import torch
import transformers

import rectilinear
from tests.matrix.configurations import TYPES
from tests.matrix.trial import try_type


def main():
    """Run the matrix."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("types", nargs="*")
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    found, start = {}, time.perf_counter()
    # Code of checkpoints is copied before it is imported: not into the user's cache.
    with (
        tempfile.TemporaryDirectory() as modules,
        mock.patch("transformers.dynamic_module_utils.HF_MODULES_CACHE", modules),
        get_context("fork").Pool(arguments.processes, maxtasksperchild=4) as pool,
    ):
        for name, answers in pool.imap_unordered(try_type, arguments.types or TYPES):
            found[name] = answers
            statuses = {key: value["status"] for key, value in answers["answers"].items()}
            marks = " ".join(f"{key}:{status}" for key, status in statuses.items() if status != "ok")
            print(f"{name:26s}{answers['seconds']:6.1f} s  {marks or 'ok'}", flush=True)
    versions = {library.__name__: library.__version__ for library in (rectilinear, torch, transformers)}
    result = {
        "schema": "rectilinear.architectures/2",
        "command": f"python -m tests.matrix {arguments.file}",
        "date": date.today().isoformat(),
        "seconds": round(time.perf_counter() - start),
        "environment": versions,
        "types": dict(sorted(found.items())),
    }
    arguments.file.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
