"""Write docs/scale.md: what measuring and linearizing take, by formula, beside what was measured.

python benchmarks/scale_page.py
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

from page import table

from rectilinear.core.block_moments import bytes_of_moments

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "scale.md"

#: Blocks, width and parameters of decoders of some sizes.
SHAPES = {"8B": (32, 4096, 8.0e9), "70B": (80, 8192, 70.6e9), "405B": (126, 16384, 405.9e9)}
FOLDS, ENOUGH = 4, 20

BEGIN = """# Large models and long texts

Rows can go through a model block by block: all of them through the first block, then all of them through the second. The hidden states of all rows
wait between two blocks, in memory up to 64 MiB, else in files that have no name and are gone with the process (in the folder for temporary
files, which `TMPDIR` names; on a `tmpfs` that is memory). So the moments of one block are in memory at a time, whatever the depth.

- `linearize` always does so, with the rows going through the original and through the edited model side by side: it costs about two forward passes however
  many blocks it replaces.
- `measure` and `dynamics` do so where the model is left on disk, where the moments of all blocks would take more than half of the memory that is free, and
  where it takes more than some minutes: a run that was stopped then goes on at its block. Else all blocks are measured in one pass.
- `evaluate` does so for the perplexity of a model that is left on disk.

**A model that does not fit in memory** is left on disk: the weights of a block are read as its turn comes, once for all rows, and a few times more for short
passes that try out how the model is built. A command leaves them there by itself where they would take more memory than is free (of the machine, of a control
group, of a limit); `--stream` makes it do so, `--no-stream` makes it load everything. Causal language models with weights of their own can be left on disk; halves of
encoder-decoders, adapters and GGUF files cannot. What is not said above works too, but reads all weights for each pass. `linearize` writes such a checkpoint in files
of 1 GB and compares it in a fresh process that leaves it on disk as well.

The model's own forward runs all of it: in a pass that begins at a block, the blocks before it hand over the states that were kept. Whether
that gives what a whole pass gives is tried on a few tokens first. Models whose blocks look further back than to the block before are run in whole
passes, and a warning says so where that was asked for.

**What was measured is found again**: the scores of each block are kept in `~/.cache/rectilinear` (`RECTILINEAR_CACHE` names another folder), some kilobytes a
block, at most 1,000 measurements, those that were not used for longest going first. They are found by the hash of weights, configuration, tokens, settings,
batch size, device, precision, threads, versions and the code of this package. `--no-reuse` measures anew and keeps nothing; to clear it, remove the folder.
Models and modules that are in memory, models with code of their own, and batches that are no rows of text are always measured.

`measure`, `linearize` and `evaluate` say on a terminal, before they start, what they need (weights, moments, hidden states, operations), and refuse what cannot fit,
with the option that would; an estimate of the time that is left stands beside the bar from the first batch on.

## Several processes

    torchrun --nproc-per-node 4 -m rectilinear measure MODEL --text TEXT --out measured
    accelerate launch -m rectilinear linearize MODEL --text TEXT --blocks 2-4 --out smaller

`measure`, `dynamics`, `linearize`, `evaluate` and `finetune` share their work among the processes of a job, one a GPU where there are GPUs; so does `pretrain`
([training.md](training.md)). Each process loads the model and runs some of the rows, and beside its own those that rows of its own are paired with; moments are
added up over gloo, block by block at another process, which scores it. What the rows are is decided as by a single process, so that the scores are the same
but for the order of sums: in float64 to 1e-9. The first process alone writes and prints; where one fails or is killed, all end. torchrun exits with 1 then, whatever
the processes did, and prints a report of its own below their lines.

- Each process takes its part of the memory that a machine has free, and needs as much for moments as a single one.
- `--pairs` and the timing of `evaluate` are left to the first process; `--heal-steps` takes a single one.
- `finetune` splits `--batch-size` among processes (DDP).
- In Python: `with rectilinear.sharing(): profile = rectilinear.measure(...)` in each process, which all get the result. Without it every process does all of the
  work by itself.
- Tested on the CPUs of one machine with two and three processes, started by torchrun and by accelerate; nothing on GPUs yet.

## Memory and time by formula

For `L` blocks of width `p` with `N` parameters, `n` tokens and `K` folds:

| | in one pass | block by block |
|---|---|---|
| weights | all | all; on disk, one block's and what is not in blocks |
| moments, at most | `16 p² (2K + 1) L` bytes | `16 p² (2K + 1)` bytes |
| hidden states | a batch's | `n p` numbers, above 64 MiB in a file |
| operations | `2 N n + 6 p² n L` | the same |

Moments are half of that where no token is an attention sink. Products are of float64 unless float32 is accurate enough, at half the
speed; solves add about `4.4 p³ (K + 1)` operations a block, twice where there are sinks, whatever the number of tokens.
"""

END = """
Scores of fewer than 20 tokens a feature are biased; the table takes as many. A GPU has not been tried yet.
"""


def page() -> str:
    """The page."""
    rows = [shape(name, *facts) for name, facts in SHAPES.items()]
    heads = ["", "tokens", "moments, one pass", "moments, by block", "hidden states", "forward", "moments", "a block"]
    parts = [BEGIN, "By these, in bfloat16, 4 folds and sinks everywhere:\n", table(heads, rows), END]
    sections = {
        "walk": about_walk,
        "larger_than_memory": about_larger,
        "long_texts": about_long,
        "processes": about_processes,
    }
    parts += [about(result) for name, about in sections.items() if (result := load(name))]
    return "\n".join(parts).rstrip() + "\n"


def load(name: str) -> dict[str, Any] | None:
    """A result of a benchmark, if it is there."""
    file = HERE / f"{name}.json"
    return json.loads(file.read_text()) if file.exists() else None


def shape(name: str, blocks: int, width: int, parameters: float) -> list[str]:
    """What a decoder of some shape takes, 20 tokens a feature."""
    tokens, of_block = ENOUGH * width, bytes_of_moments(width, FOLDS)
    return [
        f"{name}: {blocks} x {width:,}",
        f"{tokens:,}",
        f"{of_block * blocks / 1e9:,.0f} GB",
        f"{of_block / 1e9:,.1f} GB",
        f"{2 * tokens * width / 1e9:,.1f} GB",
        f"{2 * parameters * tokens / 1e15:,.2f} PFLOP",
        f"{6 * width**2 * tokens * blocks / 1e15:,.2f} PFLOP",
        f"{2 * parameters / blocks / 1e9:,.2f} GB",
    ]


def about_walk(result: dict[str, Any]) -> str:
    """How many forward passes all attentions of a real decoder take."""
    loss = result["loss"]
    return (
        "## Every attention of SmolLM2-135M\n\n"
        f"`{result['command']}`, {result['date']}, {result['machine']['processor']}, one thread: all 30 attentions by affine maps on "
        f"{result['tokens']:,} tokens took {result['linearize_seconds']:,.0f} s, {result['ratio']:.2f} forward passes of the base model over "
        f"the same rows ({result['forward_seconds']:,.0f} s; n = 1, other work on the second core). The target is {result['target_ratio']:g}. "
        f"{result['floor']} (It is no model to use: the loss on {loss['tokens']:,} held-out tokens rose from {loss['before']:.3f} to "
        f"{loss['after']:.3f} nats.)\n"
    )


def about_larger(result: dict[str, Any]) -> str:
    """What a model that does not fit in memory takes."""
    model, floor = result["model"], result["floor_seconds"]
    commands = {
        "measure": "`measure` without folds",
        "linearize": "`linearize` of the first four attentions by their first 4 tokens and a window of 32",
    }
    what = ", and ".join(commands[name] for name in result["runs"])
    rows = [
        [
            name,
            f"{run['seconds'] / 60:,.0f} min",
            f"{run['bytes_of_weights_read'] / 1e9:,.0f} GB",
            f"{run['peak_anonymous_bytes'] / 2**30:.2f} GiB",
        ]
        for name, run in result["runs"].items()
    ]
    return "\n".join(
        [
            "## Larger than memory\n",
            f"`{result['command']}`, {result['date']}, {result['machine']['processor']}, one thread, other jobs on the machine, n = 1: a Llama of "
            f"{model['blocks']} blocks of width {model['width']:,} ({model['parameters'] / 1e9:.2f} billion random parameters, {model['bytes'] / 1e9:.1f} GB in bfloat16, "
            f"computed with in float32) within a control group of {result['limit_bytes'] / 2**30:.0f} GiB, on {result['tokens']:,} tokens: "
            f"{what}. There are no more tokens than features, so that the scores mean nothing.\n",
            table(["", "time", "weights read", "memory of its own, at most"], rows),
            f"\nReading the file once took {floor['read']:,.0f} s; a forward pass and the moments of all blocks are {floor['forward_and_moments'] / 60:,.0f} min by arithmetic at the speed "
            "that products of two matrices had there; `measure` then takes eigenvalues of a rank-deficient matrix of that width for each block. Beside the walk, "
            "weights are read for their hash, and for short passes that try out how the model is built, whether it decodes, and whether passes can be resumed.\n",
        ]
    )


def about_long(result: dict[str, Any]) -> str:
    """What longer texts take."""
    runs = result["runs"]
    rates = [
        (later["seconds"] - earlier["seconds"]) / (later["tokens"] - earlier["tokens"]) * 1e6
        for earlier, later in pairwise(runs)
    ]
    rows = [[f"{run['tokens']:,}", f"{run['seconds']:.1f} s", f"{run['peak_bytes'] / 2**20:,.0f} MiB"] for run in runs]
    return "\n".join(
        [
            "## Long texts\n",
            f"`{result['command']}`, {result['date']}, {result['machine']['processor']}, one thread, other jobs on the machine, n = 1: `measure` of "
            f"{result['model']}, libraries and tokenisation included.\n",
            table(["tokens", "time", "resident memory, at most"], rows),
            f"\nTime grows by {' and '.join(f'{rate:.0f} µs' for rate in rates)} a token from one row to the next; what memory grows by is the token ids.\n",
        ]
    )


def about_processes(result: dict[str, Any]) -> str:
    """What a second process is worth."""
    one, two = (result["seconds"][count] for count in ("1", "2"))
    return (
        "## Two processes\n\n"
        f"`{result['command']}`, {result['date']}, {result['machine']['processor']}, two cores: `measure` of {result['model']} on {result['tokens']:,} "
        f"tokens took {one['median']:.0f} s ({one['min']:.0f} to {one['max']:.0f}) in one process and {two['median']:.0f} s ({two['min']:.0f} to "
        f"{two['max']:.0f}) in two, of one thread each: {result['speedup']:.2f} times as fast (median of n = {one['n']} pairs). Scores of updates differed by "
        f"{result['largest_difference']:.1g} at most.\n"
    )


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
    print(f"wrote {PAGE}")
