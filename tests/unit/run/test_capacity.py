"""Workers on nodes, and addresses at which no Ray answers."""

from __future__ import annotations

import http.server
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import UserError
from swamp_ray.run.capacity import (
    capacity,
    check_address,
    describe_resources,
    pool_size,
    this_machine,
    unused_settings,
    worker_resources,
)


@pytest.mark.parametrize(("nodes", "asked", "workers"), [
    ([{"CPU": 8, "GPU": 2}], {"CPU": 1, "GPU": 0.6}, 2),
    ([{"CPU": 8, "GPU": 2}], {"CPU": 1, "GPU": 0.1}, 8),
    ([{"CPU": 32, "GPU": 1}], {"CPU": 1, "GPU": 1 / 3}, 3),
    ([{"CPU": 8, "GPU": 3}], {"CPU": 1, "GPU": 2}, 1),
    ([{"CPU": 1, "GPU": 1}] * 3, {"CPU": 1, "GPU": 1}, 3),
    ([{"CPU": 0.3}], {"CPU": 0.1, "GPU": 0}, 3),
    ([{"CPU": 4}], {"CPU": 0, "GPU": 0}, 4),
    ([{"CPU": 4}], {"CPU": 1, "GPU": 0.5}, 0),
    ([], {"CPU": 1, "GPU": 0}, 0),
])
def test_capacity(nodes: list[dict[str, float]], asked: dict[str, float], workers: int) -> None:
    assert capacity(nodes, asked) == workers


def test_a_particle_of_several_ranks_takes_the_resources_of_each() -> None:
    nodes = [{"CPU": 4.0, "GPU": 2.0}] * 2
    assert capacity(nodes, {"CPU": 1, "GPU": 1}, ranks=3) == 1, "ranks may be on several nodes"
    assert pool_size(ExecutionConfig(), "cpu", 9, nodes, ranks=3) == 2
    assert describe_resources({"CPU": 1, "GPU": 1}, ranks=3) == "3 x (1 CPU and 1 GPU)"
    with pytest.raises(UserError, match=r"each particle needs 5 x \(1 CPU and 1 GPU\), but the nodes hold 4 of these"):
        pool_size(ExecutionConfig(), "cuda", 9, nodes, ranks=5)
    with pytest.raises(UserError, match=r"2 workers need 6 CPU and 6 GPU, but there are 8 CPU and 4 GPU: 1 fit"):
        pool_size(ExecutionConfig(num_workers=2), "cuda", 9, nodes, ranks=3)


def test_a_worker_takes_a_gpu_where_particles_train_on_gpus() -> None:
    assert worker_resources(ExecutionConfig(), "cuda") == {"CPU": 1, "GPU": 1}
    assert worker_resources(ExecutionConfig(), "cpu") == {"CPU": 1, "GPU": 0}
    assert worker_resources(ExecutionConfig(num_gpus=0.25, num_cpus=2), "cuda") == {"CPU": 2, "GPU": 0.25}


def test_the_pool_has_at_most_one_worker_a_particle() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 4.0}]
    assert pool_size(ExecutionConfig(), "cpu", 3, nodes) == 3
    assert pool_size(ExecutionConfig(), "cpu", 30, nodes) == 8
    assert pool_size(ExecutionConfig(num_workers=2), "cpu", 30, nodes) == 2
    assert pool_size(ExecutionConfig(num_workers=8), "cpu", 3, nodes) == 3


@pytest.mark.parametrize(("values", "message"), [
    ({"num_gpus": 1.0}, r"needs 1 GPU \(the largest node has 0\)"),
    ({"num_cpus": 5.0}, r"needs 5 CPU \(the largest node has 4\)"),
    ({"num_workers": 9}, r"9 workers need 9 CPU .* but there are 8 CPU .*: 8 fit at a time.* at most 8"),
])
def test_what_can_never_be_scheduled_says_what_is_missing(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        pool_size(ExecutionConfig(**values), "cpu", 3, [{"CPU": 4.0}, {"CPU": 4.0}])


def test_this_machine_has_a_core() -> None:
    assert this_machine()["CPU"] >= 1


@pytest.fixture
def web_server() -> Iterator[str]:
    class Silent(http.server.BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Silent)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_a_port_of_something_else_is_refused_at_once(web_server: str) -> None:
    with pytest.raises(UserError, match=r"no Ray cluster answers \(what listens there is not Ray's own port"):
        check_address(ExecutionConfig(address=web_server))


def test_a_port_that_says_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("swamp_ray.run.capacity.CONNECT_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with pytest.raises(UserError, match="timed out"):
            check_address(ExecutionConfig(address=address))
    with pytest.raises(UserError, match="Connection refused"):
        check_address(ExecutionConfig(address=address))


@pytest.mark.parametrize("address", ["head", "10.0.0.1", "http://10.0.0.1:8265", "10.0.0.1:port"])
def test_what_is_no_address_is_refused_with_an_example(address: str) -> None:
    with pytest.raises(UserError, match=r"must be auto or HOST:PORT.*10\.0\.0\.1:6379"):
        check_address(ExecutionConfig(address=address))


@pytest.mark.parametrize("values", [{}, {"address": "auto"}, {"address": "10.0.0.1:1", "executor": "inline"}])
def test_what_needs_no_connection_is_not_asked(values: dict[str, Any]) -> None:
    check_address(ExecutionConfig(**values))


def test_settings_without_effect_are_named() -> None:
    assert unused_settings(ExecutionConfig(num_workers=2, address="auto")) == []
    found = unused_settings(ExecutionConfig(executor="inline", num_gpus=4, address="1.2.3.4:5"))
    assert [text.split()[0] for text in found] == ["execution.address", "execution.num_gpus"]
    assert "cores" in unused_settings(ExecutionConfig(threads=10_000))[0]
