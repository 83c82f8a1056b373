"""A storage root that an earlier version has written: nothing is trained again, no metric is taken for another."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.errors import Interrupted, UserError
from swamp_ray.launch import Run, run
from swamp_ray.method.events import Job
from swamp_ray.run.messages import JobSpec, RoundRecord
from swamp_ray.run.prepare import prepare
from swamp_ray.run.reporter import Reporter
from swamp_ray.storage.holders import this_process
from swamp_ray.storage.leases import Lease, Leases, artifact_lease
from swamp_ray.storage.metrics import read_metrics
from swamp_ray.storage.places import as_place
from swamp_ray.storage.tickets import load_ticket
from swamp_ray.training.results import Progress
from tests.former_version import to_format_1
from tests.helpers import ticket_digests, tiny

CROPS: dict[str, Any] = {"data__augment": "crop", "data__crop_padding": 2, "pruning__target": 0.5,
                         "particles__count": 2}
THEN: dict[str, Any] = {**CROPS, "averaging__statistics": "unaugmented"}


class Told(Reporter):
    """What a run says."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.notices: list[str] = []

    def warning(self, text: str) -> None:
        self.warnings.append(text)

    def notice(self, text: str) -> None:
        self.notices.append(text)


def trained(done: Run) -> int:
    """Trainings of the last attempt."""
    return (done.rundir.read_run() or {})["attempts"][-1]["trained"]


def plain(records: list[RoundRecord]) -> list[tuple[Any, ...]]:
    """All metrics of rounds."""
    return [(one.average, one.particles, one.mean, one.std) for one in records]


@pytest.fixture(scope="module")
def older(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of an earlier version, under the default of its time."""
    storage = tmp_path_factory.mktemp("older")
    run(tiny(storage, **THEN))
    assert to_format_1(storage, "tiny", "unaugmented")
    return storage


@pytest.fixture(scope="module")
def today(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[RoundRecord]]:
    """The rounds that a fresh storage gives."""
    known: dict[str, list[RoundRecord]] = {}

    def records(**values: Any) -> list[RoundRecord]:
        if repr(values) not in known:
            known[repr(values)] = run(tiny(tmp_path_factory.mktemp("today"), **values)).records
        return known[repr(values)]

    return records


@pytest.fixture
def storage(older: Path, tmp_path: Path) -> Path:
    """A copy of the older storage root."""
    shutil.copytree(older, tmp_path / "older")
    return tmp_path / "older"


@pytest.mark.parametrize(("name", "values"), [
    ("tiny", THEN), ("tiny", CROPS), ("another", CROPS), ("tiny", {**THEN, "data__limit_test": 20}),
    ("another", {**CROPS, "data__limit_test": 9})])
def test_nothing_is_trained_again_and_metrics_are_those_of_today(
    storage: Path, today: Callable[..., list[RoundRecord]], name: str, values: dict[str, Any]
) -> None:
    told = Told()
    done = run(tiny(storage, name=name, **values), told)
    assert trained(done) == 0
    assert plain(done.records) == plain(today(**values))
    assert bool(told.notices) == (values != THEN), "what is measured anew is said"
    lines = read_metrics(done.rundir.metrics)
    ends = [line["test/loss"] for line in lines if line["kind"] == "particle_end" and line["round"] == 0]
    assert ends == [one["test"]["loss"] for one in done.records[0].particles]
    assert len([line for line in lines if line["kind"] == "round"]) == len(done.records)


def test_a_run_with_fewer_test_images_is_found_by_one_with_all_of_them(
    tmp_path: Path, today: Callable[..., list[RoundRecord]]
) -> None:
    run(tiny(tmp_path, data__limit_test=12, **THEN))
    to_format_1(tmp_path, "tiny", "unaugmented")
    done = run(tiny(tmp_path, name="another", **THEN))
    assert trained(done) == 0
    assert plain(done.records) == plain(today(**THEN))
    done = run(tiny(tmp_path, data__limit_test=21, **CROPS))
    assert trained(done) == 0, "under its own name too"
    assert plain(done.records) == plain(today(data__limit_test=21, **CROPS))
    assert trained(run(tiny(tmp_path, name="later", **CROPS))) == 0, "what the older run had is not forgotten"


def test_what_training_left_is_not_reported_for_other_samples(tmp_path: Path) -> None:
    values = {**THEN, "averaging__within": "none"}
    run(tiny(tmp_path, **values))
    to_format_1(tmp_path, "tiny", "unaugmented")
    for name, more, known in (("others", {"data__limit_test": 15}, False),
                              ("statistics", {"averaging__statistics": "augmented"}, True)):
        done = run(tiny(tmp_path, name=name, **{**values, **more}))
        kinds = {line["kind"] for line in read_metrics(done.rundir.metrics)}
        assert trained(done) == 0
        assert ("particle_as_trained" in kinds) == known


def test_tickets_have_the_same_weights_and_todays_statistics(storage: Path, tmp_path: Path) -> None:
    run(tiny(tmp_path / "new", **CROPS))
    run(tiny(storage, **CROPS))
    for sparsity in ticket_digests(storage):
        old, new = (load_ticket(root / "runs" / "tiny" / "tickets" / sparsity / "model.safetensors")
                    for root in (storage, tmp_path / "new"))
        assert old.state.keys() == new.state.keys()
        assert all(bool((old.state[name] == new.state[name]).all()) for name in new.state)


class Stops(Told):
    """Stops the run after so many epochs."""

    def __init__(self, epochs: int) -> None:
        super().__init__()
        self.left = epochs

    def job_advanced(self, job: Job, progress: Progress) -> None:
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt


def test_a_half_finished_training_goes_on_from_its_checkpoint(
    tmp_path: Path, today: Callable[..., list[RoundRecord]]
) -> None:
    with pytest.raises(Interrupted):
        run(tiny(tmp_path, **THEN), Stops(2))
    prepared = prepare(tiny(tmp_path, **THEN))
    assert list((tmp_path / "artifacts").glob("*/*/checkpoint.json"))
    renamed = to_format_1(tmp_path, "tiny", "unaugmented", prepared)
    (checkpoint,) = (tmp_path / "artifacts").glob("*/*/checkpoint.json")
    assert checkpoint.parent.name in renamed.values()
    done = run(tiny(tmp_path, **CROPS))
    attempt = (done.rundir.read_run() or {})["attempts"][-1]
    assert (attempt["found"], attempt["trained"], attempt["trained_epochs"]) == (1, 4, 7), "an epoch is not repeated"
    assert plain(done.records) == plain(today(**CROPS)), "it is measured as today, and so named"
    assert not list((tmp_path / "artifacts").glob("*/*/checkpoint.json"))


def test_a_training_that_an_earlier_version_is_busy_with_is_left_to_it(storage: Path) -> None:
    config = tiny(storage, name="waits", **CROPS)
    names = []

    class Looks(Told):
        def job_submitted(self, spec: JobSpec) -> None:
            if spec.job == Job("particle", 0, 0) and not names:
                names.extend(spec.named.names)

    run(config, Looks())
    (former,) = [name for name in names if (storage / "artifacts" / name[:2] / name / "result.json").is_file()]
    folder = storage / "artifacts" / former[:2] / former
    shutil.move(folder / "result.json", storage / "result.json")

    lease = Leases(as_place(storage)).acquire(artifact_lease(former), this_process("of another version"))
    assert isinstance(lease, Lease)
    held: Lease = lease

    class Releases(Told):
        def job_blocked(self, job: Job, who: str) -> None:
            shutil.move(storage / "result.json", folder / "result.json")
            held.release()

    assert trained(run(tiny(storage, name="again", **CROPS), Releases())) == 0


def test_where_networks_were_not_kept_a_run_is_not_measured_in_another_way(tmp_path: Path) -> None:
    run(tiny(tmp_path, keep__particles="none", **THEN))
    rounds = (tmp_path / "runs/tiny/rounds.jsonl").read_bytes()
    with pytest.raises(UserError, match=r"statistics: 'unaugmented' -> 'augmented'(.|\n)*go on"):
        run(tiny(tmp_path, keep__particles="none", **CROPS))
    assert (tmp_path / "runs/tiny/rounds.jsonl").read_bytes() == rounds
    assert trained(run(tiny(tmp_path, keep__particles="none", **THEN))) == 0
    told = Told()
    done = run(tiny(tmp_path, name="another", keep__particles="none", **CROPS), told)
    assert trained(done) == 4, "the rounds; the dense phase was kept"
    assert any("trained again" in text for text in told.warnings)


def test_a_run_that_is_measured_anew_keeps_what_it_had_logged(storage: Path) -> None:
    path = storage / "runs/tiny/metrics.jsonl"
    before = path.read_bytes()
    run(tiny(storage, **CROPS))
    after = path.read_bytes()
    assert after.startswith(before)
    assert json.loads(after[len(before):].splitlines()[0])["kind"] == "measured_anew"
    run(tiny(storage, **CROPS))
    assert path.read_bytes() == after
