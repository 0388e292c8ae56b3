"""An endpoint as a captioner, against a real HTTP server that fails on purpose: nothing is lost, nothing paid twice."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from PIL import Image

from pipelines import endpoint
from pipelines.answers import Answer
from pipelines.captioner import Captioner
from pipelines.endpoint import Endpoint
from pipelines.models import HASH_DIGITS
from tests.pipelines.conftest import picture, write_tar


class Server(ThreadingHTTPServer):
    """Answers with what `faults` says, one a request, then well. `paid`: good answers given; `keys`: seen."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.faults, self.paid, self.keys = faults, 0, set()
        self.lock = threading.Lock()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        image, text = body["messages"][0]["content"]
        assert self.path == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 0
        assert image["image_url"]["url"].startswith("data:image/jpeg;base64,")
        with self.server.lock:
            self.server.keys.add(self.headers.get("Authorization"))
            fault = self.server.faults.pop(0) if self.server.faults else "good"
            self.server.paid += fault == "good"
        if fault == "hang up":
            self.connection.close()
            return
        if fault.isdigit():
            self.send_response(int(fault))
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        reason = fault if fault == "length" else "stop"
        choice = {"message": {"content": f"The image shows {text['text']}"}, "finish_reason": reason}
        answer = {"choices": [choice], "usage": {"completion_tokens": 7}}
        data = b"<html>" if fault == "no json" else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        """Silence."""


@pytest.fixture
def serve(monkeypatch) -> Iterator:
    """Starts servers with the given faults."""
    monkeypatch.setattr(endpoint, "FIRST_WAIT", 0.01)
    servers = []

    def start(*faults: str) -> Server:
        server = Server(list(faults))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


IMAGE = Image.new("RGB", (40, 30))


def test_a_server_that_fails_is_asked_again_until_it_answers(serve, tmp_path):
    server = serve("hang up", "503", "no json")
    (answer,) = Endpoint(f"{server.address}#m", 64, str(tmp_path)).say("two cats", [IMAGE], ["h"])
    assert answer == Answer("The image shows two cats", "stop", 7) and server.paid == 1


def test_an_answer_is_paid_for_once(serve, tmp_path):
    server = serve()
    for _ in range(2):
        Endpoint(f"{server.address}#m", 64, str(tmp_path)).say("cats", [IMAGE] * 3, ["a", "b", "c"])
    assert server.paid == 3
    Endpoint(f"{server.address}#m", 64, str(tmp_path)).say("dogs", [IMAGE], ["a"])
    assert server.paid == 4


def test_what_came_before_the_server_died_is_kept(serve, tmp_path):
    dying = serve("good", "good", *["500"] * 100)
    with pytest.raises(ConnectionError, match="HTTP 500"):
        Endpoint(f"{dying.address}#m", 64, str(tmp_path)).say("cats", [IMAGE] * 5, list("abcde"))
    alive = serve()
    answers = Endpoint(f"{alive.address}#m", 64, str(tmp_path)).say("cats", [IMAGE] * 5, list("abcde"))
    assert [answer.reason for answer in answers] == ["stop"] * 5 and alive.paid == 3


def test_a_dead_address_does_not_stop_the_other(serve, tmp_path):
    dead, alive = serve(*["503"] * 100), serve()
    engine = Endpoint(f"{dead.address},{alive.address}#m", 64, str(tmp_path))
    assert engine.say("cats", [IMAGE], ["a"])[0].reason == "stop" and alive.paid == 1


def test_a_refused_request_fails_alone_and_a_refused_key_stops(serve, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = serve("400")
    answers = Endpoint(f"{server.address}#m", 64, str(tmp_path)).say("cats", [IMAGE] * 2, ["a", "b"])
    assert sorted(answer.reason for answer in answers) == ["failed:http_400", "stop"]
    assert server.keys == {"Bearer secret"}
    assert not [path for path in tmp_path.rglob("*.json") if "secret" in path.read_text()]
    with pytest.raises(ConnectionError, match="HTTP 401"):
        Endpoint(f"{serve('401').address}#m", 64, str(tmp_path)).say("cats", [IMAGE], ["z"])


def test_a_unit_is_captioned_through_the_endpoint(serve, tmp_path):
    data = picture(1)
    write_tar(tmp_path / "0.tar", [("0.jpg", data)])
    server = serve("length")
    options = {"batch": 4, "max_new_tokens": 64, "skip_sources": [], "refuse": [], "answers": str(tmp_path)}
    captioner = Captioner(f"{server.address}#m", "endpoint:m", [{"id": "p", "text": "a red field"}], options)
    row = {
        "uid": "0" * HASH_DIGITS,
        "source": "web",
        "kind": "pair",
        "text": "",
        "offset": 512,
        "size": len(data),
    }
    (caption,) = captioner.captions(str(tmp_path / "0.tar"), [row | {"hash": "h"}])
    assert caption["text"] == "A red field" and caption["raw"] == "The image shows a red field"
    assert (caption["finish_reason"], caption["tokens"], caption["captioner"]) == ("length", 7, "endpoint:m")


def test_an_address_without_a_model():
    with pytest.raises(ValueError, match="add #MODEL"):
        endpoint.split("http://127.0.0.1:1/v1")
