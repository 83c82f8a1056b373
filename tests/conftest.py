"""Settings that hold in every test: one thread, repeatable examples, a quiet Ray, and where the data lies."""

from __future__ import annotations

import os
import secrets
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from tests.s3_server import CREDENTIALS, ask, s3_server

REPOSITORY = Path(__file__).resolve().parents[1]
CIFAR10_FILES = ("cifar10-train.parquet", "cifar10-test.parquet")
MEMORY = Path("/dev/shm")
MEMORY_BYTES = 8 * 2**30
"""With less room than this in memory, what tests write goes to the disk: the largest of them writes a gigabyte."""

# Ray reads these when it is imported. Nobody else on the network can use the Rays that tests start, and without a
# token Ray would write one into the home folder.
os.environ["RAY_AUTH_MODE"] = "token"
os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

# Speed differs between machines, so neither slowness nor a deadline may decide a test.
settings.register_profile(
    "swamp", derandomize=True, deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("swamp")


def pytest_configure() -> None:
    """Temporary folders lie in memory where there is room: every write is synced, for which a disk takes its time."""
    if "PYTEST_DEBUG_TEMPROOT" not in os.environ and _fits_into_memory():
        os.environ["PYTEST_DEBUG_TEMPROOT"] = str(MEMORY)
    import torch  # after the environment is set

    # A convolution's bits differ between one thread and two.
    torch.set_num_threads(1)


def _fits_into_memory() -> bool:
    if not MEMORY.is_dir() or not os.access(MEMORY, os.W_OK):
        return False
    found = os.statvfs(MEMORY)
    # Some tests write commands and call them.
    return found.f_bavail * found.f_frsize >= MEMORY_BYTES and not found.f_flag & os.ST_NOEXEC


@pytest.fixture
def cifar10_root(monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder of the CIFAR-10 Parquet files, also set as SWAMP_DATA for the code under test."""
    given = os.environ.get("SWAMP_DATA")
    root = Path(given) if given else REPOSITORY.parent / "shared" / "data"
    missing = [name for name in CIFAR10_FILES if not (root / name).is_file()]
    if missing:
        origin = "SWAMP_DATA" if given else "SWAMP_DATA is not set, and ../shared/data"
        pytest.skip(f"needs CIFAR-10 as Parquet: {origin} does not hold {' and '.join(missing)}")
    monkeypatch.setenv("SWAMP_DATA", str(root.resolve()))
    return root.resolve()


@pytest.fixture(scope="session")
def s3() -> Iterator[str]:
    """URL of a real S3 server, which the environment names too."""
    with s3_server() as url, pytest.MonkeyPatch.context() as environment:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": url, "NO_PROXY": "127.0.0.1"}.items():
            environment.setenv(name, value)
        yield url


@pytest.fixture(scope="module")
def bucket(s3: str) -> str:
    """An empty bucket of the test module, as a storage root."""
    name = f"b-{uuid.uuid4().hex[:12]}"
    ask(f"{s3}/{name}", "PUT")
    return f"s3://{name}"


@pytest.fixture
def remote(bucket: str) -> str:
    """A storage root in the bucket that only this test has."""
    return f"{bucket}/{uuid.uuid4().hex[:12]}"
