"""A judge on loopback that says what a test wants it to say, and counts what it is asked."""

import json
import threading
import time
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socketserver import StreamRequestHandler, ThreadingTCPServer

from rectilinear.evaluation.judge_client import TRIAL

MARKS = {"grammar": 7, "creativity": 5, "consistency": 6, "plot": 4}


def reply(content=None, refusal=None, finish_reason="stop"):
    """The body of an answer."""
    message = {"role": "assistant", "content": content, "refusal": refusal}
    choice = {"index": 0, "message": message, "finish_reason": finish_reason}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {
        "id": "x", "object": "chat.completion", "created": 0, "model": "judge", "choices": [choice], "usage": usage
    }  # fmt: skip


def marks(**changes):
    return reply(json.dumps({**MARKS, **changes}))


class Server(ThreadingHTTPServer):
    """Answers with ``script(place, times)``: a body, or (status, headers, body) for the request of that place.

    Requests that only try whether there is a judge are counted apart: refused as that of the first place would be,
    else answered with ``trial``.
    """

    daemon_threads = True

    def __init__(self, script, delay=0.0, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.script, self.delay = script, delay
        self.asked, self.answered = Counter(), Counter()
        self.keys, self.bodies, self.trials, self.trial = [], [], 0, marks()
        self.lock, self.running, self.most = threading.Lock(), 0, 0

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    """One request."""

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        story = body["messages"][-1]["content"]
        server = self.server
        if TRIAL.beginning in story:
            server.trials += 1
            answer = server.script(0, 1)
            self.answer(*(answer if isinstance(answer, tuple) else (200, {}, server.trial)))
            return
        with server.lock:
            server.asked[story] += 1
            place, times = list(server.asked).index(story), server.asked[story]
            server.keys.append(self.headers["Authorization"])
            server.bodies.append({"path": self.path, **body})
            server.running += 1
            server.most = max(server.most, server.running)
        time.sleep(server.delay)
        answer = server.script(place, times)
        status, headers, content = answer if isinstance(answer, tuple) else (200, {}, answer)
        with server.lock:
            server.running -= 1
            server.answered[story] += status == 200
        self.answer(status, headers, content)

    def answer(self, status, headers, content):
        try:
            payload = json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json", "Content-Length": len(payload)}.items():
                self.send_header(name, str(value))
            self.end_headers()
            self.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):  # who asked is gone
            pass

    def log_message(self, *args):
        """Nothing."""


@contextmanager
def serving(script=lambda place, times: marks(), delay=0.0, port=0):
    """A judge, while open."""
    server = Server(script, delay, port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()


class RawHandler(StreamRequestHandler):
    """One request, answered with any bytes, at any pace."""

    def handle(self):
        while (line := self.rfile.readline()).strip():
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
            self.server.received.append(line)
        body = self.rfile.read(length).decode()
        try:
            for part in [http(marks())] if TRIAL.beginning in body else self.server.script(body):
                self.wfile.write(part)
        except OSError:  # who asked is gone
            pass


def http(body, status=200, **headers):
    """An answer as the bytes of HTTP; a body that is no bytes is sent as JSON."""
    payload = body if isinstance(body, bytes) else json.dumps(body).encode()
    named = {"Content_Type": "application/json", "Content_Length": len(payload), **headers}
    lines = [f"{name.replace('_', '-')}: {value}\r\n" for name, value in named.items() if value is not None]
    return f"HTTP/1.1 {status} Said\r\n{''.join(lines)}\r\n".encode("latin-1", "replace") + payload


@contextmanager
def answering(script):
    """A judge that answers a request with the parts that ``script(body)`` yields, and closes; trials with marks."""
    with ThreadingTCPServer(("127.0.0.1", 0), RawHandler) as server:
        server.daemon_threads, server.block_on_close = True, False
        server.script, server.received = script, []
        server.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        yield server
        server.shutdown()
