"""Figures of a sweep say what its table says."""

from __future__ import annotations

import math
import statistics
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from swamp_ray.errors import UserError
from swamp_ray.report.charts.heat_map import heat_map
from swamp_ray.report.charts.style import MAX_TICKS, density_ticks
from swamp_ray.report.charts.sweeps import MAX_CURVES, curves, write_figures
from swamp_ray.storage.sweep_folder import SweepDir
from swamp_ray.sweep.results import collect
from tests.sweep_storage import trained_sweep

METRIC = "average/test/accuracy"
TARGETS = (0.5, 0.75)


def value(point: tuple[Any, ...], seed: int, index: int) -> float:
    """Some number that no two cells share."""
    return 0.9 - 0.01 * index + 0.001 * seed - 0.0001 * (sum(map(ord, str(point))) % 97)


def made(space: dict[str, list[Any]], seeds: int = 2) -> Any:
    """A frame as a sweep gives it; each round halves 1024 weights down to the target."""
    rows = []
    for point in product(*space.values()):
        setting = dict(zip(space, point, strict=True))
        rest = tuple(item for entry, item in setting.items() if entry != "pruning.target")
        last = round(-math.log2(1 - setting.get("pruning.target", 0.75)))
        for seed, index in product(range(seeds), range(last + 1)):
            rows.append({
                "setting": str(point), "status": "complete", "seed": seed, "num_seeds": seeds,
                **{f"space/{entry}": item for entry, item in setting.items()}, "round": index,
                "sparsity": 1 - 0.5**index, "survivors": 1024 // 2**index, METRIC: value(rest, seed, index),
                "average/test/loss": 1 - value(rest, seed, index), "particles_mean/test/accuracy": 0.5,
                **{f"config/{entry}": item for entry, item in setting.items() if "." in entry}})
    return pd.DataFrame(rows)


def texts(figure: Figure) -> list[str]:
    figure.draw_without_rendering()
    return [text.get_text() for text in figure.axes[0].texts]


def labels(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_each_cell_has_mean_and_standard_error_in_percent() -> None:
    frame = made({"pruning.target": list(TARGETS), "particles.count": [4, 1]})
    figure = heat_map(frame, "pruning.target", "particles.count")
    cells = {(round(text.get_position()[0]), round(text.get_position()[1])): [] for text in figure.axes[0].texts}
    for text in figure.axes[0].texts:
        cells[round(text.get_position()[0]), round(text.get_position()[1])].append(text.get_text())
    for (column, target), (row, count) in product(enumerate(TARGETS), enumerate((1, 4))):
        values = [100 * value((count,), seed, {0.5: 1, 0.75: 2}[target]) for seed in (0, 1)]
        error = statistics.stdev(values) / math.sqrt(2)
        assert cells[column, row] == [f"{statistics.fmean(values):.2f}", f"± {error:.2f}"], (target, count)
    axes = figure.axes[0]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["50 %", "75 %"]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["1", "4"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("sparsity", "number of particles")
    assert figure.axes[1].get_ylabel() == "test accuracy (%)"


def test_missing_cells_are_hatched_and_never_a_colour() -> None:
    frame = made({"pruning.target": list(TARGETS), "particles.count": [1, 2]})
    frame = frame[frame["setting"] != "(0.5, 1)"]
    failed = frame["setting"] == "(0.75, 2)"
    frame.loc[failed, "status"] = "failed"
    frame = frame[~(failed & (frame["seed"] == 1))]
    figure = heat_map(frame, "pruning.target", "particles.count")
    hatched = {(round(patch.get_x() + 0.5), round(patch.get_y() + 0.5))  # type: ignore[attr-defined]
               for patch in figure.axes[0].patches if patch.get_hatch()}
    assert hatched == {(0, 0), (1, 1)}
    assert "failed" in texts(figure)
    data = np.ma.asarray(figure.axes[0].images[0].get_array())
    assert int(np.ma.count_masked(data)) == 2


def test_other_metrics_are_not_in_percent() -> None:
    figure = heat_map(made({"pruning.target": list(TARGETS), "particles.count": [1]}), "pruning.target",
                      "particles.count", "average/test/loss")
    assert all(float(text) < 1 for text in texts(figure) if "±" not in text)
    assert figure.axes[1].get_ylabel() == "test loss"


def test_numbers_on_cells_can_be_read() -> None:
    """Contrast by WCAG 2, recomputed: at least 4.5 everywhere."""
    frame = made({"pruning.target": list(TARGETS), "particles.count": list(range(1, 13))}, seeds=1)
    figure = heat_map(frame, "pruning.target", "particles.count")
    image = figure.axes[0].images[0]
    data = np.asarray(image.get_array())
    for text in figure.axes[0].texts:
        column, row = (round(part) for part in text.get_position())
        rgb = np.array(image.cmap(image.norm(data[row, column]))[:3])
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        light = float(linear @ [0.2126, 0.7152, 0.0722]) + 0.05
        assert (1.05 / light if text.get_color() == "white" else light / 0.05) >= 4.5


def test_a_third_entry_that_varies_is_refused_and_a_wrong_one_named() -> None:
    frame = made({"pruning.target": list(TARGETS), "particles.count": [1, 2], "training.lr": [0.1, 0.2]}, seeds=1)
    with pytest.raises(UserError, match=r"training\.lr"):
        heat_map(frame, "pruning.target", "particles.count")
    heat_map(frame[frame["space/training.lr"] == 0.1], "pruning.target", "particles.count")
    with pytest.raises(UserError, match=r"Did you mean 'particles\.count'"):
        heat_map(frame, "pruning.target", "particles.cuont")


def test_one_curve_for_settings_that_differ_in_their_target_only() -> None:
    frame = made({"pruning.target": list(TARGETS), "particles.count": [4, 1]})
    figure = curves(frame)
    assert labels(figure) == ["1", "4", "dense"]
    assert figure.legends[0].get_title().get_text() == "number of particles"
    line = figure.axes[0].get_lines()[0]
    assert list(map(float, np.asarray(line.get_xdata()))) == [1.0, 0.5, 0.25], "the longest chain"
    expected = [100 * statistics.fmean(value((1,), seed, index) for seed in (0, 1)) for index in range(3)]
    assert np.asarray(line.get_ydata()) == pytest.approx(expected)
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    error = 100 * 0.001 / 2
    found = sorted({round(float(y), 6) for x, y in np.asarray(band) if x == 0.25})
    assert found == pytest.approx([expected[2] - error, expected[2] + error])


def test_one_seed_has_no_band() -> None:
    figure = curves(made({"pruning.target": list(TARGETS)}, seeds=1))
    assert not figure.axes[0].collections
    assert labels(figure) == ["all settings", "dense"]


def test_named_groups_are_called_by_their_names() -> None:
    figure = curves(made({"pruning.target": list(TARGETS), "method": ["SWAMP", "IMP"]}))
    assert labels(figure)[:2] == ["SWAMP", "IMP"]


def test_several_entries_say_which_is_which() -> None:
    figure = curves(made({"training.lr": [0.1, 0.2], "method": ["SWAMP", "IMP"], "particles.count": [3]}))
    assert labels(figure) == ["lr 0.1, SWAMP", "lr 0.1, IMP", "lr 0.2, SWAMP", "lr 0.2, IMP"]


def test_many_curves_in_the_order_of_a_number_get_darker_to_lighter() -> None:
    figure = curves(made({"particles.count": [9, 1, 2, 3, 4, 5, 6, 7, 8]}))
    assert labels(figure) == [*map(str, range(1, 10)), "dense"]
    lines = figure.axes[0].get_lines()[:9]
    light = [float(np.dot(to_rgb(line.get_color()), [0.3, 0.6, 0.1])) for line in lines]
    assert light == sorted(light)
    assert light[-1] < 0.85, "pale yellow cannot be seen on white"


def test_curves_that_get_no_colour_are_counted_and_drawn() -> None:
    names = [f"m{number:02}" for number in range(MAX_CURVES + 3)]
    frame = made({"method": names})
    # Test and validation disagree; validation chooses.
    frame[METRIC] += 0.01 * frame["space/method"].str[1:].astype(int)
    frame["average/validation/accuracy"] = 1 - frame[METRIC]
    figure = curves(frame)
    assert "in colour: the 12 that end best on validation" in figure.axes[0].get_title("left")
    assert labels(figure) == [*names[:MAX_CURVES], "3 others (grey)", "dense"]
    assert len(figure.axes[0].get_lines()) == len(names) + 1
    worst = curves(frame, higher_is_better=False)
    assert labels(worst) == [*names[3:], "3 others (grey)", "dense"]
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].get_lines()[3:-1]}
    assert len(styles) == MAX_CURVES


@pytest.mark.parametrize("better", [True, False])
def test_without_validation_the_first_curves_get_colours_because_test_chooses_nothing(better: bool) -> None:
    names = [f"m{number:02}" for number in range(MAX_CURVES + 2)]
    frame = made({"method": names})
    frame[METRIC] += 0.01 * frame["space/method"].str[1:].astype(int)
    figure = curves(frame, higher_is_better=better)
    assert labels(figure) == [*names[:MAX_CURVES], "2 others (grey)", "dense"]
    assert "in colour: the first 12 of the sweep" in figure.axes[0].get_title("left")


def test_a_curve_without_a_number_at_its_end_is_not_the_best() -> None:
    names = [f"m{number:02}" for number in range(MAX_CURVES + 1)]
    frame = made({"method": names})
    frame["average/validation/accuracy"] = frame[METRIC].where(frame["space/method"] != "m00")
    assert "m00" not in labels(curves(frame))


@pytest.mark.parametrize(("shown_as", "cell"), [
    (None, "0.88"), ({"iou": "percent"}, "88."), ({"iou": 1}, "0.9"), ({"iou": 6}, "0.88")])
def test_figures_of_sweeps_write_metrics_as_their_task_says(shown_as: Any, cell: str) -> None:
    frame = made({"pruning.target": [0.5], "particles.count": [4, 1]}).assign(**{"average/test/iou": 0.881234})
    texts_ = texts(heat_map(frame, "pruning.target", "particles.count", "average/test/iou", shown_as=shown_as))
    assert texts_[0].startswith(cell)
    is_percent = shown_as == {"iou": "percent"}
    assert curves(frame, "average/test/iou", shown_as=shown_as).axes[0].get_ylabel() == (
        "test iou (%)" if is_percent else "test iou")


def test_the_legend_covers_no_data() -> None:
    figure = curves(made({"method": [f"a long name {number}" for number in range(12)]}))
    figure.draw_without_rendering()
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.x0 >= axes.x1


def test_long_names_leave_room_for_the_axes_and_are_told_apart() -> None:
    names = [f"{'a method ' * 12}with {number} steps {'and more ' * 12}" for number in range(4)]
    frame = made({"method": names, "particles.count": [1, 2]})
    figure = curves(frame)
    *of_curves, dense = labels(figure)
    assert dense == "dense"
    assert len(set(of_curves)) == 2 * len(names)
    figure.draw_without_rendering()
    assert figure.axes[0].get_window_extent().width > 0.3 * figure.bbox.width
    ticks = heat_map(frame, "method", "particles.count").axes[0].get_xticklabels()
    assert len({tick.get_text() for tick in ticks}) == len(names)


def test_the_dense_network_is_left_out_where_settings_train_it_differently() -> None:
    assert "dense" not in labels(curves(made({"training.lr": [0.1, 0.2]})))


@pytest.mark.parametrize("lowest", [1.0, 0.5, 0.05, 0.01, 1e-4, 1e-7])
def test_ticks_are_few_and_in_range(lowest: float) -> None:
    ticks = density_ticks(lowest)
    assert ticks[0] == 1.0
    assert len(ticks) <= MAX_TICKS
    assert min(ticks) >= 0.99 * lowest
    assert ticks == sorted(ticks, reverse=True)


def test_all_figures_are_written_and_the_same_again(tmp_path: Path) -> None:
    space = {"pruning.target": {"grid": [0.0, 0.5]}, "particles.count": {"grid": [1, 2]}}
    sweepdir = trained_sweep(tmp_path, space=space, seeds=1)
    frame = collect(sweepdir)
    spots = write_figures(sweepdir, frame)
    folder = tmp_path / "sweeps/grid/figures"
    assert {path.name for path in folder.iterdir()} == {"curves.svg", "curves.png", "heat_map.svg", "heat_map.png"}
    before = {spot.key: spot.read() for spot in spots}
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    write_figures(sweepdir, frame)
    assert {spot.key: spot.read() for spot in spots} == before


def test_without_two_varied_entries_or_results_there_is_no_heat_map(tmp_path: Path) -> None:
    sweepdir = trained_sweep(tmp_path, space={"pruning.target": {"grid": [0.0]}}, seeds=1)
    frame = collect(sweepdir)
    assert [spot.key for spot in write_figures(sweepdir, frame)] == [
        f"sweeps/grid/figures/curves.{kind}" for kind in ("svg", "png")]
    assert write_figures(SweepDir(tmp_path, "grid"), frame.head(0)) == []


def test_a_space_without_targets_has_curves_as_well(tmp_path: Path) -> None:
    sweepdir = trained_sweep(tmp_path, space={"training.lr": {"grid": [0.05, 0.1]}}, seeds=1)
    assert [spot.key for spot in write_figures(sweepdir, collect(sweepdir))] == [
        f"sweeps/grid/figures/curves.{kind}" for kind in ("svg", "png")]
