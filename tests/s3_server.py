"""A real S3 server (moto's) in a process of its own, which can be told to fail for some requests.

    python tests/s3_server.py

prints its URL and serves until its standard input ends. ``POST /-/fail/MODE/NUMBER/SKIP`` makes so many requests fail,
after so many others: ``before`` answers 503 without doing anything, ``after`` does what was asked and answers 500, as
if the answer was lost.
"""

from __future__ import annotations

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_REGION": "us-east-1",
               "AWS_ALLOW_HTTP": "true"}


class Failing:
    """The application with failures in front of it."""

    def __init__(self, application: Any) -> None:
        self._application = application
        self._mode, self._left, self._skip = "before", 0, 0

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Any:
        path = environ["PATH_INFO"].split("/")
        if path[1] == "-":
            self._mode, self._left, self._skip = path[3], int(path[4]), int(path[5])
            start_response("200 OK", [])
            return []
        if self._left <= 0 or self._skip > 0:
            self._skip -= 1
            return self._application(environ, start_response)
        self._left -= 1
        # A request body that stays unread would break the connection instead of giving an answer.
        if self._mode == "after":
            list(self._application(environ, lambda *_: None))
            start_response("500 Internal Server Error", [("Content-Length", "0")])
        else:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("503 Slow Down", [("Content-Length", "0")])
        return []


@contextmanager
def s3_server() -> Iterator[str]:
    """Start the server; its URL."""
    with subprocess.Popen([sys.executable, str(Path(__file__).resolve())], stdin=subprocess.PIPE, text=True,
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()


def ask(url: str, method: str) -> None:
    """A plain request to the server, without a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    opener.open(urllib.request.Request(url, method=method), timeout=60).close()


def fail(server: str, number: int, mode: str = "before", skip: int = 0) -> None:
    """Make so many requests fail, after so many others; 0: none any more."""
    ask(f"{server}/-/fail/{mode}/{number}/{skip}", "POST")


def main() -> None:
    """Serve until standard input ends."""
    import threading

    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = Failing(DomainDispatcherApplication(create_backend_app))
    # One request at a time: S3 decides conditions atomically, which moto's threads do not promise.
    server = make_server("127.0.0.1", 0, application, threaded=False)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(f"http://127.0.0.1:{server.port}", flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
