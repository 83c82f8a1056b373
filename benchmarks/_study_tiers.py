"""What the study runs on which machine. Fixed before the first result; docs/study.md says why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from _study_parts import IMP, NO_SWA, SINGLE, Arm, AsTrained, Augmented, Choice, Curvature, Frame, Part, Swap


@dataclass(frozen=True)
class Tier:
    """A config, seeds that are fixed beforehand, and parts.

    Attributes:
        config: Path of the config, from the project's root.
        seeds: Of all parts that have none of their own.
        parts: In the order in which they are done within a stage.
        choose_at: Sparsity at which settings are compared on validation.
    """

    config: str
    seeds: tuple[int, ...]
    parts: Sequence[Part]
    choose_at: float = 0.0

    @property
    def arms(self) -> dict[str, Arm]:
        """The arms by name."""
        return {part.name: part for part in self.parts if isinstance(part, Arm)}

    def order(self) -> list[tuple[Part, int]]:
        """Parts and seeds in the order in which they are done."""
        stages = sorted({part.stage for part in self.parts})
        pairs = [(part, seed) for part in self.parts for seed in part.seeds or self.seeds]
        return sorted(pairs, key=lambda pair: (stages.index(pair[0].stage), pair[1]))

    def choices(self, stage: int) -> dict[str, list[Choice]]:
        """Questions that are answered before a stage, with their settings."""
        found: dict[str, list[Choice]] = {}
        for part in self.parts:
            if isinstance(part, Choice) and part.stage < stage:
                found.setdefault(part.question, []).append(part)
        return found


def chosen(tier: Tier, frame: Frame, stage: int) -> dict[str, Any]:
    """The options that parts of a stage take over: of each question the setting with the best accuracy on validation.

    Raises:
        LookupError: A setting has not been tried yet.
    """
    values: dict[str, Any] = {}
    for settings in tier.choices(stage).values():
        found = [validation_accuracy(frame, choice, tier.choose_at) for choice in settings]
        values |= settings[found.index(max(found))].setting
    return values


def validation_accuracy(frame: Frame, choice: Choice, sparsity: float) -> float:
    """Mean over the seeds of a setting; a run that diverged counts as it is recorded."""
    rows = frame[(frame["arm"] == choice.name) & (frame["what"] == "average") & (frame["split"] == "validation")
                 & (frame["metric"] == "accuracy") & ((frame["sparsity"] - sparsity).abs() < 1e-3)]
    if rows.empty:
        raise LookupError(f"{choice.name} has not been run yet")
    return float(rows["value"].mean())


CHOICE_SEED = 100
"""Hyper-parameters are chosen with a seed that no arm of the study has."""
RATES, DECAYS = (0.05, 0.1, 0.2), (1e-4, 5e-4)
SWA_RATES, SWA_STARTS = (0.01, 0.02, 0.05), (0.5, 0.75)
AT = 0.9375


def _base_rates() -> list[Part]:
    return [Choice(f"choose lr {lr:g} decay {decay:g}", "base rate and weight decay",
                   {"training.lr": lr, "training.weight_decay": decay}, {**IMP, "pruning.target": AT}, 1,
                   (CHOICE_SEED,)) for lr, decay in product(RATES, DECAYS)]


def _swa_rates() -> list[Part]:
    return [Choice(f"choose swa lr {lr:g} start {start:g}", "SWA rate and start",
                   {"averaging.lr": lr, "averaging.start": start}, {**SINGLE, "pruning.target": AT}, 2,
                   (CHOICE_SEED,)) for lr, start in product(SWA_RATES, SWA_STARTS)]


SMS: Mapping[str, Any] = NO_SWA | {
    "rewind.weights": "none", "round.schedule": "retrain", "particles.count": 1,
    "particles.schedule": [{"sparsity": 0.1, "count": 4}],
}
ONE = (0,)
WRN = {"model.name": "wrn_28_2"}

TIERS = {
    "cpu": Tier("configs/study/cpu.yaml", (0, 1, 2, 3, 4), (
        Arm("imp", IMP, second=True),
        Arm("imp_swa", SINGLE),
        Arm("swamp", lines=True),
        AsTrained(("imp",), stage=2),
        Curvature(("imp", "imp_swa", "swamp"), num_images=1000, num_directions=16, stage=5),
        Arm("dense_2t", {**IMP, "pruning.target": 0.0, "round.length": "24 epochs"}, stage=2),
        Arm("swamp_without_swa", NO_SWA, stage=3),
        Arm("imp_4t", {**IMP, "round.length": "48 epochs"}, stage=4),
        Swap("imp", "swamp", stage=5),
        Augmented(("imp", "imp_swa", "swamp", "swamp_without_swa", "imp_4t"), stage=6),
    )),
    "gpu": Tier("configs/study/gpu.yaml", (0, 1, 2, 3, 4, 5), (
        *_base_rates(),
        *_swa_rates(),
        # Tier A
        Arm("dense_2t", {**IMP, "pruning.target": 0.0, "round.length": "48 epochs"}, stage=3, seeds=(0, 1, 2)),
        Arm("imp", IMP, second=True, stage=3),
        Arm("imp_swa", SINGLE, stage=3),
        Arm("swamp", lines=True, stage=3),
        AsTrained(("imp",), stage=3),
        Curvature(("imp", "imp_swa", "swamp"), num_images=5000, num_directions=32, stage=3),
        # Tier B
        Arm("imp_4t", {**IMP, "round.length": "96 epochs"}, stage=4),
        Arm("swamp_without_swa", NO_SWA, stage=4),
        Arm("imp_best_of_4", {**NO_SWA, "particles.combine": "best"}, stage=4),
        Swap("imp", "swamp", stage=4),
        # Tier C
        Arm("swamp_plus", {"particles.count": 1, "particles.schedule": [{"sparsity": 0.875, "count": 4}]}, stage=5),
        Arm("sms", SMS, stage=5),
        Arm("one_shot", {**IMP, "pruning.rate": 0.99}, stage=5),
        *(Arm(f"swamp_{count}_particles", {"particles.count": count}, stage=5, seeds=ONE) for count in (2, 8)),
        *(Arm(f"{arm}_t0_{length}", {**values, "dense.length": f"{length} epochs"}, stage=5, seeds=ONE)
          for length in (0, 1) for arm, values in (("imp", IMP), ("swamp", {}))),
        *(Arm(f"{arm}_rate_20", {**values, "pruning.rate": 0.2}, stage=5, seeds=ONE)
          for arm, values in (("imp", IMP), ("swamp", {}))),
        *(Arm(f"{arm}_wrn", {**values, **WRN}, stage=5, seeds=(0, 1, 2))
          for arm, values in (("imp", IMP), ("imp_swa", SINGLE), ("swamp", {}))),
        Augmented(("imp", "imp_swa", "swamp", "swamp_without_swa", "imp_4t"), stage=6),
    ), choose_at=AT),
}
