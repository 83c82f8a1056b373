"""How many workers fit: arithmetic over nodes' resources, without Ray."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Mapping, Sequence

import torch

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import UserError

Resources = Mapping[str, float]


CONNECT_TIMEOUT_S = 5.0
HTTP2_SETTINGS = 4
HTTP2_GREETING = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, HTTP2_SETTINGS, 0, 0, 0, 0, 0))
_HOST_PORT = re.compile(r"(?:ray://)?(?P<host>[^:/]+):(?P<port>\d{1,5})")


def check_address(execution: ExecutionConfig) -> None:
    """Refuse an address at which nothing listens, or something else than Ray; Ray itself would try for minutes.

    Raises:
        UserError: Nothing that can be Ray answers there, the address is none, or one is needed and not given.
    """
    address = execution.address
    if execution.autoscaling and address is None:
        raise UserError("autoscaling is for a cluster: an embedded Ray is this machine alone",
                        where="execution.autoscaling", do="Give --address, or set execution.address.")
    if execution.executor != "ray" or address in (None, "auto", "local"):
        return
    match = _HOST_PORT.fullmatch(address or "")
    if match is None:
        raise UserError("an address must be auto or HOST:PORT", got=address, where="execution.address",
                        do="For example 10.0.0.1:6379, the head node's address and Ray's port.")
    try:
        _greet(match["host"], int(match["port"]))
    except (OSError, OverflowError) as error:
        raise UserError(f"no Ray cluster answers ({getattr(error, 'strerror', None) or error})", got=address,
                        do="Start one with 'ray start --head', or leave the address out for an embedded one.",
                        where="execution.address") from error


def _greet(host: str, port: int) -> None:
    """Exchange the first frames of HTTP/2, which Ray's ports speak and the dashboard's does not.

    Raises:
        OSError: Nothing listens, or it answers in another way.
    """
    with socket.create_connection((host, port), timeout=CONNECT_TIMEOUT_S) as connection:
        if os.environ.get("RAY_USE_TLS") == "1":
            return
        connection.sendall(HTTP2_GREETING)
        answer = connection.recv(9)
        if len(answer) < 9 or answer[3] != HTTP2_SETTINGS:
            raise OSError("what listens there is not Ray's own port, which is 6379 by default")


def check_device(execution: ExecutionConfig) -> None:
    """Refuse CUDA in this process where it has none; what Ray's nodes have is known later.

    Raises:
        UserError: ``device: cuda`` with ``executor: inline``, and no CUDA device.
    """
    if execution.executor == "inline" and execution.device == "cuda" and not torch.cuda.is_available():
        raise UserError("this machine has no CUDA device that torch can use", got=execution.device,
                        where="execution.device", do="Set execution.device to auto or cpu, or repair the driver.")


def unused_settings(execution: ExecutionConfig) -> list[str]:
    """What a user has set and nothing reads, or what can only slow a run; one sentence each."""
    found = []
    if execution.executor == "inline":
        names = [name for name in ("address", "num_workers", "num_gpus") if getattr(execution, name) is not None]
        found += [f"execution.{name} has no effect: the inline executor works in this process alone" for name in names]
    cores = len(os.sched_getaffinity(0))
    if execution.threads > cores and execution.address is None:
        found.append(f"execution.threads is {execution.threads}, but this machine has {cores} cores: expect a crawl")
    return found


def worker_resources(execution: ExecutionConfig, device: str) -> dict[str, float]:
    """CPUs and GPUs that one worker asks for; one GPU by default where particles train on GPUs."""
    gpus = execution.num_gpus if execution.num_gpus is not None else (1.0 if device == "cuda" else 0.0)
    return {"CPU": execution.num_cpus, "GPU": gpus}


def pack_width(execution: ExecutionConfig) -> int:
    """Particles a worker, as far as the config says so; what a measurement would choose is not known beforehand."""
    return 1 if execution.particles_per_worker == "auto" else execution.particles_per_worker


def this_machine() -> dict[str, float]:
    """What an embedded Ray would have."""
    return {"CPU": float(len(os.sched_getaffinity(0))), "GPU": float(torch.cuda.device_count())}


def capacity(nodes: Sequence[Resources], asked: Resources, ranks: int = 1) -> int:
    """How many workers the nodes hold at a time, each of so many ranks, which may be on several nodes."""
    return sum(_fit(node, asked) for node in nodes) // ranks


def pool_size(
    execution: ExecutionConfig, device: str, most_particles: int, nodes: Sequence[Resources], ranks: int = 1
) -> int:
    """How many workers run side by side: as many as the nodes hold, at most one a particle.

    Where the cluster starts nodes as they are needed, as many as there are particles, or as were asked for.

    Args:
        execution: What was asked for.
        device: Kind of device that particles train on.
        most_particles: Of the largest round.
        nodes: Resources of each node.
        ranks: Processes of a worker, each with the resources that the config gives to one.

    Raises:
        UserError: Not even one worker fits on any node, or fewer fit than were asked for.
    """
    if execution.autoscaling:
        return min(execution.num_workers or most_particles, most_particles)
    asked = worker_resources(execution, device)
    fitting = capacity(nodes, asked, ranks)
    if fitting == 0 and capacity(nodes, asked):
        raise UserError(f"each particle needs {describe_resources(asked, ranks)}, but the nodes hold "
                        f"{capacity(nodes, asked)} of these at a time",
                        do="Lower particle.num_workers, execution.num_gpus or execution.num_cpus, or add nodes.",
                        where="particle.num_workers")
    if fitting == 0:
        largest = {kind: max((node.get(kind, 0.0) for node in nodes), default=0.0) for kind in asked}
        missing = [f"{amount:g} {kind} (the largest node has {largest[kind]:g})"
                   for kind, amount in asked.items() if amount > largest[kind]]
        raise UserError("no node can hold a single worker, which needs " + (" and ".join(missing) or _text(asked)),
                        do="Lower execution.num_gpus or execution.num_cpus, or add nodes.", where="execution")
    wanted = execution.num_workers
    if wanted is None:
        return min(fitting, most_particles)
    if wanted > fitting:
        total = {kind: sum(node.get(kind, 0.0) for node in nodes) for kind in asked}
        need = {kind: amount * wanted * ranks for kind, amount in asked.items()}
        raise UserError(f"{wanted} workers need {_text(need)}, but there are {_text(total)}: {fitting} fit at a time",
                        do=f"Set execution.num_workers to at most {fitting}; particles then run in waves.",
                        where="execution.num_workers")
    return min(wanted, most_particles)


def _fit(node: Resources, asked: Resources) -> int:
    limits = [_slots(node.get(kind, 0.0), amount, whole=kind == "GPU") for kind, amount in asked.items() if amount > 0]
    return min(limits) if limits else max(1, int(node.get("CPU", 1.0)))


def _slots(have: float, amount: float, whole: bool) -> int:
    """Fractions of a GPU do not span two GPUs."""
    if whole and amount < 1:
        return int(have) * int(1 / amount + 1e-9)
    return int(have / amount + 1e-9)


def describe_resources(resources: Resources, ranks: int = 1) -> str:
    """``"1 CPU and 1 GPU"``, without what is not needed; ``"3 x (1 CPU and 1 GPU)"`` for so many ranks."""
    needed = {kind: amount for kind, amount in resources.items() if amount > 0}
    text = _text(needed) or "nothing"
    if ranks == 1:
        return text
    return f"{ranks} x ({text})" if len(needed) > 1 else f"{ranks} x {text}"


def _text(resources: Resources) -> str:
    return " and ".join(f"{amount:g} {kind}" for kind, amount in resources.items())
