"""A judge that answers anything at all, at any pace: each answer is scored, refused or malformed, and none is lost."""

import errno
import gzip
import itertools
import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

import rectilinear
from rectilinear import JobError, Judging, RequestError, Stories
from rectilinear.evaluation.judge_client import ask as ask_with_progress
from rectilinear.evaluation.judge_client import try_judge
from rectilinear.evaluation.judge_endpoint import check_endpoint, complete
from rectilinear.evaluation.judge_record import Judgement, JudgeReport, Story
from rectilinear.evaluation.judgements import open_judgements, read_judgements, write_judgement
from tests.hostile import examples
from tests.judges import MARKS, answering, http, marks, reply, serving

pytestmark = pytest.mark.faults

KEY, USER, PASSWORD, QUERY = "sk-open/sesame", "ali baba", "forty:thieves", "cave-17"
SECRETS = (KEY, USER, PASSWORD, QUERY, "YWxpIGJhYmE6Zm9ydHk6dGhpZXZlcw==")  # the last one: user:password in base64


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("openai._base_client.INITIAL_RETRY_DELAY", 0.01)
    monkeypatch.setattr("openai._base_client.MAX_RETRY_DELAY", 0.02)


def ask(judging, path, count=3):
    stories = [Story(index=i, beginning=f"Once {i}", ending="", completion="there was.") for i in range(count)]
    return ask_with_progress(judging, stories, path, lambda *progress: None)


def endpoint(server, **options):
    return Judging(**{"judge_model": "wise", "judge_url": server.url, "concurrency": 1, "retries": 0, **options})


def secretive(server):
    """The URL of a judge, with all that a URL can have that is secret."""
    there = server.url.removeprefix("http://")
    return f"http://ali%20baba:forty%3Athieves@{there}?code={QUERY}#{QUERY}"


# Any JSON: numbers without end, halves of letters, secrets, marks.
TEXTS = st.one_of(st.text(st.characters(exclude_categories=())), st.sampled_from([*SECRETS, json.dumps(MARKS), "7"]))
NUMBERS = st.integers() | st.floats() | st.just("HUGE")
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)
PLACES = [("usage",), ("usage", "prompt_tokens"), ("choices",), ("choices", 0), ("choices", 0, "message")]
PLACES += [("choices", 0, "message", name) for name in ("content", "refusal")] + [("choices", 0, "finish_reason")]


@st.composite
def completions(draw):
    """A chat completion in which something is something else."""
    body = marks()
    *path, last = draw(st.sampled_from(PLACES))
    inner = body
    for name in path:
        inner = inner[name]
    inner[last] = draw(VALUES)
    return body


@st.composite
def bodies(draw):
    value = draw(completions() | VALUES)
    text = json.dumps(value, ensure_ascii=draw(st.booleans())).replace('"HUGE"', "9" * 5000)
    body = text.encode(draw(st.sampled_from(["utf-8", "utf-16", "utf-32-be", "cp1252"])), "replace")
    bodies = [body, body[: draw(st.integers(0, len(body)))], body + draw(st.binary()), draw(st.binary())]
    return draw(
        st.just(body) | st.sampled_from([*bodies, b"[" * 100_000, b'{"choices":' * 20_000, gzip.compress(body)])
    )


ENCODINGS = [None, "gzip", "deflate", "br", "zstd", "what", "gzip, gzip", ", ".join(["gzip"] * 50)]
ANYTHING = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20)
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "Content_Encoding": st.sampled_from(ENCODINGS),
        "Content_Length": st.sampled_from([None, 0, 5, 10**9, -1, "many"]),
        "Content_Type": ANYTHING | st.sampled_from([None, "text/html", "application/json; charset=utf-7"]),
        "Transfer_Encoding": st.sampled_from(["chunked", "gzip", "what"]),
        "Location": ANYTHING | st.just(f"http://[::1/{KEY}") | st.just("http://elsewhere:99999"),
        "Retry_After": ANYTHING | st.sampled_from(["nan", "-1", "1e999", "Fri, 31 Dec 99999 23:59:59 GMT"]),
        "Set_Cookie": ANYTHING,
        "X": ANYTHING,
    },
)
# 429 ends a run: it is full, not odd.
STATUSES = st.sampled_from(
    [200] * 12 + [204, 206, 302, 307, 399, 400, 401, 402, 404, 413, 418, 500, 503, 599, 600, 999]
)
ANSWERS = st.builds(
    lambda body, status, headers: http(body, status, **headers), bodies(), STATUSES, st.just({}) | HEADERS
)


@pytest.fixture(scope="module")
def odd():
    """A judge whose second answer is what a test says."""
    asked = itertools.count()
    with answering(lambda body: [server.answer if next(asked) % 3 == 1 else http(marks())]) as server:
        yield server


@given(answer=ANSWERS | st.binary())
@examples(60, 1500)
def test_any_answer_is_scored_refused_or_malformed(answer, odd, tmp_path_factory):
    path = tmp_path_factory.mktemp("odd") / "j.jsonl"
    odd.answer = answer
    found = ask(endpoint(odd, judge_url=secretive(odd), timeout=5), path)
    assert [found[place].outcome for place in (0, 2)] == ["scored", "scored"]
    assert found[1].outcome in ("scored", "refused", "malformed")
    assert (found[1].marks is not None) == (found[1].outcome == "scored")
    assert read_judgements(path) == found
    assert not [secret for secret in SECRETS if secret in found[1].answer]


@pytest.mark.parametrize("count", ["9" * 5000, '"abc"', "1.5", "-3", "true", "null", "[7]", "1e999", "NaN"])
def test_counts_that_are_none_are_absent(count, tmp_path):
    body = json.dumps(marks()).replace('"completion_tokens": 10', f'"completion_tokens": {count}')
    with answering(lambda asked: [http(body.encode())]) as server:
        [answer] = ask(endpoint(server), tmp_path / "j.jsonl", 1).values()
    assert (answer.outcome, answer.prompt_tokens, answer.completion_tokens) == ("scored", 100, 0)


@pytest.mark.parametrize("body", [b"[" * 100_000, b'{"choices":' * 20_000, b"", b"\xff\xfe\x00", b"9" * 5000, b"null"])
def test_bodies_that_are_none_are_malformed(body, tmp_path):
    with answering(lambda asked: [http(body if "Once 1" in asked else marks())]) as server:
        found = ask(endpoint(server), tmp_path / "j.jsonl")
    assert [found[place].outcome for place in range(3)] == ["scored", "malformed", "scored"]


def forever(part, pause=0.0):
    while True:
        time.sleep(pause)
        yield part


HEAD = http(b"", Content_Length=None)
CHUNKED = http(b"", Content_Length=None, Transfer_Encoding="chunked")
WHOLE = json.dumps(marks()).encode()
SLOW = {
    "silence": lambda: forever(b"", 0.02),
    "a header that drips": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\nX: "], forever(b"x", 0.02)),
    "promises without end": lambda: forever(b"HTTP/1.1 100 Continue\r\n\r\n", 0.01),
    "a body that drips": lambda: itertools.chain([HEAD], forever(b" ", 0.02)),
    "a body in bits": lambda: itertools.chain([CHUNKED], forever(b"1\r\nx\r\n" * 1000)),
}
LARGE = {
    "headers without end": lambda: itertools.chain([b"HTTP/1.1 200 OK\r\n"], forever(b"X: x\r\n" * 1000)),
    "a body without end": lambda: itertools.chain([HEAD, b'"'], forever(b"x" * 10_000)),
    "a body that says too much": lambda: [http(gzip.compress(b"x" * 10**8), Content_Encoding="gzip")],
    "a body that is packed twice": lambda: [
        http(gzip.compress(gzip.compress(b"x" * 10**8)), Content_Encoding="gzip, gzip")
    ],
    "an error without end": lambda: itertools.chain([http(b"", 400, Content_Length=None)], forever(b"x" * 10_000)),
}


@pytest.mark.parametrize("odd", [*SLOW, *LARGE])
def test_answers_are_bounded_in_size_and_in_time(odd, tmp_path, monkeypatch):
    read, started = [], time.monotonic()

    def keep(*request):
        read.append(complete(*request))
        return read[-1]

    monkeypatch.setattr("rectilinear.evaluation.judge_client.complete", keep)
    with answering(lambda body: (SLOW | LARGE)[odd]() if "Once 1" in body else [http(marks())]) as server:
        found = ask(endpoint(server, timeout=0.5 if odd in SLOW else 60), tmp_path / "j.jsonl")
    assert [found[place].outcome for place in range(3)] == ["scored", "malformed", "scored"]
    assert max(len(reply.body) for reply in read) <= 2**20
    assert (tmp_path / "j.jsonl").stat().st_size < 20_000
    assert time.monotonic() - started < 20


def test_a_whole_answer_counts_whatever_comes_after_it(tmp_path):
    """It was paid for: nobody asks again because the connection stays open, or ends too early."""
    ends = [[HEAD, WHOLE, *[b" " * 2**20] * 2], [http(WHOLE, Content_Length=10**6)]]
    ends.append(itertools.chain([HEAD, WHOLE], forever(b"\n", 0.02)))
    asked = itertools.count()
    with answering(lambda body: ends[next(asked)]) as server:
        found = ask(endpoint(server, timeout=0.5, retries=3), tmp_path / "j.jsonl")
    assert [answer.outcome for answer in found.values()] == ["scored"] * 3
    assert next(asked) == 3


@pytest.mark.parametrize("status", [400, 401, 403, 413, 500, 503, 307])
def test_a_story_that_a_judge_fails_with_does_not_keep_a_run_from_its_end(status, tmp_path):
    def script(body):
        return [http({"error": {"message": "not this one"}}, status) if "Once 1" in body else http(marks())]

    with answering(script) as server:
        found = ask(endpoint(server), tmp_path / "j.jsonl")
        assert [found[place].outcome for place in range(3)] == ["scored", "malformed", "scored"]
        assert "not this one" in found[1].answer
        server.script = lambda body: [http(marks())]
        assert ask(endpoint(server), tmp_path / "j.jsonl")[1].outcome == "scored"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_nothing_goes_where_a_judge_sends_it_on(status, tmp_path):
    with serving() as other:
        place = {"Location": f"{other.url}/chat/completions?key={KEY}"}
        with serving(lambda place_, times: (status, place, {})) as server:
            with pytest.raises(RequestError, match=f"sends requests on to {other.url}/chat/completions, where"):
                try_judge(endpoint(server))
            with pytest.raises(RequestError, match="sends requests on to"):
                ask(endpoint(server), tmp_path / "j.jsonl")
    assert (other.trials, other.asked.total()) == (0, 0)


class TestWhatIsRecorded:
    """The endpoint that was asked, and nothing that is secret."""

    @pytest.fixture
    def judged(self, tiny_checkpoint, text_file, tmp_path):
        def run(judging, **options):
            stories = Stories(text=str(text_file), count=3, beginning_words=6, max_new_tokens=8)
            return rectilinear.judge(str(tiny_checkpoint), tmp_path / "out", stories, judging, **options)

        return run

    def test_the_endpoint_is_the_one_that_was_asked(self, judged, monkeypatch, tmp_path):
        with serving() as server:
            monkeypatch.setenv("OPENAI_BASE_URL", secretive(server))
            report = judged(Judging(judge_model="wise"))
            assert server.asked.total() == 3
        assert report.judged.url == server.url
        assert json.loads((tmp_path / "out" / "request.json").read_text())["judge"]["url"] == server.url
        monkeypatch.setenv("OPENAI_BASE_URL", "elsewhere")
        with pytest.raises(RequestError, match="expected `OPENAI_BASE_URL=http"):
            judged(Judging(judge_model="wise"), overwrite=True)

    def test_secrets_are_sent_and_not_kept(self, judged, capfd, monkeypatch, tmp_path):
        monkeypatch.setenv("OPENAI_CUSTOM_HEADERS", "X-Gate: swordfish")
        said = f"{' '.join(SECRETS)} swordfish"
        with answering(lambda body: [http(reply(f"{said} {json.dumps(MARKS)}"))]) as server:
            judging = Judging(judge_model="wise", judge_url=secretive(server), retries=0)
            report = judged(judging)
        sent = b"".join(server.received).decode()
        assert f"?code={QUERY} HTTP" in sent
        assert f"Basic {SECRETS[-1]}" in sent
        assert "swordfish" in sent
        assert report.judged.outcomes["scored"] == 3
        kept = "".join(file.read_text() for file in (tmp_path / "out").iterdir())
        shown = "".join([*capfd.readouterr(), str(report), repr(judging), kept])
        assert not [secret for secret in (*SECRETS, "swordfish", "ali%20", "forty%3A") if secret in shown]
        assert JudgeReport.load(tmp_path / "out") == report

    def test_urls_of_earlier_runs_lose_what_is_secret(self, judged, tmp_path):
        with serving() as server:
            asked = Judging(judge_model="wise", judge_url=secretive(server))
            judged(asked)
            file = tmp_path / "out" / "request.json"
            noted = json.loads(file.read_text())
            file.write_text(json.dumps({**noted, "judge": {"model": "wise", "url": secretive(server)}}))
            judged(asked, resume=True)
            assert QUERY not in file.read_text()

    def test_what_was_noted_is_something_else(self, judged, tmp_path):
        judged(Judging())
        for name, text in itertools.product(["request.json", "stories.jsonl"], ["null", "{", "{}", "[1]", "\udcff"]):
            file = tmp_path / "out" / name
            whole = file.read_bytes()
            file.write_text(text, errors="surrogateescape")
            with pytest.raises(RequestError, match=f"expected a run of rectilinear judge in .*unreadable {name}"):
                judged(Judging(), resume=True)
            file.write_bytes(whole)


@pytest.mark.parametrize("status", [400, 401, 404, 418, 500])
def test_what_a_server_says_is_shown_in_one_line_without_secrets(status):
    said = f"\x1b[31mred\x07\r\n\u202e\x9b2J {' '.join(SECRETS)} " + "x" * 10_000
    answer = (status, {}, {"error": {"message": said}})
    with serving(lambda place, times: answer) as server, pytest.raises((RequestError, JobError)) as failed:
        try_judge(endpoint(server, judge_url=secretive(server)))
    message = str(failed.value)
    assert message.isprintable()
    assert "red" in message
    assert len(message) < 600
    assert not [secret for secret in SECRETS if secret in message]
    assert failed.value.__cause__ is None  # which a notebook would show


@pytest.mark.parametrize(
    "url", [f"ftp://me:{PASSWORD}@there", f"http://me:{PASSWORD}/w@there", f"me:{PASSWORD}@there?x", "http://there\x1b"]
)
def test_urls_that_are_none_are_not_repeated(url):
    with pytest.raises(RequestError, match="expected `judge_url=http://HOST:PORT/v1`, got") as failed:
        Judging(judge_model="wise", judge_url=url)
    assert PASSWORD not in str(failed.value)
    assert str(failed.value).isprintable()


@pytest.mark.parametrize("proxy", ["what://me:thieves@there", "http://me:thieves/2@there"])
def test_an_environment_that_allows_no_connection(proxy, monkeypatch):
    monkeypatch.setenv("all_proxy", proxy)
    with pytest.raises(RequestError, match="cannot ask the judge at http://127") as failed:
        check_endpoint(Judging(judge_model="m", judge_url="http://127.0.0.1:9/v1"))
    assert "thieves" not in str(failed.value)


@pytest.mark.parametrize("key", ["sk\n", "schlüssel"])
def test_keys_that_cannot_be_sent(key, tmp_path):
    judging = Judging(judge_model="m", judge_url="http://127.0.0.1:9/v1", key=key)
    with pytest.raises(RequestError, match="expected a key of printable ASCII") as failed:
        ask(judging, tmp_path / "j.jsonl")
    assert key not in str(failed.value)


@pytest.fixture
def journal(tmp_path):
    """Three answers on disk, with letters of several bytes."""
    path = tmp_path / "j.jsonl"
    answers = [Judgement(index=i, outcome="malformed", answer=f"wīß {i} 🐈") for i in range(3)]
    _, file = open_judgements(path)
    with file:
        for answer in answers:
            write_judgement(file, answer)
    return path, answers, path.read_bytes()


def test_a_journal_cut_anywhere_goes_on(journal, monkeypatch):
    path, answers, whole = journal
    monkeypatch.setattr("rectilinear.evaluation.judgements.os.fsync", lambda number: None)  # which takes its time
    for end in range(len(whole) + 1):
        path.write_bytes(whole[:end])
        kept, file = open_judgements(path)
        assert len(kept) in (whole[:end].count(b"\n"), whole[:end].count(b"\n") + 1)
        with file:
            for answer in answers[len(kept) :]:
                write_judgement(file, answer)
        assert path.read_bytes() == whole


@pytest.mark.parametrize("tail", [b"\0" * 300, b"nonsense\n", b'{"index": 1}\n\n', b"\xff\xfe", b"\n\n"])
def test_a_broken_last_line_is_left_out(tail, journal):
    path, answers, whole = journal
    path.write_bytes(whole + tail)
    assert [*read_judgements(path).values()] == answers
    open_judgements(path)[1].close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize("broken", [b"\xff", b"[" * 100_000, b"null", b'{"index": ' + b"9" * 5000 + b"}", b"\x1b[31m"])
def test_a_broken_line_in_the_middle_is_one_clear_line(broken, journal):
    path, _, whole = journal
    first, rest = whole.split(b"\n", 1)
    path.write_bytes(b"\n".join([first, broken, rest]))
    for read in (read_judgements, open_judgements):
        with pytest.raises(RequestError, match=r"j\.jsonl, line 2: expected an answer of a judge, got b'") as failed:
            read(path)
        assert str(failed.value).isprintable()
    assert path.read_bytes() == b"\n".join([first, broken, rest])


def test_a_full_disk_loses_no_earlier_answer(tmp_path, monkeypatch):
    path, synced = tmp_path / "j.jsonl", itertools.count()

    def fsync(number):
        if next(synced) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("rectilinear.evaluation.judgements.os.fsync", fsync)
    with serving() as server:
        with pytest.raises(JobError, match="No space left on device; answers so far are kept"):
            ask(endpoint(server), path)
        assert [*read_judgements(path)] == [0]
        assert path.read_bytes().endswith(b"\n")
        assert len(ask(endpoint(server), path)) == 3
