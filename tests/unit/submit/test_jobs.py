"""The client of a Jobs server: what is wrong with the server, in words, within seconds. The servers are real ones."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from swamp_ray.errors import RunError, UserError
from swamp_ray.on_ray.access import Access
from swamp_ray.submit import jobs as client
from swamp_ray.submit.jobs import Jobs

TOKEN = "s3cret" * 8
Answer = tuple[int, str]
Start = Callable[[Callable[[str, str], Answer]], str]


@pytest.fixture
def serve() -> Iterator[Start]:
    """Starts a server that answers a method and a path; returns its URL."""
    servers: list[ThreadingHTTPServer] = []

    def serve(answer: Callable[[str, str], Answer]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, text = answer(self.path, self.headers.get("Authorization", ""))
                self.send_response(status)
                if status == 302:
                    self.send_header("Location", text)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def version(path: str, _token: str) -> Answer:
    return (200, json.dumps({"ray_version": "2.60.0", "version": "4"})) if path == "/api/version" else (404, "")


@pytest.mark.parametrize(("status", "text", "words"), [
    (200, "<html>Grafana</html>", "not the dashboard of a Ray cluster"),
    (200, '{"version": 1}', "not the dashboard of a Ray cluster"),
    (404, "", "not the dashboard of a Ray cluster .status 404"),
    (302, "http://127.0.0.1:1/login", "status 302"),
    (401, "", "asks for a token, and none was sent"),
    (403, "", "refuses the token that was found here"),
])
def test_what_answers_is_told_apart(serve: Start, status: int, text: str, words: str) -> None:
    url = serve(lambda _path, _token: (status, text))
    with pytest.raises(UserError, match=words) as error:
        Jobs(Access(url, TOKEN, "RAY_AUTH_TOKEN"))
    assert TOKEN not in str(error.value)


def test_nothing_answers() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(UserError, match=r"--address: no Ray cluster answers \(Connection refused\)"):
            Jobs(Access(url))
    with pytest.raises(UserError, match="there is no host of this name"):
        Jobs(Access("http://no-such-host.invalid:8265"))


def test_a_server_that_says_nothing_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "CONNECT_S", 0.2)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(UserError, match="no answer in time"):
            Jobs(Access(f"http://127.0.0.1:{silent.getsockname()[1]}"))


def test_the_token_is_sent_and_is_in_no_error(serve: Start) -> None:
    sent: list[str] = []

    def answer(path: str, token: str) -> Answer:
        sent.append(token)
        return version(path, token) if path == "/api/version" else (500, f"Traceback\nValueError: {token}")

    jobs = Jobs(Access(serve(answer), TOKEN))
    with pytest.raises(RunError, match=r"ValueError: Bearer \(token\)") as error:
        jobs.all()
    assert TOKEN not in str(error.value)
    assert set(sent) == {f"Bearer {TOKEN}"}


def test_rays_own_variables_do_not_lead_elsewhere(serve: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
    # A proxy would see the token of what is only meant for this machine.
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    details = {"type": "SUBMISSION", "submission_id": "swamp-a-00000000", "status": "RUNNING", "entrypoint": "x",
               "start_time": 1_700_000_000_000, "metadata": {"swamp_name": "a", "swamp_kind": "run"}}
    other = {**details, "submission_id": "raysubmit_x", "metadata": {}}
    listed = json.dumps([details, other])
    url = serve(lambda path, token: (200, listed) if path == "/api/jobs/" else version(path, token))
    [job] = Jobs(Access(url)).all()
    assert (job.id, job.name, job.status, job.started_s) == ("swamp-a-00000000", "a", "RUNNING", 1_700_000_000.0)
