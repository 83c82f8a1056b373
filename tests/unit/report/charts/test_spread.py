"""The distance of particles to their average, on the scale of the average."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from swamp_ray.launch import run
from swamp_ray.report.charts.spread import distances_to_average, norm_of_average
from swamp_ray.report.load.runs import read_runs
from swamp_ray.storage.tickets import load_ticket
from tests.figures import drawn, flaws, made_run, record
from tests.helpers import tiny


def test_it_is_relative_to_the_length_of_the_average_in_the_ticket(tmp_path: Path) -> None:
    run(tiny(tmp_path, name="two", pruning__target=0.5, particles__count=2))
    (chart,) = distances_to_average(read_runs(["two"], str(tmp_path)))
    (found,) = read_runs(["two"], str(tmp_path))
    ticket = load_ticket(tmp_path / found.records[1]["ticket"])
    flat = torch.cat([ticket.state[name][mask] for name, mask in ticket.masks.items()]).double()
    assert drawn(chart)["mean"].iloc[1] == pytest.approx(found.records[1]["spread"] / float(flat.norm()), rel=1e-9)
    assert drawn(chart)["distance"].tolist() == [one["spread"] for one in found.records]
    assert flaws(chart.figure) == []


def test_single_particles_and_lost_tickets_have_no_distance(tmp_path: Path) -> None:
    assert distances_to_average([]) == []
    single = made_run(tmp_path, "single", [record(0, 1.0, spread=0.0, ticket="gone")])
    lost = made_run(tmp_path, "lost", [record(0, 1.0, spread=2.0, ticket="gone")])
    assert distances_to_average([single, lost]) == []
    assert norm_of_average(lost, lost.records[0]) is None
