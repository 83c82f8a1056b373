"""What the study runs on which machine. Fixed before the first result; docs/study.md says why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from _study_parts import Arm, Choice, Frame, Part


@dataclass(frozen=True)
class Tier:
    """A config, seeds that are fixed beforehand, and parts.

    Attributes:
        config: Path of the config, from the project's root.
        seeds: Of all parts that have none of their own.
        parts: In the order in which they are done within a stage.
        choose_at: Sparsities over which a setting's accuracy on validation is averaged.
        settings_of: Another tier, whose chosen settings are taken over; nothing is chosen here.
        page: Where its results are told.
    """

    config: str
    seeds: tuple[int, ...]
    parts: Sequence[Part]
    choose_at: tuple[float, ...] = ()
    settings_of: str = ""
    page: str = "docs/study.md"

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


def chosen(tier: Tier, frame: Frame, stage: int) -> dict[str, dict[str, Any]]:
    """The options that arms take over in a stage: of each question the setting with the best accuracy on validation.

    Of settings that are equally good the first one is taken.

    Raises:
        LookupError: A setting has not been tried with all its seeds yet.
    """
    values: dict[str, dict[str, Any]] = {}
    reached: dict[str, float] = {}
    for question, settings in tier.choices(stage).items():
        found = [validation_accuracy(frame, choice, tier.choose_at) for choice in settings]
        best = settings[found.index(max(found))]
        reached[question] = max(found)
        if best.improves is not None and max(found) <= reached[best.improves]:
            continue
        for arm in best.takers:
            values.setdefault(arm, {}).update(best.setting)
    return values


def validation_accuracy(frame: Frame, choice: Choice, sparsities: Sequence[float]) -> float:
    """Mean over the seeds of a setting and over sparsities; a run that diverged counts as guessing.

    Raises:
        LookupError: A seed or a sparsity is missing.
    """
    rows = frame[(frame["arm"] == choice.name) & (frame["what"] == "average") & (frame["split"] == "validation")
                 & (frame["metric"] == "accuracy")]
    means = []
    for sparsity in sparsities:
        here = rows[(rows["sparsity"] - sparsity).abs() < NEAR]
        if set(here["seed"]) != set(choice.seeds or here["seed"]) or here.empty:
            raise LookupError(f"{choice.name} has not been run yet at sparsity {sparsity:g}")
        means.append(float(here["value"].mean()))
    return sum(means) / len(means)


NEAR = 2e-3
"""Sparsities of a run are those of whole weights, and so lie a little beside those that are named."""
