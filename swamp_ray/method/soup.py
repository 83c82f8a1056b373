"""The greedy soup: which particles of a round are averaged (Wortsman et al., 2022)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class GreedySoup:
    """Particles in the order of their scores, each of which enters if the average does not get worse by it.

    Attributes:
        order: All particles of the round, the best one first; of equal scores the lower index.
        score: Of the average of those that are in; of the first one its own.
        kept: Those that are in.
        tried: How many were decided on.
    """

    order: tuple[int, ...]
    score: float
    kept: list[int] = field(default_factory=list)
    tried: int = 1

    @classmethod
    def of(cls, scores: Mapping[int, float]) -> GreedySoup:
        """The soup of the best particle alone.

        Args:
            scores: Of each particle on validation, higher is better; NaN is worse than any number.
        """
        order = sorted(scores, key=lambda particle: (-comparable(scores[particle]), particle))
        return cls(tuple(order), comparable(scores[order[0]]), order[:1])

    @property
    def candidate(self) -> int | None:
        """The particle that is tried next; None once all were."""
        return self.order[self.tried] if self.tried < len(self.order) else None

    @property
    def with_candidate(self) -> tuple[int, ...]:
        """Those that are in and the candidate, in the order in which they are added up."""
        assert self.candidate is not None
        return tuple(sorted([*self.kept, self.candidate]))

    def judge(self, score: float) -> None:
        """Let the candidate in if the average with it scores at least as high, and go on to the next one."""
        assert self.candidate is not None
        if comparable(score) >= self.score:
            self.kept.append(self.candidate)
            self.score = comparable(score)
        self.tried += 1


def comparable(score: float) -> float:
    """A score that can be compared: NaN is worse than any number."""
    return -math.inf if math.isnan(score) else score
