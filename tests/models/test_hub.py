"""Checkpoints are uploaded to a Hub on loopback, with a card that the Hub accepts and no local path."""

import base64
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from huggingface_hub import ModelCard

from tests.superglue import write_superglue

SIZE = ("--max-tokens", "600", "--seq-len", "16", "--device", "cpu", "--count", "1", "--kind", "drop")


class Hub(ThreadingHTTPServer):
    """Answers what huggingface_hub asks, and keeps what is committed."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.asked, self.created, self.commits, self.refuses = {}, [], [], [], False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_GET(self):
        known = self.headers.get("Authorization") == "Bearer hf_secret"
        self.answer(*((200, {"name": "me", "type": "user"}) if known else (401, {"error": "Invalid token"})))

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        hub, path = self.server, self.path.partition("?")[0]
        hub.asked.append(path)
        if path == "/api/repos/create":
            hub.created.append(json.loads(body))
            self.answer(200, {"url": f"{hub.url}/me/{hub.created[-1]['name']}"})
        elif "/preupload/" in path:
            files = [
                {"path": one["path"], "uploadMode": "regular", "shouldIgnore": False}
                for one in json.loads(body)["files"]
            ]
            self.answer(200, {"files": files})
        elif "/commit/" in path and hub.refuses:
            self.answer(500, {"error": "the disk is full"})
        elif "/commit/" in path:
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    hub.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            hub.commits.append(path)
            self.answer(200, {"commitUrl": f"{hub.url}/me/smaller/commit/1", "commitOid": "1"})
        else:
            self.answer(200, {"errors": [], "warnings": []})  # of the card's metadata

    def answer(self, status, content):
        payload = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def log_message(self, *args):
        """Nothing."""


@pytest.fixture
def hub():
    server = Hub()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def command(hub, tmp_path):
    def run(*line, token="hf_secret"):
        own = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": token, "HF_HOME": str(tmp_path)}
        return subprocess.run(
            [sys.executable, "-m", "rectilinear", *map(str, line)], env=os.environ | own, capture_output=True, text=True
        )

    return run


@pytest.fixture
def linearize(command, tiny_checkpoint, text_file, tmp_path):
    def run(*more, token="hf_secret", name="me/smaller"):
        line = ["linearize", tiny_checkpoint, "--text", text_file, *SIZE, "--out", tmp_path / "out"]
        return command(*line, "--push-to-hub", name, *more, token=token)

    return run


def test_a_checkpoint_is_uploaded_whole(linearize, hub, tmp_path, tiny_checkpoint, text_file):
    ran = linearize("--private")
    assert ran.returncode == 0, ran.stderr
    assert f"uploaded it to {hub.url}/me/smaller" in ran.stdout
    written = {file.name for file in (tmp_path / "out").iterdir() if file.is_file()}
    assert hub.files.keys() == written
    assert hub.files["model.safetensors"] == (tmp_path / "out" / "model.safetensors").read_bytes()
    assert hub.created[0]["visibility" if "visibility" in hub.created[0] else "private"] in ("private", True)
    for name, content in hub.files.items():
        for place in (tiny_checkpoint, text_file, tmp_path):
            assert str(place).encode() not in content, name
    card = ModelCard(hub.files["README.md"].decode())
    assert (card.data.library_name, card.data.tags) == ("transformers", ["rectilinear"])
    assert ModelCard(str(card)).data.to_dict() == card.data.to_dict()
    assert "/api/validate-yaml" in hub.asked
    assert json.loads(hub.files["plan.json"])["model"]["id"] == tiny_checkpoint.name


def test_what_cannot_be_uploaded_is_refused_before_any_work(linearize, tmp_path):
    ran = linearize(token="hf_other")
    assert ran.returncode == 2
    assert "expected to be logged in at the Hub for --push-to-hub" in ran.stderr
    assert "Traceback" not in ran.stderr
    ran = linearize(name="a/b/c")
    assert ran.returncode == 2
    assert "expected --push-to-hub OWNER/NAME, got 'a/b/c'" in ran.stderr
    assert not (tmp_path / "out").exists()


def test_a_failed_upload_leaves_the_checkpoint(linearize, hub, tmp_path):
    hub.refuses = True
    ran = linearize()
    assert ran.returncode == 1
    assert "could not upload to me/smaller" in ran.stderr
    assert f"the checkpoint is in {tmp_path / 'out'}" in ran.stderr
    assert "hf_secret" not in ran.stderr + ran.stdout
    assert (tmp_path / "out" / "model.safetensors").exists()


@pytest.mark.slow
def test_the_model_of_each_seed_is_uploaded(command, hub, tiny_checkpoint, text_file, tmp_path):
    write_superglue(tmp_path / "tasks", train=16, validation=8)
    tune = [
        "finetune",
        tiny_checkpoint,
        "--task",
        "cb",
        "--data",
        tmp_path / "tasks",
        "--seq-len",
        32,
        "--max-steps",
        1,
    ]
    tune += ["--text", text_file, "--max-tokens", 600, "--seeds", 2, "--out", tmp_path / "out", "--device", "cpu"]
    refused = command(*tune, "--push-to-hub", "me/tuned")
    assert refused.returncode == 2
    assert "expected --save-models with --push-to-hub" in refused.stderr
    ran = command(*tune, "--save-models", "--push-to-hub", "me/tuned")
    assert ran.returncode == 0, ran.stderr
    assert [made["name"] for made in hub.created] == ["tuned-seed-0", "tuned-seed-1"]
    assert [path.split("/")[4] for path in hub.commits] == ["tuned-seed-0", "tuned-seed-1"]
    assert hub.files["model.safetensors"] == (tmp_path / "out" / "seed-1" / "model.safetensors").read_bytes()
    for name, content in hub.files.items():
        for place in (tiny_checkpoint, text_file, tmp_path):
            assert str(place).encode() not in content, name
