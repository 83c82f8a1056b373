"""The Ray cluster of a run: one that is joined, or an embedded one, and what its nodes have."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import ray
from ray._private import worker as ray_worker
from ray._private.state import available_resources_per_node

from swamp_ray.config.sections import ExecutionConfig
from swamp_ray.errors import RunError, UserError, first_line
from swamp_ray.on_ray.access import find_token
from swamp_ray.on_ray.lifeline import Lifeline, no_lines_of_ray, quiet_core
from swamp_ray.on_ray.listening import answer_without_token, listeners
from swamp_ray.on_ray.own_token import OwnToken, private_folder
from swamp_ray.run.placement import Node

SHUTDOWN_S = 4.0
COUNT_NODES_S = 5.0
"""So often whoever has workers counts the living nodes."""


class _Session:
    """What this process has joined or started, for as long as somebody here uses it.

    Attributes:
        address: Of the cluster that was joined; None for an embedded Ray.
        token: Of the embedded Ray.
        node: Ray's record of this connection: a caller may have ended it and started another one.
        num_users: Connections that are not closed.
    """

    def __init__(self, address: str | None, token: OwnToken | None) -> None:
        self.address = address
        self.token = token
        self.num_users = 0
        self.node = ray_worker._global_node
        self.lifeline = Lifeline(address)
        self._silence = contextlib.ExitStack()
        self._silence.enter_context(no_lines_of_ray())

    @property
    def is_current(self) -> bool:
        """Whether this process still uses it."""
        return ray.is_initialized() and self.node is ray_worker._global_node

    def put_back(self) -> None:
        """Leave this process as it was before Ray was joined or started; a second call does nothing."""
        self.lifeline.close()
        self._silence.close()
        if self.token is not None:
            self.token.put_back()


class Connection:
    """A share in this process's connection to Ray. The last one to close ends what was joined or started."""

    def __init__(self, session: _Session | None) -> None:
        self._session = session

    def close(self) -> None:
        """Give the share back; a second call does nothing. A Ray that the caller had started goes on."""
        session = self._session
        self._session = None
        if session is None:
            return
        with _lock:
            session.num_users -= 1
            if not session.num_users:
                _end(session)


# Runs may work in several threads of a process, which has one connection to Ray at most.
_lock = threading.RLock()
_sessions: list[_Session] = []


def connect(execution: ExecutionConfig) -> Connection:
    """Join a running cluster or start an embedded one, unless this process is connected already.

    Raises:
        UserError: No Ray answers at the address, or this process uses another one.
    """
    with _lock:
        session = next((one for one in _sessions if one.is_current), None)
        if not ray.is_initialized():
            for ended in _sessions:
                ended.put_back()
            session = _joined(execution.address) if execution.address is not None else _started()
            _sessions.append(session)
        elif session is None:
            return Connection(None)
        elif (text := session.lifeline.lost()) is not None:
            raise RunError(text)
        elif session.address != execution.address:
            raise UserError("another run of this process uses another Ray, and a process can use one at a time",
                            got=execution.address or "an embedded Ray", where="execution.address",
                            do=f"Name the other run's here too ({session.address or 'no address'}), wait for its end, "
                               "or start this one in a process of its own.")
        session.num_users += 1
        return Connection(session)


def _started() -> _Session:
    token = OwnToken()
    try:
        with _own_signals(), quiet_core():
            _in_a_lasting_thread(lambda: ray.init(
                address="local", include_dashboard=False, _temp_dir=private_folder(), **_QUIET))
    except (OSError, RuntimeError, ValueError) as error:
        token.put_back()
        raise UserError(f"Ray could not be started on this machine ({first_line(error)})", where="Ray",
                        do="Try swamp doctor, or --executor inline, which does without Ray.") from error
    except BaseException:
        token.put_back()
        raise
    return _Session(None, token)


def _in_a_lasting_thread(start: Callable[[], object]) -> None:
    """Start Ray's processes from a thread that lasts as long as this process.

    Linux ends them together with the thread that started them, because Ray asks for the signal of a parent's death; and
    the thread of a run may end while other runs use the same Ray.
    """
    if threading.current_thread() is threading.main_thread():
        start()
        return
    started = threading.Event()
    errors: list[BaseException] = []

    def carry_out() -> None:
        try:
            start()
        except BaseException as error:
            errors.append(error)
        started.set()
        if not errors:
            threading.Event().wait()

    threading.Thread(target=carry_out, name="swamp-starts-ray", daemon=True).start()
    started.wait()
    if errors:
        raise errors[0]


def _joined(address: str) -> _Session:
    try:
        with _own_signals(), quiet_core():
            ray.init(address=address, **_QUIET)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"no Ray cluster answers ({str(error).splitlines()[0]})", got=address,
                        do="Start one with 'ray start --head', or leave the address out for an embedded one. If it "
                           "asks for a token, set RAY_AUTH_MODE=token, and name its file in RAY_AUTH_TOKEN_PATH.",
                        where="execution.address") from error
    return _Session(address, None)


_QUIET: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": True}


def _end(session: _Session) -> None:
    if session.is_current:
        if session.lifeline.lost() is None:
            session.lifeline.close()  # what ends now has not died
            ray.shutdown()
        elif not _shut_down_in(SHUTDOWN_S):
            session.lifeline.close()  # whoever uses the session hears of the loss, and tells it
            return
    _sessions.remove(session)
    session.put_back()


def _shut_down_in(seconds: float) -> bool:
    """Disconnect from a Ray that has lost a process and may take a while to notice; whether it is done."""
    thread = threading.Thread(target=ray.shutdown, daemon=True)
    thread.start()
    thread.join(seconds)
    return not thread.is_alive()


@contextlib.contextmanager
def _own_signals() -> Iterator[None]:
    """Put the process's signal handlers back, which ray.init replaces: a run has to stop in its own way."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            if handler is not None:
                signal.signal(number, handler)


def check_alive() -> None:
    """Nothing, as long as the Ray that this process has joined or started is there.

    Raises:
        RunError: One of its processes has died; what can be done is in the text.
    """
    for session in tuple(_sessions):
        if session.is_current and (text := session.lifeline.lost()) is not None:
            raise RunError(text)


def loss() -> str | None:
    """What has died of the Ray that this process has joined or started, as a sentence; None: nothing has."""
    try:
        check_alive()
    except RunError as error:
        return str(error)
    return None


def say_and_exit(text: str, code: int) -> None:
    """End this process with a sentence, without asking anything of Ray again."""
    for session in tuple(_sessions):
        session.lifeline.say_and_exit(text, code)
    print(f"swamp: {text}", file=sys.stderr, flush=True)
    os._exit(code)


def answers() -> bool:
    """Whether Ray can be asked anything: this process is connected, and nothing has died."""
    return ray.is_initialized() and loss() is None


def is_connected() -> bool:
    """Whether this process is connected to a cluster."""
    return ray.is_initialized()


def cluster_gpus() -> float:
    """GPUs of the connected cluster."""
    return float(ray.cluster_resources().get("GPU", 0.0))


def living_nodes() -> list[Node]:
    """The living nodes of the connected cluster; what is free may be a moment old."""
    free = available_resources_per_node()
    return [Node(node["NodeID"], node["Resources"], node.get("Labels") or {}, free.get(node["NodeID"], {}))
            for node in ray.nodes() if node["Alive"]]


def probe() -> Iterator[str]:
    """Start an embedded Ray, run an actor on it, try its ports without its token, stop it; sentences on it.

    Yields:
        What was found; a line that begins with "!" is a warning.
    """
    began = time.monotonic()
    connection = connect(ExecutionConfig())
    try:
        kind: Any = ray.remote(_Probe)
        answer = ray.get(kind.remote().answer.remote(), timeout=60)
        resources = ray.cluster_resources()
        ports = list(_ports())
    finally:
        connection.close()
    yield (f"ray {ray.__version__} starts and runs an actor ({answer}) in {time.monotonic() - began:.0f} s; "
           f"{resources.get('CPU', 0):g} CPU, {resources.get('GPU', 0):g} GPU")
    yield from ports
    yield _token_of_clusters()


def _ports() -> Iterator[str]:
    found = listeners(os.getpid())
    if found is None:
        yield "which ports it listens on cannot be seen on this system; it asks for a token that only it knows"
        return
    far = [one for one in found if not one.is_local]
    names = ", ".join(f"{one.process} {one.port}" for one in far)
    yield (f"while a run works, it listens on {len(far)} ports that other machines may reach ({names}); "
           "see docs/security.md")
    open_ports = [(one, answer) for one in far if (answer := answer_without_token(one)) is not None]
    for one, answer in open_ports:
        yield f"! port {one.port} ({one.process}) answers without the run's token ({answer})"
    if far and not open_ports:
        yield "each of these ports was tried without the run's token, and refused"


def _token_of_clusters() -> str:
    try:
        token, source = find_token(os.environ)
    except UserError as error:
        return f"! a cluster that you join: {error}"
    if token is None:
        return ("a cluster that you join (--address) is not sent any token: RAY_AUTH_MODE, RAY_AUTH_TOKEN_PATH and "
                "~/.ray/auth_token name none")
    return f"a cluster that you join (--address): a token is in {source}"


class _Probe:
    def answer(self) -> str:
        return f"pid {os.getpid()}"
