"""The client of a cluster's Jobs server: swamp's jobs, their logs, and how they end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
from aiohttp import ClientError
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from swamp_ray.errors import RunError, UserError
from swamp_ray.on_ray.access import ADDRESS_VARIABLES, Access, is_loopback
from swamp_ray.submit.job import Job, Lines, choose, is_own_words

CONNECT_S = 5.0
REQUEST_S = 60.0
SILENCE_S = 120.0
"""A log that says nothing for so long is opened anew: the connection may be gone without a word."""
LOST_S = 120.0
KEYS = ("name", "kind", "storage", "config", "code", "stop_s")
_PREFIX = "swamp_"

# They would tell of every package that is uploaded.
for _name in ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk",
              "ray._private.runtime_env.packaging"):
    logging.getLogger(_name).setLevel(logging.WARNING)


class Jobs:
    """A Jobs server that answered.

    Args:
        access: Where it is, and the token.

    Raises:
        UserError: Nothing answers there, or something else, or it refuses the token.
    """

    def __init__(self, access: Access) -> None:
        self.access = access
        _greet(access)
        with self._told(), _address(access.url):
            self._client = _Client(access.url, headers=access.headers)

    def all(self) -> list[Job]:
        """Swamp's jobs, the newest first."""
        with self._told():
            found = [_job(details) for details in self._client.list_jobs()]
        return sorted((job for job in found if job.facts), key=lambda job: -(job.started_s or 0.0))

    def get(self, job_id: str) -> Job:
        """A job by its id."""
        with self._told():
            return _job(self._client.get_job_info(job_id))

    def find(self, name: str) -> Job:
        """A job by its id, or the last one of a run or sweep by its name.

        Raises:
            UserError: There is none, or the name means several.
        """
        return choose(self.all(), name)

    def submit(self, job_id: str, entrypoint: str, runtime_env: Mapping[str, Any], facts: Mapping[str, str],
               labels: Mapping[str, str]) -> bool:
        """Submit a job; False if there is one of this id.

        Args:
            job_id: Its id.
            entrypoint: The command.
            runtime_env: Ray's runtime environment; local folders in it are uploaded.
            facts: What is noted with the job.
            labels: Labels of the nodes that the command may run on; empty: the head node.
        """
        noted = {f"{_PREFIX}{key}": value for key, value in facts.items()}
        with self._told():
            try:
                self._client.submit_job(submission_id=job_id, entrypoint=entrypoint, runtime_env=dict(runtime_env),
                                        metadata=noted, entrypoint_label_selector=dict(labels) or None)
            except RuntimeError as error:
                if "already exists" in str(error):
                    return False
                raise
        return True

    def stop(self, job_id: str) -> None:
        """Ask a job to stop in good order."""
        with self._told():
            self._client.stop_job(job_id)

    def remove(self, job_id: str) -> None:
        """Forget a job that has ended."""
        with self._told():
            self._client.delete_job(job_id)

    def logs(self, job_id: str) -> str:
        """What a job has printed so far, without the server's own words."""
        lines = self._log(job_id).splitlines(keepends=True)
        return "".join(line for line in lines if not is_own_words(line.rstrip("\n")))

    def wait(self, job_id: str, seconds: float, pause_s: float = 0.5) -> Job:
        """A job as it is when it has ended, or after so many seconds."""
        deadline = time.monotonic() + seconds
        while not (job := self.get(job_id)).has_ended and time.monotonic() < deadline:
            time.sleep(pause_s)
        return job

    def follow(self, job_id: str, write: Callable[[str], None]) -> Job:
        """Pass on a job's lines as it prints them, until it has ended.

        Where the server's stream does not come through, the log is asked for every other second.

        Raises:
            RunError: The server did not answer for two minutes; the job may well go on.
        """
        lines = Lines(write)
        answered_s = time.monotonic()
        while True:
            try:
                asyncio.run(self._tail(job_id, lines))
            except BrokenPipeError:
                raise
            except (ClientError, OSError, RuntimeError):
                time.sleep(2.0)
            try:
                job = self.get(job_id)
                text = self._log(job_id)
            except (UserError, RunError) as error:
                if time.monotonic() - answered_s > LOST_S:
                    raise RunError(f"the connection to {self.access.url} was lost: {_first_line(error)}. The job "
                                   f"{job_id} goes on by itself.") from error
                continue
            answered_s = time.monotonic()
            lines.begin()
            lines.add(text)
            if job.has_ended:
                lines.end()
                return job
            time.sleep(0.5)

    async def _tail(self, job_id: str, lines: Lines) -> None:
        """The server's stream of the log, from its beginning until it ends or has been silent for long."""
        lines.begin()
        chunks = self._client.tail_job_logs(job_id).__aiter__()
        while True:
            try:
                lines.add(await asyncio.wait_for(chunks.__anext__(), SILENCE_S))
            except (StopAsyncIteration, TimeoutError):
                return

    def _log(self, job_id: str) -> str:
        with self._told():
            return self._client.get_job_logs(job_id) or ""

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """The server's errors in words of ours."""
        try:
            yield
        except AuthenticationError as error:
            raise refused(401 if "required" in str(error) else 403, self.access) from None
        except (requests.RequestException, ConnectionError) as error:
            raise RunError(f"the Jobs server at {self.access.url} does not answer: "
                           f"{self.access.without_token(_first_line(error))}") from None
        except RuntimeError as error:
            raise RunError(f"the Jobs server at {self.access.url} failed: "
                           f"{self.access.without_token(_reason(str(error)))}") from None


def refused(status: int, access: Access) -> UserError:
    """The error for a server that wants a token, or another one."""
    if status == 401 or access.token is None:
        return UserError(f"the cluster at {access.url} asks for a token, and none was sent", where="RAY_AUTH_TOKEN",
                         do="Put its token into a file and name that in RAY_AUTH_TOKEN_PATH, or into ~/.ray/auth_token "
                            "('ray get-auth-token' on the head node prints it). RAY_AUTH_MODE must not be disabled.")
    return UserError(f"the cluster at {access.url} refuses the token that was found here", where=access.source,
                     do="It belongs to another cluster, or has been replaced: 'ray get-auth-token' on the head node "
                        "prints the right one.")


def _greet(access: Access) -> None:
    """Ask for the server's version, so that what is wrong with the address shows within seconds."""
    hint = "The address is that of the dashboard of a running cluster, for example http://10.0.0.1:8265."
    where = "--address"
    try:
        reply = requests.get(f"{access.url}/api/version", headers=access.headers, timeout=(CONNECT_S, 2 * CONNECT_S),
                             allow_redirects=False, proxies=_proxies(access.url))
    except requests.exceptions.SSLError as error:
        raise UserError(f"no secure connection ({access.without_token(_first_line(error))})", got=access.url,
                        where=where, do="Is it http://? For a certificate of your own set REQUESTS_CA_BUNDLE and "
                                        "SSL_CERT_FILE.") from None
    except requests.RequestException as error:
        reason = "no answer in time" if isinstance(error, requests.Timeout) else _why(error)
        raise UserError(f"no Ray cluster answers ({reason})", got=access.url, where=where, do=hint) from None
    if reply.status_code in (401, 403):
        raise refused(reply.status_code, access)
    try:
        if reply.status_code == 200 and "ray_version" in reply.json():
            return
    except ValueError:
        pass
    raise UserError(f"what answers is not the dashboard of a Ray cluster (status {reply.status_code})", got=access.url,
                    where=where, do=hint)


def _proxies(url: str) -> dict[str, str] | None:
    """No proxy for this machine: the token must not leave it."""
    return {"http": "", "https": ""} if is_loopback(url) else None


def _why(error: requests.RequestException) -> str:
    """The cause of a connection that failed, without the layers around it."""
    text = str(error)
    if "Failed to resolve" in text:
        return "there is no host of this name"
    match = re.search(r"\[Errno -?\d+\] ([^')\"]+)", text)
    if match:
        return match[1]
    return "what listens there does not speak HTTP"


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0] or type(error).__name__


def _reason(text: str) -> str:
    """The last line of a traceback that the server sends along, or the text itself."""
    lines = [line for line in text.strip().splitlines() if line.strip(" .")]
    return lines[-1].rstrip(".") if "Traceback" in text and lines else text.strip().rstrip(".")


def _job(details: Any) -> Job:
    metadata = details.metadata or {}
    facts = {key: metadata[_PREFIX + key] for key in KEYS if _PREFIX + key in metadata}
    return Job(details.submission_id or details.job_id, str(details.status.value), facts, _seconds(details.start_time),
               _seconds(details.end_time), details.driver_exit_code, details.message or "")


def _seconds(milliseconds: int | None) -> float | None:
    return None if not milliseconds else milliseconds / 1000


@contextlib.contextmanager
def _address(url: str) -> Iterator[None]:
    """Ray lets these variables win over the address that is given: for the moment they are this address."""
    before = {name: os.environ.get(name) for name in ADDRESS_VARIABLES}
    os.environ[ADDRESS_VARIABLES[0]] = url
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Client(JobSubmissionClient):
    """Ray's client, which by itself would wait without end for a server that hangs."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> requests.Response:
        options = {"timeout": (CONNECT_S, REQUEST_S), "proxies": _proxies(self._address), **options}
        return super()._do_request(method, endpoint, **options)

