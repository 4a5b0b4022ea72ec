"""``rectilinear judge`` as a process: what it prints and keeps, and what is left of it when it is stopped."""

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.conftest import build_llama
from tests.judges import serving

SIZE = ("--count", 12, "--beginning-words", 6, "--max-new-tokens", 8, "--device", "cpu")


@pytest.fixture
def keyed(environment, monkeypatch):
    """The key, for processes and for this one."""
    monkeypatch.setenv("OPENAI_API_KEY", "sesame")
    monkeypatch.setitem(environment, "OPENAI_API_KEY", "sesame")
    return environment


@pytest.mark.slow
def test_it_says_what_it_will_take_and_what_came_of_it(process, command, keyed, tiny_checkpoint, text_file, tmp_path):
    out = tmp_path / "out"
    with serving() as server:
        asked = ("--text", text_file, *SIZE, "--judge-url", server.url, "--judge-model", "wise", "--out", out)
        dry = command("judge", tiny_checkpoint, *asked, "--dry-run", "--prices", 2.5, 10)
        assert (dry.code, dry.out) == (0, "")
        assert "wise is asked about 12 stories: about " in dry.err
        numbers = [int(number.replace(",", "")) for number in re.findall(r"(?:about|most) ([\d,]+) ", dry.err)]
        _, prompt_tokens, answer_tokens = numbers
        assert f"at most about {(prompt_tokens * 2.5 + answer_tokens * 10) / 1e6:.2g} by --prices" in dry.err
        assert not server.asked
        again = command("judge", tiny_checkpoint, *asked)
        assert again.code == 2
        assert "is not empty; try --resume" in again.err
        ran = process("judge", tiny_checkpoint, *asked, "--resume", "--reference", tiny_checkpoint)
    assert ran.code == 0
    assert [*server.asked.values()] == [1] * 12
    report = json.loads((out / "judge.json").read_text())
    assert "wise: 12 scored, 0 refused, 0 malformed; 1,200 tokens of requests, 120 of answers" in ran.out
    shown = [[cell.strip() for cell in line.strip("│").split("│")] for line in ran.out.splitlines() if line[:1] == "│"]
    assert shown[-1] == ["7.00 ± 0.00", "5.00 ± 0.00", "6.00 ± 0.00", "4.00 ± 0.00"]
    counted = {name: cells for name, *cells in shown[:-1]}
    assert counted["distinct-2"] == [f"{report[part]['distinct_2']:.4f}" for part in ("completions", "endings")]
    assert counted[f"loss under {tiny_checkpoint.name}"][0].startswith(f"{report['reference']['completions']:.4f} ±")
    assert sorted(file.name for file in out.iterdir()) == [
        "judge.json", "judgements.jsonl", "request.json", "stories.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize(
    "number",
    [
        pytest.param(signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, marks=pytest.mark.slow),
        signal.SIGKILL,
    ],
    ids=lambda number: number.name,
)
def test_a_run_that_was_stopped_goes_on(number, keyed, command, tiny_checkpoint, text_file, tmp_path):
    """No beginning is asked twice; only a kill loses what was under way, and no more than that."""
    out = tmp_path / "out"
    with serving(delay=0.25) as server:
        asked = ("--text", text_file, *SIZE, "--judge-url", server.url, "--judge-model", "wise", "--concurrency", 2)
        arguments = [str(word) for word in ("judge", tiny_checkpoint, *asked, "--out", out)]
        running = subprocess.Popen(
            [sys.executable, "-m", "rectilinear", *arguments],
            env=keyed,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )
        deadline = time.monotonic() + 90
        while server.answered.total() < 5:
            assert time.monotonic() < deadline
            assert running.poll() is None
            time.sleep(0.01)
        running.send_signal(number)
        printed, said = running.communicate(timeout=60)
        assert (printed, running.returncode) == (b"", {2: 130, 15: 143, 9: -9}[number])
        kept = len((out / "judgements.jsonl").read_text().splitlines())
        assert 3 <= kept < 12
        assert not (out / "judge.json").exists()
        if number == signal.SIGINT:
            assert said.decode().endswith(f"{out} keeps the stories and the answers so far; to go on, add --resume\n")
        time.sleep(0.3)  # the last requests of a killed process are answered to nobody
        ran = command(*arguments, "--resume")
        assert ran.code == 0
        assert f"wise is asked about {12 - kept} stories" in ran.err
    assert len(server.asked) == 12
    assert server.asked.total() <= 12 + (2 if number == signal.SIGKILL else 0)
    assert json.loads((out / "judge.json").read_text())["judged"]["outcomes"]["scored"] == 12


@pytest.mark.slow
def test_of_two_that_go_on_at_once_one_is_refused(keyed, command, tiny_checkpoint, text_file, tmp_path):
    """No story is asked twice."""
    out = tmp_path / "out"
    written = ("judge", tiny_checkpoint, "--text", text_file, *SIZE, "--out", out)
    assert command(*written).code == 0
    with serving(delay=0.5) as server:
        judge = ("--judge-url", server.url, "--judge-model", "wise", "--concurrency", 1, "--resume")
        line = [sys.executable, "-m", "rectilinear", *map(str, (*written, *judge))]
        both = [subprocess.Popen(line, env=keyed, stderr=subprocess.PIPE, encoding="utf-8") for _ in range(2)]
        said = {running.pid: (running.communicate(timeout=90)[1], running.returncode) for running in both}
    (winner, (_, code)), (_, (refusal, refused)) = sorted(said.items(), key=lambda one: one[1][1])
    assert (code, refused) == (0, 2)
    assert f"another run (process {winner}) is writing to {out}" in refusal.splitlines()[-1]
    assert [*server.asked.values()] == [1] * 12
    assert json.loads((out / "judge.json").read_text())["judged"]["outcomes"]["scored"] == 12


def test_wrong_requests(command, tiny_checkpoint, text_file, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "wrong")
    asked = ("judge", tiny_checkpoint, "--text", text_file, *SIZE)
    ran = command(*asked, "--out", tmp_path / "a", "--concurrency", 3)
    assert ran.code == 2
    assert "--concurrency" in ran.err
    with serving(lambda place, times: (401, {}, {"error": {"message": "who are you"}})) as server:
        ran = command(*asked, "--out", tmp_path / "b", "--judge-url", server.url, "--judge-model", "wise")
    assert ran.code == 2
    assert ran.err.splitlines()[-1].startswith("rectilinear: error: expected a key that http://127.0.0.1")


@pytest.mark.slow
def test_a_real_server(keyed, command, tiny_checkpoint, text_file, tmp_path):
    """``transformers serve`` with a tiny model, which babbles: every answer is malformed, and none is scored."""
    served = tmp_path / "served"
    shutil.copytree(tiny_checkpoint, served)
    build_llama(seed=9).save_pretrained(served)
    config = json.loads((served / "config.json").read_text())
    (served / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    tokenizer = AutoTokenizer.from_pretrained(served)
    tokenizer.chat_template = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"
    tokenizer.save_pretrained(served)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    where = ("--host", "127.0.0.1", "--port", str(port), "--device", "cpu")
    program = shutil.which("transformers", path=str(Path(sys.executable).parent))
    server = subprocess.Popen([program, "serve", *where], env=keyed)
    try:
        deadline = time.monotonic() + 100
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2)
                break
            except OSError:
                assert time.monotonic() < deadline
                assert server.poll() is None
                time.sleep(0.5)
        size = ("--count", 3, "--beginning-words", 6, "--max-new-tokens", 8, "--device", "cpu")
        judge = ("--judge-url", f"http://127.0.0.1:{port}/v1", "--judge-model", served, "--free-form")
        ran = command("judge", tiny_checkpoint, "--text", text_file, *size, *judge, "--out", tmp_path / "out")
    finally:
        server.kill()
        server.wait()
    assert ran.code == 0, ran.err
    judged = json.loads((tmp_path / "out" / "judge.json").read_text())["judged"]
    assert judged["outcomes"] == {"scored": 0, "refused": 0, "malformed": 3}
    assert judged["marks"] == {}
    assert judged["prompt_tokens"] > 300
    assert "3 malformed" in ran.out
