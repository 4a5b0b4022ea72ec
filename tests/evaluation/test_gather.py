"""Probes and stories come to the model whose weights they are of, and are compared question by question."""

import json
import math
import shutil

import numpy as np
import pytest
from scipy.stats import binomtest, ttest_1samp
from scipy.stats import t as student

import rectilinear
from rectilinear import Evaluating, Evaluation, Judging, Probing, RequestError, Stories
from rectilinear.evaluation.criteria import Marks
from rectilinear.evaluation.differences import are_comparable, probe_difference
from rectilinear.evaluation.gather import gather_results
from rectilinear.evaluation.judge_record import JudgeReport
from rectilinear.evaluation.judgements import read_judgements
from rectilinear.evaluation.probe_record import Probe
from rectilinear.models.settings import Loading
from rectilinear.text.settings import Rows
from rectilinear.text.tasks import read_task
from tests.conftest import build_llama
from tests.judges import marks, reply, serving
from tests.superglue import write_superglue

CPU = Loading(device="cpu")
STORIES = {"count": 8, "beginning_words": 6, "max_new_tokens": 12}


@pytest.fixture(scope="module")
def models(tiny_checkpoint, save_checkpoint):
    """A model, and another of fewer blocks."""
    return {"deep": tiny_checkpoint, "shallow": save_checkpoint(build_llama(blocks=2, seed=1), "shallow")}


@pytest.fixture(scope="module")
def superglue(tmp_path_factory):
    return write_superglue(tmp_path_factory.mktemp("superglue"), train=40, validation=30)


@pytest.fixture(scope="module")
def results(models, superglue, text_file, tmp_path_factory):
    """A folder of folders: probes of both models on two tasks, and judged stories of both."""
    folder = tmp_path_factory.mktemp("results")
    for place, (name, model) in enumerate(models.items()):
        for task in ("cb", "multirc"):
            probe = probed(model, task, superglue)
            probe.save(folder / f"{name}-{task}")
        write_stories(folder / f"{name}-judged", model, text_file, shift=place)
    return folder


def probed(model, task, data, dtype="auto", **options):
    probing = Probing(data=data, **{"seq_len": 64, "folds": 2, **options})
    return rectilinear.probe(model, task, probing, loading=Loading(device="cpu", dtype=dtype))


def write_stories(out, model, text_file, shift=0, judge="wise", **changes):
    """Stories of a model, marked by a judge that refuses every third of them."""

    def answer(place, times):
        other = (place + shift) % 5
        return reply(refusal="No.") if (place + shift) % 3 == 0 else marks(plot=1 + other, grammar=9 - other)

    stories = Stories(text=str(text_file), **{**STORIES, **changes})
    with serving(answer) as server:
        judging = Judging(judge_model=judge, judge_url=server.url, key="none", concurrency=1)
        rectilinear.judge(str(model), out, stories, judging)
    # Servers have ports of their own; these are one judge.
    for file in (out / "judge.json", out / "request.json"):
        file.write_text(file.read_text().replace(server.url, "http://judge/v1"))


def evaluated(model, include, against=None):
    return rectilinear.evaluate(model, None, Evaluating(include=include), against=against, loading=CPU)


@pytest.fixture(scope="module")
def pair(models, results):
    return evaluated(models["deep"], [results], models["shallow"])


def test_results_come_to_the_model_they_are_of(pair, results):
    for found, name in ((pair, "deep"), (pair.against, "shallow")):
        assert found.probes == {task: Probe.load(results / f"{name}-{task}") for task in ("cb", "multirc")}
        assert found.stories == JudgeReport.load(results / f"{name}-judged")
        assert found.stories.model.sha256 == found.model.sha256
    assert (pair.data, pair.loss, pair.tasks) == (None, None, {})
    assert pair.settings["include"] == [str(results)]


def test_they_are_part_of_the_file(pair, tmp_path):
    assert Evaluation.load(pair.save(tmp_path)) == pair
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written["probes"]["cb"]["schema"] == "rectilinear.probe/1"
    assert written["stories"]["judged"]["model"] == "wise"
    assert written["against"]["stories"]["schema"] == "rectilinear.judge/1"


def test_what_a_probe_has_right(results, superglue):
    """As many digits as questions, as many ones as the accuracy says, questions of a passage together."""
    for task, passages in (("cb", 30), ("multirc", 30)):
        found = Probe.load(results / f"deep-{task}")
        digits = found.right.replace(" ", "")
        assert len(digits) == found.data.validation == len(read_task(task, superglue).validation)
        accuracy = found.best.metrics["accuracy"].value
        assert digits.count("1") / len(digits) == pytest.approx(accuracy)
        assert len(found.right.split()) == passages
    assert {len(group) for group in Probe.load(results / "deep-multirc").right.split()} == {6}


def test_probes_are_compared_question_by_question(pair):
    ours, theirs = ([int(digit) for digit in part.probes["cb"].right.split()] for part in (pair, pair.against))
    changes = np.subtract(ours, theirs)
    found = pair.differences.probes["cb"]
    assert found.value == pytest.approx(changes.mean())
    assert found.stderr == pytest.approx(changes.std(ddof=1) / math.sqrt(len(changes)))
    won, lost = int((changes > 0).sum()), int((changes < 0).sum())
    assert found.p_value == pytest.approx(binomtest(won, won + lost).pvalue if won + lost else 1.0)


def test_questions_of_one_passage_are_one_piece_of_evidence(pair):
    """Passages here have as many questions each, so that means over passages say it all."""
    means = [
        np.array([np.mean([int(digit) for digit in group]) for group in part.probes["multirc"].right.split()])
        for part in (pair, pair.against)
    ]
    changes = means[0] - means[1]
    found = pair.differences.probes["multirc"]
    assert found.value == pytest.approx(changes.mean(), abs=1e-12)
    assert found.stderr == pytest.approx(changes.std(ddof=1) / math.sqrt(len(changes)))
    assert changes.any()
    assert found.p_value == pytest.approx(ttest_1samp(changes, 0).pvalue)


def test_marks_are_compared_over_stories_that_both_have_marks_of(pair, results):
    ours, theirs = (read_judgements(results / f"{name}-judged" / "judgements.jsonl") for name in ("deep", "shallow"))
    both = [index for index in ours if ours[index].marks and theirs[index].marks]
    assert both == [1, 4, 7]
    for name in Marks.model_fields:
        changes = [getattr(ours[index].marks, name) - getattr(theirs[index].marks, name) for index in both]
        found = pair.differences.stories[name]
        assert found.value == pytest.approx(np.mean(changes))
        assert found.stderr == pytest.approx(np.std(changes, ddof=1) / math.sqrt(len(changes)))
        assert found.n == len(both)
    assert pair.differences.stories["plot"].value != 0


def test_a_single_model_needs_no_comparison(models, results):
    found = evaluated(models["shallow"], [results / "shallow-cb"])
    assert (found.probes.keys(), found.stories, found.differences) == ({"cb"}, None, None)
    assert not any("nothing was included" in warning for warning in found.warnings)


def test_other_weights_are_another_model(models, results, text_file):
    loading = Loading(dtype="bfloat16", device="cpu")
    with pytest.raises(RequestError, match="expected results of these models in `include`, got those of"):
        rectilinear.evaluate(models["deep"], None, Evaluating(include=[results]), loading=loading)
    asked = Evaluating(include=[results], speed=False)
    found = rectilinear.evaluate(
        models["deep"], text_file, asked, rows=Rows(max_tokens=256, seq_len=32), loading=loading
    )
    assert (found.probes, found.stories) == ({}, None)
    for name in ("deep-cb/probe.json", "deep-judged/judge.json", "shallow-multirc/probe.json"):
        [said] = [warning for warning in found.warnings if name in warning]
        assert "with other weights than any model here has; try the same `dtype`" in said


def test_each_result_that_is_left_out_is_named_once_all_models_are_done(models, results, superglue, tmp_path):
    coarse = probed(models["deep"], "copa", superglue, dtype="bfloat16")
    coarse.save(tmp_path / "coarse")
    included = [results / "deep-cb", results / "shallow-cb", tmp_path / "coarse"]
    first, second = rectilinear.evaluate_all([*models.values()], None, Evaluating(include=included), loading=CPU)
    assert not any("not included" in warning for warning in first.warnings)
    [said] = [warning for warning in second.warnings if "not included" in warning]
    assert str(tmp_path / "coarse" / "probe.json") in said


def test_the_same_weights_under_another_name_are_warned_of(models, results, tmp_path):
    """Their configuration may be another."""
    shutil.copytree(models["deep"], tmp_path / "twin")
    found = evaluated(tmp_path / "twin", [results / "deep-cb"])
    assert found.probes.keys() == {"cb"}
    asks = f"which has the weights of {tmp_path / 'twin'}: are they the same model?"
    assert asks in found.warnings[-1]
    for order in ((models["deep"], tmp_path / "twin"), (tmp_path / "twin", models["deep"])):
        both = {
            each.model.id: each.warnings
            for each in rectilinear.evaluate_all(order, None, Evaluating(include=[results / "deep-cb"]), loading=CPU)
        }
        assert any(asks in warning for warning in both[str(tmp_path / "twin")])
        assert not any("same model?" in warning for warning in both[str(models["deep"])])
    against = evaluated(models["deep"], [results / "deep-cb"], tmp_path / "twin")
    assert any(asks in warning for warning in against.warnings)


def test_what_cannot_be_compared_is_said_and_not_compared(models, results, superglue, text_file, tmp_path):
    fewer = probed(models["shallow"], "cb", superglue, max_examples=29)
    fewer.save(tmp_path / "fewer")
    write_stories(tmp_path / "other-judge", models["shallow"], text_file, judge="stern")
    write_stories(tmp_path / "longer", models["shallow"], text_file, beginning_words=5)
    ours = [results / "deep-cb", results / "deep-judged"]

    def compared(*folders):
        included = [*ours, *(tmp_path / folder for folder in folders)]
        return evaluated(models["deep"], included, models["shallow"])

    found = compared("fewer", "other-judge")
    assert (found.differences.probes, found.differences.stories) == ({}, {})
    assert any("probes of cb cannot be compared" in warning for warning in found.warnings)
    assert any("marks cannot be compared" in warning for warning in found.warnings)
    found = compared("longer")
    assert found.differences.stories == {}
    assert any(
        "stories cannot be compared" in warning and "begin or were drawn differently" in warning
        for warning in found.warnings
    )


def test_stories_without_a_judge_have_no_marks_to_compare(models, results, text_file, tmp_path):
    for name, model in models.items():
        rectilinear.judge(str(model), tmp_path / name, Stories(text=str(text_file), **STORIES))
    found = evaluated(models["deep"], [tmp_path], models["shallow"])
    assert found.stories.completions.texts == 8
    assert found.differences.stories == {}
    assert not any("compared" in warning for warning in found.warnings)


def test_models_are_compared_with_the_first_that_has_the_same_kind_of_result(models, results, superglue, tmp_path):
    last = probed(models["shallow"], "cb", superglue, pooling="last")
    last.save(tmp_path / "last")
    third = tmp_path / "third"
    build_llama(blocks=1, seed=4).save_pretrained(third)
    for file in models["deep"].glob("tokenizer*"):
        shutil.copy(file, third)
    included = [results / "deep-cb", tmp_path / "last"]
    found = [*rectilinear.evaluate_all([third, *models.values()], None, Evaluating(include=included), loading=CPU)]
    assert [any("probes of cb cannot be compared" in said for said in each.warnings) for each in found] == [0, 0, 1]


def planted(pair, ours, theirs):
    """The difference of two probes with these right and wrong answers."""
    probes = (pair.probes["cb"].model_copy(update={"right": right}) for right in (ours, theirs))
    return probe_difference(*probes)


def test_right_answers_that_are_planted(pair):
    found = planted(pair, "11 111 1", "00 000 0")
    assert (found.value, found.stderr) == (1.0, 0.0)
    assert found.p_value == pytest.approx(2 * 0.5**3)  # three passages, all of them won
    assert planted(pair, "11 0", "11 0").p_value == 1.0
    found = planted(pair, "1100 11 10", "1000 00 11")  # +1 of 4, +2 of 2, -1 of 2
    value = 2 / 8
    stderr = math.sqrt(((1 - 4 * value) ** 2 + (2 - 2 * value) ** 2 + (-1 - 2 * value) ** 2) * 3 / 2) / 8
    assert (found.value, found.stderr) == (pytest.approx(value), pytest.approx(stderr))
    assert found.p_value == pytest.approx(2 * student.sf(value / stderr, 2))
    assert planted(pair, "101", "011").p_value is None  # a single passage
    assert planted(pair, "1 1 0 0", "0 0 1 0").p_value == pytest.approx(binomtest(2, 3).pvalue)


@pytest.mark.slow
def test_probes_that_were_taught_or_asked_otherwise_are_not_alike(models, superglue, tmp_path):
    def again(folder=superglue, **options):
        return probed(models["shallow"], "multirc", folder, **{"max_examples": 38, **options})

    plain = again()
    assert are_comparable(plain, again())
    assert not any(are_comparable(plain, again(**other)) for other in ({"folds": 3}, {"seq_len": 60}))
    assert not are_comparable(plain, plain.model_copy(update={"questions": None, "right": None}))  # an older file
    other = shutil.copytree(superglue, tmp_path / "other")
    train = (other / "MultiRC" / "train.jsonl").read_text().splitlines()
    (other / "MultiRC" / "train.jsonl").write_text("\n".join(train[::-1]) + "\n")
    assert not are_comparable(plain, again(other))


def test_questions_that_are_grouped_otherwise_are_other_questions(models, superglue, tmp_path):
    """A question a line instead of a passage a line: the same questions and answers."""
    other = shutil.copytree(superglue, tmp_path / "other")
    lines = [json.loads(line) for line in (superglue / "MultiRC" / "val.jsonl").read_text().splitlines()]
    apart = [
        {**line, "passage": {**line["passage"], "questions": [question]}}
        for line in lines
        for question in line["passage"]["questions"]
    ]
    (other / "MultiRC" / "val.jsonl").write_text("".join(json.dumps(line) + "\n" for line in apart))
    one, two = (probed(models["shallow"], "multirc", folder) for folder in (superglue, other))
    assert one.right.replace(" ", "") == two.right.replace(" ", "")
    assert not are_comparable(one, two)


def test_stories_that_are_not_judged_to_the_end(results, tmp_path):
    folder = shutil.copytree(results / "deep-judged", tmp_path / "stopped")
    answers = (folder / "judgements.jsonl").read_text().splitlines()
    (folder / "judgements.jsonl").write_text("\n".join(answers[:5]) + "\n")
    with pytest.raises(RequestError, match=r"expected 8 answers .* got 5; .*try rectilinear judge --resume"):
        gather_results([folder])
    report = JudgeReport.load(folder)
    fewer = report.model_copy(update={"judged": report.judged.model_copy(update={"asked": 5})})
    fewer.save(folder)  # as of a run that was continued without its judge
    with pytest.raises(RequestError, match=r"expected 8 answers .* got 5"):
        gather_results([folder])


def test_results_of_other_models_alone_are_refused_before_anything_comes_of_it(models, results):
    """Though several models are asked for, one after the other."""
    running = rectilinear.evaluate_all(
        [models["shallow"], "storyteller"], None, Evaluating(include=[results / "deep-cb"]), loading=CPU
    )
    with pytest.raises(RequestError, match="expected results of these models in `include`"):
        next(running)


def test_folders_that_are_no_results(results, tmp_path):
    def refused(match, *folders):
        with pytest.raises(RequestError, match=match):
            gather_results(folders)

    refused("expected a folder of results, got .*none", tmp_path / "none")
    refused(r"expected probe\.json or judge\.json in .*, got none", tmp_path)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "probe.json").write_text("{}")
    refused(r"broken/probe\.json: expected a rectilinear probe", tmp_path)
    Probe.load(results / "deep-cb").save(tmp_path / "again")
    refused(r"expected one probe of cb of a model, got several, in .*deep-cb and .*again", results,
            tmp_path / "again")  # fmt: skip
    assert len(gather_results([results, results / "deep-cb"]).probes) == 4  # the same file twice is one


def test_without_anything_to_do(models):
    with pytest.raises(RequestError, match="expected `text`, `tasks`, `include`"):
        rectilinear.evaluate(models["deep"])
    with pytest.raises(RequestError, match="expected at least one model, got none"):
        rectilinear.evaluate_all([], "stories")
