"""Stories, and a judge that answers as real ones do."""

import json
import math
import time
from typing import NamedTuple

import pytest
import torch

import rectilinear
from rectilinear import JobError, Judging, RequestError, Stories
from rectilinear.evaluation.judge import prepare_stories
from rectilinear.evaluation.judge_client import ask as ask_with_progress
from rectilinear.evaluation.judge_client import estimate_tokens, read_marks, try_judge
from rectilinear.evaluation.judge_record import JudgeReport, Story
from rectilinear.models.settings import Loading
from tests.conftest import build_llama
from tests.judges import MARKS, marks, reply, serving

SIZE = {"count": 7, "beginning_words": 6, "max_new_tokens": 12, "batch_size": 3}


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)


class Recipe(NamedTuple):
    """A model and its stories."""

    model: str
    stories: Stories

    def judge(self, out, judging=Judging(), **options):
        return rectilinear.judge(self.model, out, self.stories, judging, **options)

    def but(self, **changes):
        return Recipe(self.model, Stories(**{**self.stories.model_dump(), **changes}))


@pytest.fixture(scope="module")
def recipe(tiny_checkpoint, text_file):
    return Recipe(str(tiny_checkpoint), Stories(text=str(text_file), **SIZE))


def ask(judging, stories, path):
    return ask_with_progress(judging, stories, path, lambda *progress: None)


@pytest.fixture(scope="module")
def alone(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone") / "out"
    return recipe.judge(out), out


def stories_of(out):
    return [json.loads(line) for line in (out / "stories.jsonl").read_text().splitlines()]


def endpoint(server, **options):
    return Judging(**{"judge_model": "wise", "judge_url": server.url, "concurrency": 2, "retries": 2, **options})


def make_stories(count):
    return [Story(index=i, beginning=f"Once {i}", ending="", completion="there was.") for i in range(count)]


def test_stories_begin_as_the_text_does(alone, documents):
    report, out = alone
    stories = stories_of(out)
    long_enough = [document for document in documents if len(document.split()) >= 12]
    for story, document in zip(stories, long_enough, strict=False):
        assert len(story["beginning"].split()) == 6
        words = len(story["completion"].split())
        assert document.startswith(story["beginning"] + story["ending"])
        assert story["ending"].split() == document.split()[6 : 6 + words]
    assert [story["index"] for story in stories] == [*range(7)]
    assert (report.completions.texts, report.judged, report.reference) == (7, None, None)
    assert JudgeReport.load(out) == report


def test_the_same_recipe_writes_the_same_stories(alone, recipe, tmp_path):
    recipe.judge(tmp_path / "again")
    assert stories_of(tmp_path / "again") == stories_of(alone[1])
    other = recipe.but(seed=1)
    other.judge(tmp_path / "other")
    assert stories_of(tmp_path / "other") != stories_of(alone[1])


def test_marks_are_means_over_scored_stories(recipe, tmp_path):
    answers = [
        marks(),
        marks(plot=8),
        reply(refusal="I would rather not."),
        reply("Grammar: 7, creativity: 5"),
        reply("```json\n" + json.dumps(MARKS) + "\n```"),
        reply(json.dumps({**MARKS, "plot": 11})),
        reply(None, finish_reason="content_filter"),
    ]
    with serving(lambda place, times: answers[place]) as server:
        report = recipe.judge(tmp_path / "out", endpoint(server))
    judged = report.judged
    assert judged.outcomes == {"scored": 3, "refused": 2, "malformed": 2}
    assert judged.marks["plot"].mean == pytest.approx((4 + 8 + 4) / 3)
    assert judged.marks["plot"].stderr == pytest.approx(math.sqrt(16 / 3 / 3))
    assert (judged.marks["grammar"].mean, judged.marks["grammar"].stderr) == (7, 0)
    assert (judged.asked, judged.prompt_tokens, judged.completion_tokens) == (7, 700, 70)
    assert any("2 refused, 2 malformed" in warning for warning in report.warnings)
    kept = [json.loads(line) for line in (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()]
    assert sorted(answer["index"] for answer in kept) == [*range(7)]
    assert {"I would rather not."} <= {answer["answer"] for answer in kept}


@pytest.mark.parametrize("changes", [{"plot": 0}, {"plot": 7.5}, {"plot": "7"}, {"plot": True}, {"style": 3}])
def test_anything_but_four_whole_numbers_is_malformed(changes, tmp_path):
    with serving(lambda place, times: marks(**changes)) as server:
        [answer] = ask(endpoint(server), make_stories(1), tmp_path / "j.jsonl").values()
    assert (answer.outcome, answer.marks) == ("malformed", None)


def test_what_is_asked(recipe, tmp_path):
    with serving() as server:
        recipe.judge(tmp_path / "out", endpoint(server))
        body = server.bodies[0]
    assert set(server.keys) == {"Bearer sesame"}
    assert (body["path"], body["model"], body["temperature"]) == ("/v1/chat/completions", "wise", 0.0)
    assert body["response_format"]["json_schema"]["schema"]["required"] == [*MARKS]
    story = stories_of(tmp_path / "out")[0]
    assert story["beginning"] in body["messages"][1]["content"]
    assert story["completion"].strip() in body["messages"][1]["content"]
    with serving() as server:
        ask(endpoint(server, structured=False), make_stories(1), tmp_path / "j.jsonl")
    assert "response_format" not in server.bodies[0]


def test_several_at_once_but_no_more(tmp_path):
    with serving(delay=0.05) as server:
        ask(endpoint(server, concurrency=3), make_stories(12), tmp_path / "j.jsonl")
    assert server.most == 3


def test_servers_that_are_busy_are_asked_again_when_they_say(tmp_path):
    """Once turned away with the time to wait, once broken."""

    def script(place, times):
        if times == 1 and place == 1:
            return 429, {"Retry-After": "0.3"}, {"error": {"message": "slow down"}}
        if times == 1 and place == 2:
            return 503, {}, {"error": {"message": "busy"}}
        return marks()

    started = time.perf_counter()
    with serving(script) as server:
        found = ask(endpoint(server), make_stories(4), tmp_path / "j.jsonl")
    assert [answer.outcome for answer in found.values()] == ["scored"] * 4
    assert sorted(server.asked.values()) == [1, 1, 2, 2]
    assert time.perf_counter() - started > 0.3


def test_a_run_that_broke_off_goes_on(recipe, tmp_path):
    """Half-way the endpoint turns everything away; nothing that was answered is asked again."""
    out = tmp_path / "out"

    def script(place, times):
        return marks() if place < 4 else (429, {}, {"error": {"message": "no more"}})

    with serving(script) as server:
        with pytest.raises(JobError, match=r"keeps turning a request away .* `resume`"):
            recipe.judge(out, endpoint(server))
        first = server.answered
    assert first.total() == 4
    assert not (out / "judge.json").exists()
    with serving() as server:
        for other in (endpoint(server, judge_model="foolish"), endpoint(server)):  # another name, another port
            with pytest.raises(RequestError, match=f"holds answers of wise at http.*, got {other.judge_model} at"):
                recipe.judge(out, other, resume=True)
        kept = json.loads((out / "request.json").read_text())
        (out / "request.json").write_text(json.dumps({**kept, "judge": {"model": "wise", "url": server.url}}))
        report = recipe.judge(out, endpoint(server), resume=True)
        assert not {*first} & {*server.asked} - {story for story, count in first.items() if not count}
        assert server.asked.total() == 3
    assert report.judged.asked == 7


def test_stories_come_first_and_a_judge_later(recipe, tmp_path):
    """And the marks stay where stories are only measured again."""
    out = tmp_path / "out"
    assert recipe.judge(out).judged is None
    with serving(lambda place, times: marks() if place < 3 else (429, {}, {})) as server:
        asked = endpoint(server, retries=0)
        with pytest.raises(JobError):
            recipe.judge(out, asked, resume=True)
        server.script = lambda place, times: marks()
        judged = recipe.judge(out, asked, resume=True).judged
    assert judged.asked == 7
    assert max(server.answered.values()) == 1
    assert recipe.judge(out, resume=True).judged == judged


def test_texts_with_other_ends_of_lines(recipe, tmp_path):
    texts = [f"One\u2028two\x85 three four\x0c five six seven {i} eight nine ten eleven twelve." for i in range(3)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    odd = recipe.but(text=str(tmp_path / "odd.jsonl"), count=3)
    with serving() as server:
        report = odd.judge(tmp_path / "out", endpoint(server))
        assert report.judged.asked == 3
        assert odd.judge(tmp_path / "out", endpoint(server), resume=True) == report
    assert server.asked.total() == 3


def test_endpoints_leave_out_what_they_like(tmp_path):
    bare = reply(json.dumps(MARKS))
    bare["usage"] = {}
    silent = reply()
    silent["choices"][0]["message"] = None
    parts = reply()
    parts["choices"][0]["message"]["content"] = [{"type": "text", "text": "7"}]
    filtered = (400, {}, {"error": {"code": "content_filter", "message": "no"}})
    answers = [bare, silent, parts, filtered]
    with serving(lambda place, times: answers[place]) as server:
        found = ask(endpoint(server, concurrency=1), make_stories(4), tmp_path / "j.jsonl")
    assert [found[i].outcome for i in range(4)] == ["scored", "malformed", "malformed", "refused"]
    assert found[0].prompt_tokens == 0


@pytest.mark.parametrize("answer", [{"error": {"message": "overloaded"}}, ["no"], "hello", None])
def test_what_is_no_chat_completion_is_found_before_there_are_stories_and_kept_later(answer, tmp_path):
    """It may have been paid for."""
    with serving(lambda place, times: answer) as server:
        found = ask(endpoint(server), make_stories(2), tmp_path / "j.jsonl")
        server.trial = answer
        with pytest.raises(JobError, match="expected chat completions of the judge at http"):
            try_judge(endpoint(server))
    assert [(each.outcome, each.answer) for each in found.values()] == [("malformed", json.dumps(answer))] * 2


def test_a_reference_that_is_not_there_costs_nothing(recipe, tmp_path):
    with serving() as server:
        with pytest.raises(RequestError, match="no model at"):
            recipe.judge(tmp_path / "out", endpoint(server, reference=str(tmp_path / "none")))
        assert not server.asked


def test_a_line_that_was_cut_off_is_asked_again(tmp_path):
    path = tmp_path / "j.jsonl"
    with serving() as server:
        ask(endpoint(server), make_stories(3), path)
    whole = path.read_text()
    path.write_text(whole[:-30])
    with serving() as server:
        found = ask(endpoint(server), make_stories(3), path)
    assert server.asked.total() == 1
    assert len(found) == len(path.read_text().splitlines()) == 3


def test_answers_that_are_none_are_refused(tmp_path):
    (tmp_path / "j.jsonl").write_text("nonsense\nnonsense\n")
    with pytest.raises(RequestError, match="line 1: expected an answer of a judge"):
        ask(Judging(judge_model="wise", judge_url="http://127.0.0.1:9/v1"), make_stories(1), tmp_path / "j.jsonl")


def test_a_wrong_key_costs_one_request(tmp_path):
    with serving(lambda place, times: (401, {}, {"error": {"message": "who are you"}})) as server:
        with pytest.raises(RequestError, match=r"expected a key that http.* accepts in OPENAI_API_KEY, got 401"):
            ask(endpoint(server), make_stories(5), tmp_path / "j.jsonl")
        assert server.asked.total() == 1


def test_a_model_that_is_not_there(tmp_path):
    says = r"does not take such requests of model wise .*no wise here"
    lost = (404, {}, {"error": {"message": "no wise here"}})
    with serving(lambda place, times: lost) as server, pytest.raises(RequestError, match=says):
        ask(endpoint(server), make_stories(5), tmp_path / "j.jsonl")


def test_an_endpoint_that_is_down(tmp_path):
    with serving() as server:
        gone = endpoint(server)
    with pytest.raises(JobError, match="cannot reach the judge at http"):
        ask(gone, make_stories(2), tmp_path / "j.jsonl")


def test_requests_that_cannot_be_met(recipe, tmp_path, monkeypatch, alone):
    out = alone[1]
    for url in ("localhost", "http://[::1/v1", "ftp://here"):
        with pytest.raises(RequestError, match=r"expected `judge_url=http://HOST:PORT/v1`, got "):
            recipe.judge(tmp_path / "a", Judging(judge_model="wise", judge_url=url))
    with pytest.raises(RequestError, match="is not empty; try `resume`"):
        recipe.judge(out)
    many = recipe.but(count=1000)
    with pytest.raises(RequestError, match=r"expected 1000 documents of at least 12 words in .*, got 1\d\d;"):
        many.judge(tmp_path / "b")
    with pytest.raises(RequestError, match=r"another \(count 7 -> 1000\)"):
        many.judge(out, resume=True)
    (tmp_path / "else").mkdir()
    (tmp_path / "else" / "file").write_text("")
    with pytest.raises(RequestError, match="holds no run to resume"):
        recipe.judge(tmp_path / "else", resume=True)
    with pytest.raises(RequestError, match="expected `temperature` to be greater than or equal to 0, got -1"):
        Stories(temperature=-1)
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(RequestError, match="expected OPENAI_API_KEY to be set"):
        recipe.judge(tmp_path / "c", Judging(judge_model="wise"))
    assert not any((tmp_path / name).exists() for name in "abc")


def test_judges_that_reason_are_asked_otherwise(tmp_path):
    """As OpenAI's: they refuse a temperature and the older name of the limit, and name what they refuse."""
    told = {"message": "Unsupported parameter", "type": "invalid_request_error", "param": "max_tokens"}
    with serving(lambda place, times: (400, {}, {"error": told})) as server:
        with pytest.raises(RequestError, match=r"Unsupported parameter.*try `reasoning`"):
            ask(endpoint(server), make_stories(1), tmp_path / "refused")
        with pytest.raises(RequestError, match="try --free-form"):
            ask(endpoint(server, reasoning=True), make_stories(1), tmp_path / "refused")
    with serving() as server:
        answers = ask(endpoint(server, reasoning=True), make_stories(2), tmp_path / "answers")
        body = server.bodies[0]
    assert [answer.outcome for answer in answers.values()] == ["scored", "scored"]
    assert body["max_completion_tokens"] == 4000
    assert not {"temperature", "max_tokens"} & body.keys()


@pytest.mark.parametrize("prices", [(math.nan, 1.0), (1.0, -2.0), (math.inf, 1.0)])
def test_prices_that_are_none(prices):
    with pytest.raises(RequestError, match="expected `prices` of at least 0"):
        Judging(judge_model="wise", prices=prices)


def test_stories_that_the_judge_has_not_read_are_said(recipe, tmp_path):
    with serving() as server:
        recipe.judge(tmp_path / "out", endpoint(server))
    answers = (tmp_path / "out" / "judgements.jsonl").read_text().splitlines()
    (tmp_path / "out" / "judgements.jsonl").write_text("\n".join(answers[:3]) + "\n")
    report = recipe.judge(tmp_path / "out", resume=True)
    assert report.judged.asked == 3
    assert "the judge answered for 3 of 7 stories; for the others try `resume` with it" in report.warnings


def prepared(recipe, out, judging):
    """A run whose stories are written, before the judge is asked."""
    return prepare_stories(
        recipe.model, out, recipe.stories, judging, loading=Loading(), resume=False, progress=lambda *progress: None
    )


def test_what_it_costs(recipe, tmp_path):
    with serving() as server:
        judging = endpoint(server, prices=(2.5, 10.0))
        run = prepared(recipe, tmp_path / "out", judging)
        report = recipe.judge(tmp_path / "out", judging, resume=True)
        again = recipe.judge(tmp_path / "out", endpoint(server), resume=True)
    prompt_tokens, answer_tokens = estimate_tokens(judging, run.left)
    assert judging.cost(prompt_tokens, answer_tokens) == pytest.approx(prompt_tokens * 2.5e-6 + 700 * 10e-6)
    assert f"at most about {judging.cost(prompt_tokens, answer_tokens):.2g} by `prices`" in run.announcement
    assert report.judged.cost == pytest.approx(700 * 2.5e-6 + 70 * 10e-6)  # as the endpoint counted
    assert again.judged.cost is None


def test_what_is_announced_before_anything_is_paid_for(recipe, tmp_path):
    with serving() as server:
        run = prepared(recipe, tmp_path / "out", endpoint(server))
        assert not server.asked
    prompt_tokens, answer_tokens = estimate_tokens(run.judging, run.left)
    assert (len(run.left), answer_tokens) == (7, 700)
    assert 7 * 100 < prompt_tokens < 7 * 400
    assert run.announcement.startswith(f"wise is asked about 7 stories: about {prompt_tokens:,} tokens of requests")


def test_the_loss_under_a_reference(recipe, tmp_path, save_checkpoint, tiny_tokenizer):
    """By hand: the tokens after the beginning, one story at a time."""
    other = build_llama(seed=5)
    report = recipe.judge(tmp_path / "out", Judging(reference=str(save_checkpoint(other, "reference"))))
    sums = []
    for story in stories_of(tmp_path / "out"):
        first = tiny_tokenizer(story["beginning"])["input_ids"][:-1]  # without the end of text
        whole = tiny_tokenizer(story["beginning"] + story["completion"])["input_ids"][:-1]
        start = len(first) if whole[: len(first)] == first else len(first) - 1
        with torch.no_grad():
            logits = other(torch.tensor([whole])).logits[0].double().log_softmax(-1)
        sums.append((-sum(logits[i - 1, whole[i]].item() for i in range(start, len(whole))), len(whole) - start))
    total = sum(count for _, count in sums)
    assert report.reference.tokens == total
    assert report.reference.completions == pytest.approx(sum(loss for loss, _ in sums) / total, rel=1e-4)
    assert report.reference.completions_stderr > 0
    assert report.reference.endings > 0


SHAPES = {
    "thoughts": lambda given: '<think>\nSimple words, {a thin} plot: {"grammar": 2}.\n</think>\n\n' + given,
    "a sentence and a fence": lambda given: f"Here are the marks:\n```json\n{given}\n```\nGlad to help {{again}}.",
    "a number with a point": lambda given: given.replace("7", "7.0"),
    "an object around it": lambda given: json.dumps({"marks": json.loads(given)}),
    "parts": lambda given: [{"type": "text", "text": given[:20]}, {"type": "text", "text": given[20:]}],
    "half a letter beside it": lambda given: f"\ud83d {given}",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_marks_are_found_whatever_stands_around_them(shape, tmp_path):
    """The last object with a mark in it counts, not what a judge thought before."""
    with serving(lambda place, times: reply(SHAPES[shape](json.dumps(MARKS)))) as server:
        answers = ask(endpoint(server), make_stories(2), tmp_path / "j.jsonl")
        assert ask(endpoint(server), make_stories(2), tmp_path / "j.jsonl") == answers  # asked once, and kept
        assert server.asked.total() == 2
    assert [(answer.outcome, answer.marks.model_dump()) for answer in answers.values()] == [("scored", MARKS)] * 2


def test_the_last_marks_count_and_are_not_replaced_by_others_before_them():
    first, last = json.dumps({**MARKS, "plot": 2}), json.dumps(MARKS)
    assert read_marks(f"First {first}, but then {last}").plot == MARKS["plot"]
    assert read_marks(f"First {first}, but then {json.dumps({**MARKS, 'plot': 11})}") is None
    assert read_marks('{"a": ' * 50_000) is read_marks("[" * 100_000) is None


def test_malformed_answers_are_asked_again_and_what_was_asked_is_counted(recipe, tmp_path):
    out = tmp_path / "out"
    with serving(lambda place, times: reply("no idea") if place % 2 else marks()) as server:
        first = recipe.judge(out, endpoint(server, concurrency=1))
        assert first.judged.outcomes == {"scored": 4, "refused": 0, "malformed": 3}
        asked = server.asked.total()
        server.script = lambda place, times: marks()
        again = recipe.judge(out, endpoint(server), resume=True)
        assert server.asked.total() - asked == 3
    assert again.judged.outcomes == {"scored": 7, "refused": 0, "malformed": 0}
    assert (again.judged.asked, again.judged.prompt_tokens) == (7, 1000)  # ten requests
    kept = [json.loads(line)["answer"] for line in (out / "judgements.jsonl").read_text().splitlines()]
    assert kept.count("no idea") == 3  # no answer is lost


ODD = {
    "half a letter": lambda body: body["choices"][0]["message"].update(content='{"why": "\ud83d"}'),
    "counts that are none": lambda body: body.update(usage={"prompt_tokens": "abc", "completion_tokens": 1.5}),
    "a choice that is none": lambda body: body.update(choices=[None]),
    "nested without end": lambda body: body["choices"][0]["message"].update(content="[" * 100_000),
}


@pytest.mark.parametrize("odd", ODD)
def test_odd_answers_are_kept_and_the_others_too(odd, tmp_path):
    def script(place, times):
        body = marks()
        if place == 0:
            ODD[odd](body)
        return body

    with serving(script) as server:
        answers = ask(endpoint(server, concurrency=1), make_stories(3), tmp_path / "j.jsonl")
    expected = "scored" if odd == "counts that are none" else "malformed"
    assert [answers[index].outcome for index in range(3)] == [expected, "scored", "scored"]
    assert len((tmp_path / "j.jsonl").read_text(encoding="utf-8").splitlines()) == 3


REFUSED = [
    ((401, {}, {"error": {"message": "who are you"}}), RequestError, "expected a key that http"),
    ((404, {}, {"error": {"message": "no wise here"}}), RequestError, "try another `judge_url` or `judge_model`"),
    ((503, {}, {"error": {"message": "busy"}}), JobError, "keeps turning a request away"),
    (None, JobError, r"cannot reach the judge at http.*\(Connection error"),
]


@pytest.mark.parametrize(("answer", "kind", "says"), REFUSED, ids=["key", "model", "busy", "dead"])
def test_a_judge_that_would_not_answer_is_found_before_stories_are_written(
    answer, kind, says, recipe, tmp_path, monkeypatch
):
    monkeypatch.setattr("rectilinear.evaluation.judge.write_stories", None)
    with serving(lambda place, times: answer) as server:
        gone = endpoint(server)
        if answer:
            with pytest.raises(kind, match=says):
                recipe.judge(tmp_path / "out", gone)
            assert not server.asked
    if not answer:
        with pytest.raises(kind, match=says) as failed:
            recipe.judge(tmp_path / "out", gone)
        assert "kept" not in str(failed.value)
    assert not (tmp_path / "out").exists()
