"""Files of results are enough to compare models: the same differences as where models were run together."""

import json
import shutil

import pytest

import rectilinear
from rectilinear import Evaluating, Evaluation, RequestError
from rectilinear.comparison import Comparison
from rectilinear.models.settings import Loading
from rectilinear.text.settings import Rows
from tests.conftest import build_llama
from tests.evaluation.test_gather import probed, write_stories
from tests.superglue import write_lines, write_superglue

CPU, ROWS = Loading(device="cpu"), Rows(max_tokens=1024, seq_len=32)
TASKS = "superglue,wsc,words"


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = write_superglue(tmp_path_factory.mktemp("superglue"), train=40, validation=8)
    write_lines(folder / "words.jsonl", [{"context": f"It was {i} and a", "continuation": "cat"} for i in range(9)])
    return folder


@pytest.fixture(scope="module")
def models(tiny_checkpoint, save_checkpoint):
    """A model, one of fewer blocks, and one of other weights."""
    return {
        "deep": tiny_checkpoint,
        "shallow": save_checkpoint(build_llama(blocks=2, seed=1), "shallow"),
        "third": save_checkpoint(build_llama(seed=4), "third"),
    }


@pytest.fixture(scope="module", autouse=True)
def _few_resamples():
    """The F1 of CB takes milliseconds for each of them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("rectilinear.evaluation.bootstrap.RESAMPLES", 20)
        yield


@pytest.fixture(scope="module")
def results(models, data, text_file, tmp_path_factory):
    """Folders of what each model scored by itself, with probes and judged stories of two."""
    folder = tmp_path_factory.mktemp("results")
    for place, name in enumerate(("deep", "shallow")):
        probed(models[name], "cb", data).save(folder / "parts" / name / "cb")
        write_stories(folder / "parts" / name / "judged", models[name], text_file, shift=place)
    for name, model in models.items():
        evaluated(model, text_file, data, folder).save(folder / name)
    return folder


def evaluated(model, text, data, folder, against=None, **options):
    asked = Evaluating(**{"tasks": TASKS, "data": data, "include": [folder / "parts"], "batch_size": 8, **options})
    return rectilinear.evaluate(model, text, asked, against=against, rows=ROWS, loading=CPU)


@pytest.fixture(scope="module")
def together(models, results, data, text_file):
    """The same two models, run together."""
    return evaluated(models["deep"], text_file, data, results, against=models["shallow"])


def without_times(differences):
    dumped = differences.model_dump()
    assert dumped.pop("tokens_per_second")["prefill"] > 0
    return dumped


def test_files_give_the_differences_of_models_that_are_run_together(results, together):
    found = rectilinear.compare(results / "shallow", results / "deep")
    assert without_times(found.models[0].differences) == without_times(together.differences)
    differences = found.models[0].differences
    assert differences.loss != 0
    assert {*differences.tasks} == {"boolq", "cb", "copa", "multirc", "sglue_rte", "wic", "wsc", "words"}
    assert differences.tasks["cb"].keys() == {"acc", "f1"}
    assert differences.groups["superglue"]["mean"].stderr > 0
    assert differences.probes.keys() == {"cb"}
    assert differences.stories.keys() == {"grammar", "creativity", "consistency", "plot"}
    assert found.against.loss == together.against.loss
    assert found.data == together.data


def test_what_is_read_is_what_was_in_memory(models, results, data, text_file):
    """Results of either kind, and files, are the same to compare."""
    deep, shallow = (Evaluation.load(results / name) for name in ("deep", "shallow"))
    found = rectilinear.compare(shallow, deep)
    by_file = rectilinear.compare(results / "shallow" / "evaluation.json", results / "deep" / "evaluation.json")
    assert found.models == by_file.models
    assert found.sources == (str(models["shallow"]), str(models["deep"]))


def test_several_models_are_each_compared_with_the_first(results):
    found = rectilinear.compare(*(results / name for name in ("shallow", "deep", "third")))
    assert [each.measured.model.id.rstrip("0") for each in found.models][1].endswith("third")
    alone = rectilinear.compare(results / "shallow", results / "third")
    assert found.models[1] == alone.models[0]
    text = str(found)
    assert f"{found.models[1].differences.loss:+.4f}" in text
    assert "probe of cb" in text


def test_it_comes_back_as_it_was(results, tmp_path):
    found = rectilinear.compare(results / "shallow", results / "deep")
    found.save(tmp_path)
    assert Comparison.load(tmp_path) == found
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert written["schema"] == "rectilinear.comparison/1"
    assert written["models"][0]["differences"]["loss"] == found.models[0].differences.loss


def test_folders_of_probes_and_stories_are_results(results):
    parts = results / "parts"
    found = rectilinear.compare(parts / "shallow", parts / "deep").models[0].differences
    whole = rectilinear.compare(results / "shallow", results / "deep").models[0].differences
    assert (found.probes, found.stories, found.loss, found.tasks) == (whole.probes, whole.stories, None, {})
    assert found.parameters == whole.parameters


def test_what_cannot_be_compared_is_said_and_not_compared(models, results, data, text_file, tmp_path):
    other = write_superglue(tmp_path / "other", train=40, validation=7)
    size = {"tasks": "copa,wic", "num_fewshot": 1, "include": ()}
    evaluated(models["deep"], text_file, data, results, **size).save(tmp_path / "plain")
    evaluated(models["shallow"], text_file, other, results, **size).save(tmp_path / "fewer")
    asked = Evaluating(tasks="copa,wic", data=data, num_fewshot=1, speed=False, batch_size=8)
    seeded = Rows(max_tokens=1024, seq_len=32, seed=1)
    rectilinear.evaluate(models["shallow"], text_file, asked, rows=seeded, loading=CPU).save(tmp_path / "seeded")
    shorter = Rows(max_tokens=1024, seq_len=16)
    rectilinear.evaluate(models["shallow"], text_file, asked, rows=shorter, loading=CPU).save(tmp_path / "shorter")
    for name in ("fewer", "seeded"):
        found = rectilinear.compare(tmp_path / "plain", tmp_path / name)
        assert found.models[0].differences.tasks == {}
        assert found.models[0].differences.loss is not None
        assert all(any(f"scores of {task} cannot be compared" in said for said in found.warnings) for task in ("copa",))
    found = rectilinear.compare(tmp_path / "plain", tmp_path / "shorter")
    assert found.models[0].differences.loss is found.data is None
    assert any("cannot be compared: they are of different texts" in said for said in found.warnings)
    assert found.models[0].differences.tasks["copa"]["acc"].n == 8


def test_older_files_say_that_they_lack_rows(results, tmp_path):
    for name in ("deep", "shallow"):
        written = json.loads((results / name / "evaluation.json").read_text())
        del written["items"]
        (tmp_path / name).mkdir()
        (tmp_path / name / "evaluation.json").write_text(json.dumps(written))
    found = rectilinear.compare(tmp_path / "shallow", tmp_path / "deep")
    differences = found.models[0].differences
    assert (differences.loss, differences.tasks, [*differences.probes]) == (None, {}, ["cb"])
    assert any("they have no rows in their files" in said for said in found.warnings)


def test_a_group_of_which_scores_are_no_mean_of_its_tasks_is_left_out(results):
    """A number that would rest on a formula of the harness's which it no longer has."""
    deep, shallow = (Evaluation.load(results / name) for name in ("deep", "shallow"))
    group = {"tasks": ("copa", "wic"), "metrics": {"acc": {"value": 0.0}}, "weight_by_size": {"acc": False}}

    def grouped(found, shift=0.0):
        scores = [found.tasks[task].metrics["acc"].value for task in group["tasks"]]
        group["metrics"]["acc"] = {"value": sum(scores) / 2 + shift, "stderr": None}
        dumped = found.model_dump(by_alias=True)
        return Evaluation.model_validate({**dumped, "groups": {"ours": group}})

    found = rectilinear.compare(grouped(shallow), grouped(deep)).models[0].differences
    means = [sum(each.tasks[task].metrics["acc"].value for task in group["tasks"]) / 2 for each in (deep, shallow)]
    assert found.groups["ours"]["acc"].value == pytest.approx(means[0] - means[1])
    assert rectilinear.compare(grouped(shallow), grouped(deep, 0.1)).models[0].differences.groups["ours"] == {}


def test_places_without_results_of_one_model(results, tmp_path):
    def refused(match, *places):
        with pytest.raises(RequestError, match=match):
            rectilinear.compare(*places)

    refused("at least two models", results / "deep")
    refused(r"expected evaluation\.json, probe\.json or judge\.json in .*, got none", results / "deep", tmp_path)
    refused("expected results of one model in .*parts, got those of", results / "deep", results / "parts")
    refused("no evaluation at", results / "deep", tmp_path / "none")
    shutil.copy(results / "parts" / "deep" / "cb" / "probe.json", tmp_path / "some.json")
    refused("expected a rectilinear evaluation", results / "deep", tmp_path / "some.json")
