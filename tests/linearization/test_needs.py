"""What replacing will need is said before it starts, and is what it takes; what does not fit is refused."""

import re
import shutil

import pytest

from rectilinear import Loading, RequestError
from rectilinear.core.moments import MomentsAccumulator
from rectilinear.evaluation.evaluate import evaluate
from rectilinear.evaluation.settings import Evaluating
from rectilinear.models.state_store import StateStore
from rectilinear.text.settings import Rows
from tests.conftest import linearize

READING = {"max_tokens": 2000, "seq_len": 32, "progress": False}


@pytest.fixture
def said():
    """Stages that a job reports, and the job's own way to do so."""
    stages = []
    return stages, lambda stage, done, total: stages.append(stage)


@pytest.mark.parametrize("kind", [{"kind": "filter", "taps": 2, "rates": [1.0, 0.5]}, {"kind": "affine"}])
def test_moments_and_states_are_no_more_than_is_said(tiny_llama, tiny_tokenizer, text_file, monkeypatch, said, kind):
    largest, kept, updated, copied = [], [], MomentsAccumulator.update, StateStore._empty

    def update(self, x, d):
        updated(self, x, d)
        largest.append(8 * x.shape[1] * (x.shape[1] + d.shape[1]))

    monkeypatch.setattr(MomentsAccumulator, "update", update)
    monkeypatch.setattr(StateStore, "_empty", lambda self, like: kept.append(like.nbytes) or copied(self, like))
    stages, report = said
    options = READING | {"tokenizer": tiny_tokenizer, "progress": report}
    linearize(tiny_llama, text_file, target="attention", blocks=[0, 1], folds=3, **kind, **options)
    needs = next(stage for stage in stages if stage.startswith("linearizing: "))
    assert re.fullmatch(
        r"linearizing: 0\.00 GB of weights, 0\.00 GB of moments, 0\.00 GB of hidden states, .* TFLOP", needs
    )
    from rectilinear.linearization import linearize as module

    found = []
    own = module.find_needs
    monkeypatch.setattr(module, "find_needs", lambda *args, **more: found.append(own(*args, **more)) or found[-1])
    kept.clear()
    linearize(tiny_llama, text_file, target="attention", blocks=[0, 1], folds=3, **kind, **options)
    assert 3 * max(largest) <= found[0].moments <= 6 * max(largest)
    assert sum(kept) <= found[0].states * 1.02 + 40_000  # and what tries whether passes resume
    assert sum(kept) >= found[0].states


def test_what_does_not_fit_is_refused_before_it_starts(tiny_llama, tiny_tokenizer, text_file, monkeypatch):
    options = READING | {"tokenizer": tiny_tokenizer, "target": "attention", "blocks": [0]}
    monkeypatch.setattr("rectilinear.linearization.needs.available_memory", lambda: 1000)
    with pytest.raises(
        RequestError, match=r"memory for 0\.0 GB of moments of 96 features, .*try fewer `folds`, `taps` or `rates`"
    ):
        linearize(tiny_llama, text_file, kind="filter", **options)
    with pytest.raises(RequestError, match=r"of moments of 16 features, .*try fewer `folds`$"):
        linearize(tiny_llama, text_file, kind="affine", **options)
    with pytest.raises(RequestError, match=r"of 3 blocks, which are chosen by their scores, .*try `blocks`"):
        linearize(tiny_llama, text_file, kind="drop", count=1, **READING | {"tokenizer": tiny_tokenizer})
    monkeypatch.undo()
    monkeypatch.setattr("rectilinear.models.state_store.IN_MEMORY", 1000)
    usage = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("rectilinear.models.state_store.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        RequestError, match=r"expected room for 0\.0 GB of hidden states in .* another folder in TMPDIR"
    ):
        linearize(tiny_llama, text_file, kind="affine", **options)


def test_evaluation_says_what_it_needs(tiny_checkpoint, text_file, said):
    stages, report = said
    rows = Rows(max_tokens=500, seq_len=32)
    evaluate(str(tiny_checkpoint), str(text_file), Evaluating(speed=False), rows=rows, progress=report)
    assert any(re.fullmatch(r"predicting: 0\.00 GB of weights, 0\.0 TFLOP", stage) for stage in stages)
    evaluate(
        str(tiny_checkpoint), str(text_file), Evaluating(speed=False), rows=rows, progress=report,
        loading=Loading(stream=True),
    )  # fmt: skip
    assert any(re.fullmatch(r"predicting: .* GB of hidden states, 0\.0 TFLOP", stage) for stage in stages)
