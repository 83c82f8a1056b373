"""TensorBoard's files: few charts, in each of which networks and trainings are curves that overlay."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.storage.event_files import scalars
from swamp_ray.storage.json_lines import read_lines
from swamp_ray.storage.metrics import MetricsLog

Points = dict[str, dict[str, list[tuple[int, float]]]]


def lines(rounds: int, particles: int, epochs: int = 2) -> Iterator[dict[str, Any]]:
    """What a run logs; each value says where it comes from."""
    for epoch in range(1, epochs + 1):
        yield {"kind": "dense_epoch", "epoch": epoch, "step": 10 * epoch, "loss": 9.0}
    yield {"kind": "dense_end", "test/accuracy": 0.125}
    for index in range(rounds):
        for particle in range(particles):
            for epoch in range(1, epochs + 1):
                yield {"kind": "particle_epoch", "round": index, "particle": particle, "epoch": epoch,
                       "step": 10 * epoch, "loss": 10 * index + particle + epoch / 4}
            yield {"kind": "particle_as_trained", "round": index, "particle": particle, "test/accuracy": 0.5}
            yield {"kind": "particle_end", "round": index, "particle": particle, "test/accuracy": index + particle / 4}
        yield {"kind": "round", "round": index, "sparsity": 0.5, "test/accuracy": 2.0 + index,
               "particles_mean/test/accuracy": 3.0 + index, "particles_std/test/accuracy": 4.0 + index}


def write(folder: Path, *given: dict[str, Any], afresh: bool = False) -> None:
    with MetricsLog(folder / "metrics.jsonl", folder / "tensorboard", afresh) as log:
        for line in given:
            log.log(**line)


def read(folder: Path) -> Points:
    """What TensorBoard itself reads: by run and tag the steps and values."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    found = EventMultiplexer()
    found.AddRunsFromDirectory(str(folder / "tensorboard"))
    found.Reload()
    tags: Any = {run: about["scalars"] for run, about in found.Runs().items()}
    points = {run: {tag: [(event.step, event.value) for event in found.Scalars(run, tag)] for tag in names}
              for run, names in tags.items()}
    shown = {run: {tag: some for tag, some in by_tag.items() if some} for run, by_tag in points.items()}
    return {run: by_tag for run, by_tag in shown.items() if by_tag}


def charts(points: Points) -> set[str]:
    return {tag for tags in points.values() for tag in tags}


def test_networks_and_trainings_are_runs_with_the_same_tags(tmp_path: Path) -> None:
    write(tmp_path, *lines(rounds=2, particles=2))
    points = read(tmp_path)
    assert points["round-01/particle-01"] == {"epoch/loss": [(10, 11.25), (20, 11.5)]}
    assert points["dense"] == {"epoch/loss": [(10, 9.0), (20, 9.0)], "round/test/accuracy": [(0, 0.125)]}
    assert points["particle-01"] == {"as_trained/test/accuracy": [(0, 0.5), (1, 0.5)],
                                     "round/test/accuracy": [(0, 0.25), (1, 1.25)]}
    assert points["average"] == {"round/sparsity": [(0, 0.5), (1, 0.5)], "round/test/accuracy": [(0, 2.0), (1, 3.0)]}
    assert points["particles_mean"] == {"round/test/accuracy": [(0, 3.0), (1, 4.0)]}
    assert points["particles_std"] == {"particles_std/test/accuracy": [(0, 4.0), (1, 5.0)]}


@pytest.mark.parametrize(("rounds", "particles"), [(1, 1), (3, 2), (4, 5), (2, 11)])
def test_there_are_as_many_charts_whatever_the_rounds_and_particles(tmp_path: Path, rounds: int,
                                                                    particles: int) -> None:
    write(tmp_path, *lines(rounds, particles))
    points = read(tmp_path)
    assert charts(points) == {"epoch/loss", "round/test/accuracy", "round/sparsity", "as_trained/test/accuracy",
                              "particles_std/test/accuracy"}
    assert len(points) == rounds * particles + particles + 4


@pytest.mark.parametrize(("line", "found"), [
    ({"kind": "epoch", "round": 0, "particle": 1, "epoch": 0, "lr": 1}, ("round-00/particle-01", "epoch/lr", 0, 1)),
    ({"kind": "dense_epoch", "epoch": 3, "loss": 0.5}, ("dense", "epoch/loss", 3, 0.5)),
    ({"kind": "dense_as_trained", "validation/iou": 0.5}, ("dense", "as_trained/validation/iou", 0, 0.5)),
    ({"kind": "round", "round": 7, "test/my metric": 2}, ("average", "round/test/my metric", 7, 2)),
    ({"round": 7, "loss": 2}, ("scalars", "scalars/loss", 7, 2)),
])
def test_what_a_value_is_of_decides_where_it_is_drawn(line: dict[str, Any], found: tuple[Any, ...]) -> None:
    (point,) = scalars(line)
    assert (point.run, point.tag, point.step, point.value) == found


@pytest.mark.parametrize("value", ["text", True, None, [1.0], {"a": 1.0}])
def test_what_is_no_number_has_no_chart(value: object) -> None:
    assert list(scalars({"kind": "round", "round": 0, "note": value})) == []


def test_a_later_attempt_adds_to_the_curves_even_within_a_second(tmp_path: Path) -> None:
    for index in range(3):
        write(tmp_path, {"kind": "particle_end", "round": index, "particle": 0, "test/iou": index / 4})
    assert read(tmp_path) == {"particle-00": {"round/test/iou": [(0, 0.0), (1, 0.25), (2, 0.5)]}}


def test_points_have_the_time_of_their_line(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, {"kind": "round", "round": 0, "sparsity": 0.5})
    events = EventAccumulator(str(tmp_path / "tensorboard/average"))
    events.Reload()
    (event,) = events.Scalars("round/sparsity")
    assert abs(event.wall_time - read_lines(tmp_path / "metrics.jsonl")[0]["time"]) < 1e-3


def older(folder: Path) -> None:
    """A file as an earlier version wrote it: in the folder itself, with a tag for each particle."""
    from tensorboardX import SummaryWriter

    writer = SummaryWriter(str(folder / "tensorboard"))
    writer.add_scalar("particle_epoch/loss/round-00-particle-01", 0.5, 10)
    writer.close()


@pytest.mark.parametrize("afresh", [False, True])
def test_files_of_an_earlier_version_stay_until_everything_is_measured_anew(tmp_path: Path, afresh: bool) -> None:
    older(tmp_path)
    write(tmp_path, {"kind": "round", "round": 1, "sparsity": 0.5}, afresh=afresh)
    points = read(tmp_path)
    assert points["average"] == {"round/sparsity": [(1, 0.5)]}
    assert points.get(".", {}) == ({} if afresh else {"particle_epoch/loss/round-00-particle-01": [(10, 0.5)]})


def test_what_is_measured_anew_replaces_what_was_there(tmp_path: Path) -> None:
    write(tmp_path, *lines(rounds=2, particles=1))
    write(tmp_path, {"kind": "round", "round": 0, "sparsity": 0.25}, afresh=True)
    assert read(tmp_path)["average"] == {"round/sparsity": [(0, 0.25)]}


def test_files_that_cannot_be_written_end_no_run(tmp_path: Path) -> None:
    given = list(lines(rounds=2, particles=2))
    with MetricsLog(tmp_path / "metrics.jsonl", tmp_path / "tensorboard") as log:
        (tmp_path / "tensorboard/round-00").write_text("in the way")
        for line in given:
            log.log(**line)
            log.flush_if_due()
    assert len(read_lines(tmp_path / "metrics.jsonl")) == len(given)


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
def test_a_full_disk_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = list(lines(rounds=1, particles=2))
    with Path("/dev/full").open("wb", buffering=0) as full:
        monkeypatch.setattr("tensorboardX.record_writer.open_file", lambda _: full)
        write(tmp_path, *given)
    assert len(read_lines(tmp_path / "metrics.jsonl")) == len(given)
