"""The first study: small images, short training. docs/first_study.md tells its results."""

from __future__ import annotations

from _study_parts import IMP, NO_SWA, SINGLE, Arm, AsTrained, Augmented, Curvature, Swap
from _study_tiers import Tier

FIRST = Tier("configs/study/first.yaml", (0, 1, 2, 3, 4), (
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
), page="docs/first_study.md")
