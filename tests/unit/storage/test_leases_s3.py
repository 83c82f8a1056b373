"""Leases and pruning against a real S3 server: what they need of an object store is its conditional put."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

from click.testing import CliRunner

from swamp_ray.cli import main
from swamp_ray.launch import run
from swamp_ray.storage.artifacts import ArtifactStore
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import HeldLease, Lease, Leases, artifact_lease
from swamp_ray.storage.places import open_place
from tests.helpers import ticket_digests, tiny

KEY = artifact_lease("ab" * 32)
HERE = this_process("here")
AWAY = replace(HERE, run="away", host="elsewhere.example", boot="another machine")
NEVER_S = 3600.0


def race(leases: Leases, stale: bytes = b"") -> list[Lease]:
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: leases.acquire(KEY, replace(HERE, run=f"run {number}"), stale), range(6)))
    return [lease for lease in found if isinstance(lease, Lease)]


def test_of_racers_for_a_lease_in_a_bucket_one_wins(remote: str) -> None:
    leases = Leases(open_place(remote), NEVER_S)
    for _ in range(3):
        [winner] = race(leases)
        held = leases.look(KEY)
        assert held is not None
        assert held.token == winner.token
        winner.release()
        assert leases.look(KEY) is None


def test_of_racers_for_a_stale_lease_in_a_bucket_one_wins(remote: str) -> None:
    leases = Leases(open_place(remote), NEVER_S)
    silent = leases.acquire(KEY, AWAY)
    assert isinstance(silent, Lease)
    assert isinstance(leases.acquire(KEY, HERE), HeldLease)
    [winner] = race(leases, stale=silent.content)
    silent.beat()
    assert silent.lost
    winner.beat()
    assert not winner.lost
    winner.release()


def test_pruning_a_bucket_removes_what_no_run_names_and_nothing_else(remote: str) -> None:
    run(tiny(remote, pruning__target=0.0, particles__count=2))
    before, store = ticket_digests(remote), ArtifactStore(open_place(remote))
    store.put("cd" * 32, {"weights.bin": b"nobody's" * 100}, {})

    def prune(*arguments: str) -> str:
        done = CliRunner().invoke(main, ["prune-storage", "--storage", remote, "--older-than", "0s", *arguments])
        assert done.exit_code == 0, done.output
        return done.output

    assert "artifacts that no run names" in prune()
    assert store.find("cd" * 32) is not None
    prune("--delete")
    assert store.find("cd" * 32) is None
    again = run(tiny(remote, pruning__target=0.0, particles__count=2))
    assert ticket_digests(remote) == before
    record = again.rundir.read_run()
    assert record is not None
    assert record["attempts"][1]["trained"] == 0
