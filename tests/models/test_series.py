"""Steps are read where trainings write them."""

import pytest

from rectilinear.errors import RequestError
from rectilinear.models.origin import Origin
from rectilinear.models.series import find_checkpoints, step_in
from rectilinear.models.settings import Loading


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("checkpoint-500", 500),
        ("step1000", 1000),
        ("step_1000", 1000),
        ("stage1-step1000-tokens4B", 1000),
        ("global_step143000", 143000),
        ("1000", 1000),
        ("1234567", 1234567),
        ("main", None),
        ("", None),
        ("stories260K", None),
        ("d0c1e5fa97b3", None),
        ("9f3c2ab18d77e0645c1b2a3948576fedcba98765", None),
    ],
)
def test_steps_in_names(name, step):
    assert step_in(name) == step


def test_revisions_are_a_series_of_one_model():
    loading = Loading(trust_remote_code=True, device="cpu", dtype="float32")
    found, warnings = find_checkpoints([f"org/model@{name}" for name in ("step512", "step0", "step64")], loading)
    assert [(each.step, each.source) for each in found] == [
        (0, "org/model@step0"),
        (64, "org/model@step64"),
        (512, "org/model@step512"),
    ]
    assert found[0].origin == Origin("org/model", loading.model_copy(update={"revision": "step0"}))
    assert warnings == []


def test_revisions_of_one_step_are_refused():
    with pytest.raises(RequestError, match="got org/model@step5 and org/model@seed2-step5 at step 5"):
        find_checkpoints(["org/model@step5", "org/model@seed2-step5"], Loading(device="cpu"))


def test_trainer_state_goes_before_the_name(tmp_path):
    folder = tmp_path / "checkpoint-5"
    folder.mkdir()
    for text, step in (('{"global_step": 7}', 7), ("{}", 5), ("no JSON", 5), ("[]", 5)):
        (folder / "trainer_state.json").write_text(text)
        [found], _ = find_checkpoints(folder, Loading(device="cpu"))
        assert found.step == step


def test_two_trainings_are_not_taken_for_one_without_a_word(tmp_path):
    for step, run in enumerate(("a", "a", "b", "b")):
        (tmp_path / run / f"checkpoint-{step}").mkdir(parents=True)
    loading = Loading(device="cpu")
    found, [said] = find_checkpoints([tmp_path / "a", tmp_path / "b"], loading)
    assert len(found) == 4
    assert f"{tmp_path / 'a'}, {tmp_path / 'b'} are taken for one training" in said
    assert find_checkpoints([tmp_path / "a", tmp_path / "b" / "checkpoint-2"], loading)[1] == []
