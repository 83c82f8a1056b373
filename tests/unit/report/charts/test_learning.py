"""Curves of training: every arm's, few enough rounds, and the right ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from swamp_ray.config.reading import with_values
from swamp_ray.report.charts.learning import chosen_rounds, learning_curves
from swamp_ray.report.load.runs import ReportRun
from tests.figures import drawn, flaws, made_run, points, record


def trained(folder: Path, name: str, *, rounds: int = 2, particles: int = 2, epochs: int = 3, **values: Any
            ) -> ReportRun:
    """In epoch e of round r particle n has the loss 10 r + n + 1/e, and 0.25 at its end on test."""
    lines: list[dict[str, Any]] = [{"kind": "dense_epoch", "epoch": 1, "loss": 9.0, "accuracy": 0.1}]
    for index in range(rounds):
        for particle in range(particles):
            where = {"round": index, "particle": particle}
            lines += [{"kind": "particle_epoch", **where, "epoch": epoch, "loss": 10 * index + particle + 1 / epoch,
                       "accuracy": 0.9} for epoch in range(1, epochs + 1)]
            lines.append({"kind": "particle_end", **where, "test/loss": 0.25, "test/accuracy": 0.8})
    records = [record(index, 0.8**index, accuracy=[0.8] * particles) for index in range(rounds)]
    return made_run(folder, name, records, metrics=lines, **values)


def test_each_epoch_and_each_end_is_in_the_data(tmp_path: Path) -> None:
    loss, accuracy = learning_curves([trained(tmp_path, "a")])
    assert (loss.name, accuracy.name) == ("learning_loss", "learning_accuracy")
    data = drawn(loss)
    epochs = data[data["split"] == "training"]
    assert len(epochs) == 2 * 2 * 3
    one = epochs[(epochs["round"] == 1) & (epochs["particle"] == 1)]
    assert one.sort_values("epoch")["loss"].tolist() == pytest.approx([12.0, 11.5, 11 + 1 / 3])
    ends = data[data["split"] == "test, at the end"]
    assert ends["loss"].tolist() == [0.25] * 4
    assert set(drawn(accuracy)["accuracy"]) == {0.9, 0.8}
    curves = [line for line in accuracy.figure.axes[0].lines if np.size(line.get_xdata()) > 1]
    thick = [line for line in curves if line.get_linewidth() > 1.5]
    assert len(thick) == 2, "a mean for each round"


def test_of_many_rounds_a_few_are_drawn_the_first_and_the_last_among_them(tmp_path: Path) -> None:
    loss, _ = learning_curves([trained(tmp_path, "a", rounds=20, particles=8)])
    rounds = sorted(drawn(loss)["round"].unique())
    assert len(rounds) == 6
    assert (rounds[0], rounds[-1]) == (0, 19)
    assert "6 rounds of the run" in loss.caption
    assert chosen_rounds([9, 5, 1]) == [9, 5, 1]


def test_many_particles_become_a_range(tmp_path: Path) -> None:
    many, _ = learning_curves([trained(tmp_path, "a", rounds=4, particles=40)])
    assert "shaded their range" in many.caption
    thin = [line for line in many.figure.axes[0].lines if line.get_linewidth() < 1]
    assert not thin
    assert flaws(many.figure) == []


def test_axis_and_legend_name_what_is_of_training_and_what_of_test(tmp_path: Path) -> None:
    loss, accuracy = learning_curves([trained(tmp_path, "a")])
    assert [chart.title for chart in (loss, accuracy)] == ["Loss by epoch", "Accuracy by epoch"]
    assert [chart.figure.get_supylabel() for chart in (loss, accuracy)] == ["loss", "accuracy (%)"]
    (legend,) = loss.figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["training, epoch by epoch", "test, at the round's end"]
    diamonds = [line for line in loss.figure.axes[0].lines if line.get_marker() == "D"]
    assert len(diamonds) == 2
    assert all(points(line)[0][0] > 3 for line in diamonds), "behind the last epoch"


def test_a_smoothed_training_loss_shares_no_axis_with_the_loss_on_test(tmp_path: Path) -> None:
    run = trained(tmp_path, "a")
    smoothed = replace(run, config=with_values(run.config, {"task.label_smoothing": 0.1}))
    loss, accuracy = learning_curves([smoothed])
    assert set(drawn(loss)["split"]) == {"training"}
    assert loss.figure.get_supylabel() == "training loss"
    assert "test is not in this figure" in loss.caption
    assert not loss.figure.legends
    assert "test, at the end" in set(drawn(accuracy)["split"])


def test_lines_are_said_to_be_means_only_where_they_are(tmp_path: Path) -> None:
    alone = learning_curves([trained(tmp_path, "a", particles=1)])[0].caption
    assert "one run." in alone
    assert "thick" not in alone
    seeds = learning_curves([trained(tmp_path, f"b{seed}", arm="b", seed=seed) for seed in range(2)])[0].caption
    assert "2 runs. " in seeds
    assert "thick the mean over a round's runs and particles" in seeds


def test_nothing_is_drawn_where_nothing_was_logged(tmp_path: Path) -> None:
    assert learning_curves([]) == []
    assert learning_curves([made_run(tmp_path, "a", [record(0, 1.0)])]) == []


def test_a_task_without_accuracy_has_its_loss_alone(tmp_path: Path) -> None:
    lines = [{"kind": "particle_epoch", "round": 0, "particle": 0, "epoch": 1, "loss": 0.5}]
    charts = learning_curves([made_run(tmp_path, "a", [record(0, 1.0)], metrics=lines, primary="loss")])
    assert [chart.name for chart in charts] == ["learning_loss"]


def test_many_arms_stay_legible(tmp_path: Path) -> None:
    runs = [trained(tmp_path, f"an-arm-with-a-rather-long-name-{number}", rounds=6, epochs=12) for number in range(5)]
    assert flaws(learning_curves(runs)[0].figure) == []
