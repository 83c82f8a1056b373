"""What is found about ports: who listens, and who answers somebody without a token."""

from __future__ import annotations

import contextlib
import http.server
import os
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from swamp_ray.on_ray.listening import Listener, _address, answer_without_token, listeners


@contextlib.contextmanager
def web_server(status: int) -> Iterator[Listener]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing is printed."""

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Listener("127.0.0.1", server.server_port, "web")
        server.shutdown()
        thread.join()


class Service(grpc.GenericRpcHandler):
    """A method that answers, or refuses with a code."""

    def __init__(self, method: str, refusal: grpc.StatusCode | None) -> None:
        self.method, self.refusal = method, refusal

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler | None:
        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if self.refusal is not None:
                context.abort(self.refusal, "no")
            return b"secret"

        return grpc.unary_unary_rpc_method_handler(answer) if handler_call_details.method == self.method else None


@contextlib.contextmanager
def grpc_server(method: str, refusal: grpc.StatusCode | None) -> Iterator[Listener]:
    server = grpc.server(ThreadPoolExecutor(1))
    server.add_generic_rpc_handlers((Service(method, refusal),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield Listener("127.0.0.1", port, "rpc")
    server.stop(None).wait()


@pytest.mark.parametrize(("status", "answer"), [
    (401, None), (403, None), (200, "HTTP 200"), (400, "HTTP 400"), (404, "HTTP 404"), (500, "HTTP 500"),
])
def test_a_web_server_has_to_refuse(status: int, answer: str | None) -> None:
    with web_server(status) as listener:
        assert answer_without_token(listener) == answer


@pytest.mark.parametrize(("method", "refusal", "is_open"), [
    ("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", None, True),
    ("/ray.rpc.NodeManagerService/GetSystemConfig", None, True),
    ("/ray.rpc.CoreWorkerService/GetCoreWorkerStats", grpc.StatusCode.INVALID_ARGUMENT, True),
    ("/ray.rpc.NodeInfoGcsService/GetAllNodeInfo", grpc.StatusCode.UNAUTHENTICATED, False),
    ("/ray.rpc.ObjectManagerService/Pull", grpc.StatusCode.PERMISSION_DENIED, False),
])
def test_a_service_has_to_refuse(method: str, refusal: grpc.StatusCode | None, is_open: bool) -> None:
    with grpc_server(method, refusal) as listener:
        assert answer_without_token(listener) == (method if is_open else None)


def test_a_port_on_which_nobody_listens_gives_nothing_away() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert answer_without_token(Listener("127.0.0.1", free.getsockname()[1], "none")) is None


@pytest.mark.parametrize(("family", "host", "is_local"), [
    (socket.AF_INET, "127.0.0.1", True), (socket.AF_INET, "0.0.0.0", False), (socket.AF_INET6, "::1", True),
    (socket.AF_INET6, "::", False),
])
def test_the_ports_of_a_process_are_found(family: socket.AddressFamily, host: str, is_local: bool) -> None:
    with socket.socket(family) as listening:
        try:
            listening.bind((host, 0))
        except OSError:
            pytest.skip(f"{host} is not there")
        listening.listen()
        port = listening.getsockname()[1]
        found = listeners(os.getpid())
        assert found is not None
        (one,) = [one for one in found if one.port == port]
        assert (one.host, one.is_local) == (host, is_local)


@pytest.mark.parametrize(("text", "host"), [
    ("0100007F:1F90", "127.0.0.1"), ("00000000:1F90", "0.0.0.0"), ("020200C0:1F90", "192.0.2.2"),
    ("00000000000000000000000000000000:1F90", "::"), ("00000000000000000000000001000000:1F90", "::1"),
    ("0000000000000000FFFF00000100007F:1F90", "127.0.0.1"),
])
def test_addresses_of_the_kernel(text: str, host: str) -> None:
    assert _address(text) == (host, 8080)
