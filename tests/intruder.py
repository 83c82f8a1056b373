"""Somebody on the network who has no token, or a wrong one: asks every port for everything that Ray offers.

    python intruder.py HOST MARKER PORT...

Prints as JSON what was answered (`answers`), and how often and where it was refused (`refusals`). A job that is
accepted makes the file MARKER.
"""

from __future__ import annotations

import http.client
import importlib
import json
import os
import pkgutil
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any

import grpc

PATIENCE_S = 5.0
WRONG = "Bearer " + "0" * 64
# Whether a server is alive may be asked by everybody.
HARMLESS = {"/grpc.health.v1.Health/Check", "GET /api/local_raylet_healthz"}
REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
# Nothing of the kind is there: no such method, or not a gRPC port at all.
ABSENT = (grpc.StatusCode.UNIMPLEMENTED, grpc.StatusCode.UNAVAILABLE)


def methods() -> Iterator[str]:
    """Every call of every service that this Ray has."""
    import ray.core.generated as generated

    for found in pkgutil.iter_modules(generated.__path__):
        if not found.name.endswith("_pb2"):
            continue
        module = importlib.import_module(f"{generated.__name__}.{found.name}")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                yield f"/{service.full_name}/{method.name}"


def requests(marker: str) -> list[tuple[str, str, str | None]]:
    """What is tried over HTTP: to run a command, to read, to have an environment built."""
    job = json.dumps({"entrypoint": f"touch {marker}"})
    return [("POST", "/api/job_agent/jobs/", job), ("POST", "/api/jobs/", job), ("GET", "/api/jobs/", None),
            ("GET", "/", None), ("GET", "/metrics", None), ("GET", "/api/version", None), ("GET", "/nodes", None),
            ("GET", "/api/local_raylet_healthz", None), ("POST", "/get_or_create_runtime_env", "x"),
            ("POST", "/delete_runtime_env_if_possible", "x"), ("PUT", "/api/packages/protocol/gcs/x.zip", "x")]


def over_http(host: str, port: int, marker: str, token: str | None) -> Iterator[tuple[str, int]]:
    """Statuses of the requests; nothing where the port does not speak HTTP/1."""
    headers = {"Content-Type": "application/json", **({"Authorization": token} if token else {})}
    for verb, path, body in requests(marker):
        connection = http.client.HTTPConnection(host, port, timeout=PATIENCE_S)
        try:
            connection.request(verb, path, body, headers)
            yield f"{verb} {path}", connection.getresponse().status
        except (OSError, http.client.HTTPException):
            return
        finally:
            connection.close()


def over_grpc(host: str, port: int, token: str | None) -> Iterator[tuple[str, Any]]:
    """Status codes of the calls, None for an answer; nothing where the port does not speak gRPC."""
    with grpc.insecure_channel(f"{host}:{port}", [("grpc.enable_http_proxy", 0)]) as channel:
        for method in methods():
            call = channel.unary_unary(method)
            try:
                call(b"", timeout=PATIENCE_S, metadata=(("authorization", token),) if token else None)
                yield method, None
            except grpc.RpcError as error:
                code = error.code()
                yield method, code
                if code == grpc.StatusCode.UNAVAILABLE:
                    return


def main() -> None:
    """Try all of it."""
    host, marker, *ports = sys.argv[1:]
    for variable in [name for name in os.environ if name.startswith("RAY_AUTH") or name.lower().endswith("_proxy")]:
        del os.environ[variable]
    answers, refusals = [], Counter()
    for port in map(int, ports):
        for token in (None, WRONG):
            for what, status in over_http(host, port, marker, token):
                if status in (401, 403):
                    refusals[f"http {port}"] += 1
                elif what not in HARMLESS:
                    answers.append(f"{port} {what}: {status}")
            for what, code in over_grpc(host, port, token):
                if code in REFUSED:
                    refusals[f"grpc {port}"] += 1
                elif code not in ABSENT and what not in HARMLESS:
                    answers.append(f"{port} {what}: {code}")
    print(json.dumps({"answers": answers, "refusals": refusals}))


if __name__ == "__main__":
    main()
