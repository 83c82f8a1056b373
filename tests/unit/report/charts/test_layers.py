"""Densities of layers: in the order of the network, mean over seeds, and what is empty."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from swamp_ray.report.charts.layers import layer_densities, layers_of
from tests.figures import drawn, flaws, made_run, record


def test_a_cell_is_the_mean_over_the_seeds_of_an_arm(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, f"a{seed}", [record(0, 1.0), record(1, 0.5, layers={"first.weight": first,
                                                                                     "second.weight": 0.5})],
                     arm="a", seed=seed) for seed, first in enumerate((0.4, 0.2))]
    (chart,) = layer_densities(runs)
    cells = drawn(chart).set_index(["layer", "round"])["density"]
    assert cells["first.weight", 1] == pytest.approx(0.3)
    assert cells["second.weight", 1] == pytest.approx(0.5)
    assert drawn(chart)["runs"].unique().tolist() == [2]
    assert "mean over 2 runs" in chart.caption
    assert [text.get_text() for text in chart.figure.axes[0].texts] == ["100", "30", "100", "50"]


def test_each_arm_has_a_figure_of_its_own_and_no_runs_have_none(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, name, [record(0, 1.0)]) for name in ("a", "b")]
    assert [chart.name for chart in layer_densities(runs)] == ["density_by_layer_a", "density_by_layer_b"]
    assert layer_densities([]) == []


def test_rounds_that_a_seed_has_not_reached_are_left_out(tmp_path: Path) -> None:
    runs = [made_run(tmp_path, f"a{num}", [record(index, 0.5**index) for index in range(num)], arm="a", seed=num)
            for num in (2, 3)]
    assert drawn(layer_densities(runs)[0])["round"].unique().tolist() == [0, 1]


def test_layers_stand_in_the_order_of_the_network(tmp_path: Path) -> None:
    names: dict[str, float] = dict.fromkeys(("classifier.weight", "conv10.weight", "conv9.weight"), 0.5)
    run = made_run(tmp_path, "a", [record(0, 0.5, layers=names)])
    assert layers_of(run) == ["classifier.weight", "conv9.weight", "conv10.weight"], "by name where nothing is known"
    network = ["conv9.weight", "conv10.weight", "classifier.weight"]
    recorded = replace(run, about={**run.about, "layers": [[name, 1] for name in network]})
    assert layers_of(recorded) == network


def test_a_built_in_network_is_asked_where_an_older_run_has_not_recorded_its_order(tmp_path: Path) -> None:
    shuffled = {f"{name}.weight": 0.5 for name in ("classifier", "features.0", "features.4", "features.7", "hidden")}
    run = made_run(tmp_path, "a", [record(0, 0.5, layers=shuffled)])
    built = replace(run, about={**run.about, "data": {"sample": "uint8 [8, 8, 1]"}})
    assert layers_of(built)[-1] == "classifier.weight"
    assert layers_of(built)[0] == "features.0.weight"


def test_an_emptied_layer_is_crossed_out_and_named_in_the_caption(tmp_path: Path) -> None:
    run = made_run(tmp_path, "a", [record(0, 0.5, layers={"first.weight": 0.0, "second.weight": 1.0})])
    (chart,) = layer_densities([run])
    assert "1 layer is left without a weight" in chart.caption
    cross: Any
    (cross,) = chart.figure.axes[0].patches
    assert (cross.get_hatch(), cross.get_xy()) == ("xxxx", (-0.5, -0.5))


@pytest.mark.parametrize(("num_layers", "num_rounds"), [(1, 1), (3, 10), (90, 30), (3000, 2)])
def test_many_layers_and_rounds_stay_legible(tmp_path: Path, num_layers: int, num_rounds: int) -> None:
    records = [record(index, 0.8**index, layers={f"backbone.stage{layer // 9}.block{layer}.attention.projection.weight":
                                                 0.8**index for layer in range(num_layers)})
               for index in range(num_rounds)]
    (chart,) = layer_densities([made_run(tmp_path, "many", records)])
    assert flaws(chart.figure) == []
