"""What the processes of a job do in tests/test_ranks.py, started by torchrun or, for one process, by itself.

python -m tests.shared_job MODEL TEXT TASKS OUT
"""

import json
import pkgutil
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

import rectilinear
from rectilinear import Loading, Measurement, Rows
from rectilinear.errors import JobError
from rectilinear.ranks import current, in_step, sharing
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
        ("bounded", {"kind": "bounded", "blocks": [0, 2], "target": "attention", "window": 3, "centroids": 2}),
        ("tried", {"kind": "affine", "count": 1, "select": "loss", "target": "mlp"}),
        ("chosen", {"choices": "affine,drop", "budget": "parameters=90%", "sweep": "parameters=80%", "rounds": 2}),
    ):
        edited = linearize(model, text, **options, **common)
        yield f"linearize, {name}", edited.plan
        yield f"weights, {name}", {key: value.double().sum().item() for key, value in edited.model.state_dict().items()}
    few = linearize(model, text, kind="affine", blocks=[1], max_tokens=200, seq_len=32, progress=False)
    yield "fewer batches than processes", few.plan
    some = {"kind": "affine", "count": 1, "target": "mlp", "select": "divergence", "max_tokens": 200, "seq_len": 32}
    yield "fewer batches to compare on", linearize(model, text, **some, progress=False).plan
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
        if ranks.count == 2:
            timed(ranks, model, text)
            unlike(ranks, model, text)
    with sharing() as again:  # as often as one likes
        assert again.gather(again.rank) == [*range(again.count)]
    print("done")


def failing(ranks):
    """What fails in one process fails in all of them, before any waits for another."""

    def fail():
        if ranks.rank == 1:
            raise JobError("it is wet")

    said = "it is wet" if ranks.rank == 1 else "stopped, as process 1 failed: it is wet"
    with pytest.raises(JobError, match=f"^{said}"):
        in_step(fail)()


def timed(ranks, model, text):
    """Times, which differ between processes, are those of the first: all choose the same."""
    size = {"max_tokens": 1500, "seq_len": 32, "batch_size": 4, "progress": False}
    budget = {"budget": "decoding=98%", "budget_tokens": 30, "sweep": "decoding=99%"}
    plan = linearize(model, text, choices="drop,affine", **budget, **size).plan
    assert len({*ranks.gather(plan.to_json())}) == 1


def unlike(ranks, model, text):
    """What differs between processes, or fails in one of them, leaves all in step: same numbers, or the same error."""

    def measure(**options):
        return rectilinear.measure(model, ids(), progress=False, **options)

    def edited():
        common = {"max_tokens": 1500, "seq_len": 32, "progress": False}
        return linearize(model, text, kind="affine", blocks=[1], target="attention", **common).plan

    usual, plan = measure(), edited()
    # What the first decides for all, it decides by its part of the memory.
    assert ranks.from_first(lambda: (current().count, current().here)) == (1, ranks.count)
    with only(ranks.rank == 1, "rectilinear.models.offload.available_memory", lambda: 1000):
        same(measure(), usual)
        same(edited(), plan)
    with only(ranks.rank == 1, "rectilinear.models.walk._why_not", lambda *args: "a reason"):
        streamed = measure(loading=Loading(stream=True))
        assert "a reason" in streamed.warnings[-1]
        same(streamed, usual)
        same(edited(), plan)
    for rank in range(ranks.count):
        for name in ("measurement.kept.score_block", "core.block_moments.BlockMoments.from_tensors"):
            with only(ranks.rank == rank, f"rectilinear.{name}", exhausted_once(f"rectilinear.{name}")):
                same(measure(), usual)
        for name in (
            "linearization.fit.adds_straight",
            "linearization.fit.fit_map",
            "core.moments.Moments.__add__",
        ):
            with only(ranks.rank == rank, f"rectilinear.{name}", exhausted_once(f"rectilinear.{name}")):
                same(edited(), plan)
        for name in ("measurement.measure.find_measured", "measurement.kept.score_block", "models.walk.run"):
            with (
                only(ranks.rank == rank, f"rectilinear.{name}", wet),
                pytest.raises((JobError, ValueError), match="wet"),
            ):
                measure()
            assert ranks.gather(rank) == [rank] * ranks.count


def wet(*args, **options):
    raise ValueError("it is wet")


def exhausted_once(name):
    """What runs out of memory the first time, and then does what it should."""
    path, _, attribute = name.rpartition(".")
    own, calls = getattr(pkgutil.resolve_name(path), attribute), []

    def call(*args, **options):
        calls.append(1)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return own(*args, **options)

    return call


@contextmanager
def only(here, name, other):
    """While open, something is replaced in one process."""
    with pytest.MonkeyPatch.context() as patch:
        if here:
            patch.setattr(name, other)
        yield


def same(found, wanted):
    """Numbers that differ by no more than the order of sums does."""
    found, wanted = (flat(json.loads(each.model_copy(update={"warnings": ()}).to_json())) for each in (found, wanted))
    assert found.keys() == wanted.keys()
    assert all(found[key] == pytest.approx(wanted[key], abs=1e-9) for key in found if isinstance(found[key], float))


def flat(value, path=""):
    if isinstance(value, (dict, list)):
        parts = value.items() if isinstance(value, dict) else enumerate(value)
        return {key: each for name, part in parts for key, each in flat(part, f"{path}/{name}").items()}
    return {path: value}


if __name__ == "__main__":
    main()
