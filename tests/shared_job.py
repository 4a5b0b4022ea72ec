"""What the processes of a job do in tests/test_ranks.py, started by torchrun or, for one process, by itself.

python -m tests.shared_job MODEL TEXT TASKS OUT
"""

import json
import sys
from pathlib import Path

import pytest
import torch

import rectilinear
from rectilinear import Loading, Measurement, Rows
from rectilinear.errors import JobError
from rectilinear.ranks import sharing
from tests.conftest import linearize

torch.set_num_threads(1)


def results(model, text, tasks):
    """Everything whose rows are shared, by name, as JSON has it."""
    rows = {"rows": Rows(max_tokens=1500, seq_len=32), "progress": False}
    everything = Measurement(target="block,attention,mlp", pairs=True)
    yield "by document", rectilinear.measure(model, text, everything, **rows)
    for stream in (True, False):
        yield f"by half, {stream=}", rectilinear.measure(model, ids(), loading=Loading(stream=stream), progress=False)
    yield "masked", rectilinear.measure(model, masked(), batch_size=1, progress=False)
    yield "few batches", rectilinear.measure(model, ids()[:3], Measurement(folds=2), batch_size=2, progress=False)
    yield "dynamics", rectilinear.dynamics([model], text, **rows)
    common = {"max_tokens": 1500, "seq_len": 32, "batch_size": 4, "progress": False}
    for name, options in (
        ("named", {"kind": "affine", "blocks": [0, 2], "target": "attention"}),
        ("scored", {"kind": "filter", "rank": 2, "count": 1}),
        ("tried", {"kind": "affine", "count": 1, "select": "loss", "target": "mlp"}),
    ):
        edited = linearize(model, text, **options, **common)
        yield f"linearize, {name}", edited.plan
        yield f"weights, {name}", {key: value.double().sum().item() for key, value in edited.model.state_dict().items()}
    evaluating = rectilinear.Evaluating(tasks="cb,copa", data=str(tasks), speed=False, batch_size=2)
    yield "evaluate", rectilinear.evaluate(model, text, evaluating, **rows)


def ids():
    return torch.randint(5, 120, (13, 32), generator=torch.Generator().manual_seed(0))


def masked():
    mask = torch.ones(13, 32, dtype=torch.long)
    mask[::2, 20:] = 0
    return [
        {"input_ids": ids()[part], "attention_mask": mask[part]} for part in (slice(0, 6), slice(6, 7), slice(7, 13))
    ]


def main():
    model, text, tasks, out = sys.argv[1:]
    with sharing() as ranks:
        found = dict(results(model, text, tasks))
        written = {
            name: json.loads(each.to_json()) if hasattr(each, "to_json") else each for name, each in found.items()
        }
        everywhere = ranks.gather(json.dumps(written, sort_keys=True))
        if ranks.is_first:
            assert len({*everywhere}) == 1, "not all processes have the same results"
            Path(out).write_text(json.dumps(written))
        if ranks.count > 1:
            failing(ranks)
    with sharing() as again:  # as often as one likes
        assert again.gather(again.rank) == [*range(again.count)]
    print("done")


def failing(ranks):
    """What fails in one process fails in all of them, before any waits for another."""

    def fail():
        if ranks.rank == 1:
            raise JobError("it is wet")

    said = "it is wet" if ranks.rank == 1 else "stopped, as process 1 failed: it is wet"
    with pytest.raises(JobError, match=f"^{said}$"):
        ranks.together(fail)


if __name__ == "__main__":
    main()
