"""Options in words: the names of docs/arms.md, and sentences."""

from __future__ import annotations

from pathlib import Path

import pytest

from swamp_ray.config.reading import load_config, with_values
from swamp_ray.report.page.method import method_name, method_words

ARMS = Path(__file__).resolve().parents[4] / "configs" / "arms"
NAMES = {
    "imp": "IMP", "imp_4t": "IMP", "imp_swa": "IMP + SWA", "swamp": "SWAMP", "swamp_without_swa": "SWAMP without SWA",
    "swamp_late_fork": "SWAMP with a late fork",
    "swamp_plus": "SWAMP+", "imp_best_of_4": "IMP, best of 4", "imp_ema": "IMP with EMA",
    "lr_rewinding": "learning-rate rewinding", "sparse_model_soups": "Sparse Model Soups",
    "snip": "SNIP", "grasp": "GraSP", "synflow": "SynFlow", "before_random": "random pruning before training",
    "before_magnitude": "magnitude pruning before training",
    "before_erk": "random pruning with ERK densities, before training",
    "one_shot": None, "random_pruning": None, "imp_erk": None, "imp_uniform": None, "imp_rewind_init": None,
    "continue_ticket": None, "fine_tune_checkpoint": None,
    "imp_sam": "IMP with SAM", "soup_greedy": "Sparse Model Soups, greedy", "imp_2_4": None, "imp_blocks": None,
    "imp_channels": None,
}
CHANGING = {
    "set": ("SET", "grows as many, at random: 30 % of its weights at first"),
    "rigl": ("RigL", "Every 100 steps until 75 % of the training"),
    "rigl_averaged": ("RigL, averaged over 4 replicas", "averaged at each change of the mask and at the end"),
    "gradual_magnitude_pruning": ("gradual magnitude pruning", "at once: every 100 steps from 0 to 75 %"),
    "one_shot_fine_tuning": ("one-shot pruning with fine-tuning", "After 50 % of the training"),
}


def test_every_arm_is_looked_at() -> None:
    assert {path.stem for path in ARMS.glob("*.yaml")} == {*NAMES, *CHANGING}


@pytest.mark.parametrize("arm", NAMES)
def test_an_arm_is_called_what_it_is(arm: str) -> None:
    assert method_name(load_config(ARMS / f"{arm}.yaml")) == NAMES[arm]


@pytest.mark.parametrize(("arm", "words"), [
    ("swamp", ["SWAMP.", "4 particles", "mean of its weights along the way", "average of the particles' weights"]),
    ("imp", ["IMP.", "1 particle for", "smallest magnitude, over all layers at once"]),
    ("imp_best_of_4", ["best particle on validation"]),
    ("swamp_plus", ["1 particle, 4 from"]),
    ("swamp_late_fork", ["The first 75 % of it is trained once, as a trunk", "(SWA): from 75 % of its training on"]),
    ("lr_rewinding", ["goes on from the average before it, pruned"]),
    ("imp_rewind_init", ["from the initialisation"]),
    ("random_pruning", ["chosen at random"]),
    ("imp_erk", ["densities by layer (ERK)"]),
    ("snip", ["SNIP.", "only round starts from the initialisation", "highest score (snip) are kept", "98 % sparsity"]),
    ("before_erk", ["chosen at random are kept, with densities by layer (ERK)"]),
    ("sparse_model_soups", ["They differ in", "in later ones"]),
    ("imp_sam", ["IMP with SAM.", "0.05 up the batch's own gradient (SAM), and so two gradients"]),
    ("soup_greedy", ["do not make the average worse there (a greedy soup)"]),
    ("imp_2_4", ["among every 4 consecutive inputs of an output, of which 2 are left in the end"]),
    ("imp_blocks", ["in blocks of 4 outputs x 4 inputs by the sum of their scores, over all layers at once"]),
    ("imp_channels", ["in whole output channels by the sum of their scores, with one density for all layers"]),
    ("fine_tune_checkpoint", ["from weights that were given"]),
])
def test_the_sentences_say_what_is_done(arm: str, words: list[str]) -> None:
    text = method_words(load_config(ARMS / f"{arm}.yaml"))
    assert [word for word in words if word not in text] == [], text


def test_statistics_are_named_where_they_are_not_the_usual_ones() -> None:
    usual = load_config(ARMS / "imp_erk.yaml")
    assert "statistics" not in method_words(usual)
    assert "without augmentation" in method_words(with_values(usual, {"averaging.statistics": "unaugmented"}))


@pytest.mark.parametrize("arm", CHANGING)
def test_a_mask_that_changes_within_the_training_is_said(arm: str) -> None:
    config = load_config(ARMS / f"{arm}.yaml")
    name, words = CHANGING[arm]
    assert method_name(config) == name
    text = method_words(config)
    assert words in text
    assert "98 % sparsity" in text
    assert "round" not in text, "there is one training"
    dense = arm in ("gradual_magnitude_pruning", "one_shot_fine_tuning")
    assert ("5 epochs of dense training" in text) == dense
