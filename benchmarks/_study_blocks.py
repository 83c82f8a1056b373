"""The blocks of the study: which networks on which data, with which choices and arms. docs/study.md says why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from _study_parts import IMP, NO_SWA, SINGLE, Arm, Choice, Curvature, Part, Swap
from _study_tiers import Tier

CHOICE_SEEDS = (100, 101, 102)
"""Settings are chosen, and the pilot is run, with seeds that no arm of the study has."""
RATE = 0.4
SHORT_RATE = 0.784
"""Two prunings of this rate are six of 0.4: what short chains reach in three rounds."""
LIKE_IMP = ("imp", "pilot", "dense_2t", "swamp_without_swa", "imp_best_of_4", "lr_rewinding")
FORKS = {"late_fork_50": 0.5, "late_fork_75": 0.75}
"""Share of a round that is trained once, before four particles part, by arm."""
LIKE_SWAMP = ("swamp", *FORKS)


@dataclass(frozen=True)
class Settings:
    """What is tried in a block, eight settings a question.

    Attributes:
        rates, decays: Base rate and weight decay, for IMP and again for IMP with 4 T.
        further_rates: Rates that are tried with each warm-up, once a decay has been chosen.
        warmups: Epochs.
        swa_rates, swa_starts: For IMP + SWA, and again for SWAMP.
        distances: Epochs between snapshots after a late fork, with each of the rates of SWA.
        chain: Options of the runs with which settings are compared.
        at: Sparsities at which they are compared.
    """

    rates: tuple[float, ...]
    decays: tuple[float, ...]
    further_rates: tuple[float, ...]
    warmups: tuple[float, ...]
    swa_rates: tuple[float, ...]
    swa_starts: tuple[float, ...]
    distances: tuple[float, ...]
    chain: Mapping[str, Any]
    at: tuple[float, ...]


def left_after(num_prunings: int) -> float:
    """Sparsity after so many prunings of the study's rate, from below: no further pruning follows for rounding."""
    return 1 - (1 - RATE) ** num_prunings * (1 + 1e-6)


EVERY_ROUND = {"pruning.target": left_after(9)}
THREE_ROUNDS = {"pruning.rate": SHORT_RATE, "pruning.target": left_after(6)}
IMAGES = Settings(
    rates=(0.02, 0.05, 0.1, 0.2), decays=(1e-4, 5e-4), further_rates=(0.035, 0.07, 0.14, 0.28), warmups=(0.0, 6.0),
    swa_rates=(0.01, 0.02, 0.05, 0.1), swa_starts=(0.5, 0.75), distances=(1.0, 0.5), chain=THREE_ROUNDS,
    at=(SHORT_RATE, left_after(6)))
MLP = Settings(
    rates=IMAGES.rates, decays=IMAGES.decays, further_rates=IMAGES.further_rates, warmups=(0.0, 4.0),
    swa_rates=IMAGES.swa_rates, swa_starts=IMAGES.swa_starts, distances=IMAGES.distances, chain=EVERY_ROUND,
    at=(left_after(5), left_after(9)))
TEXT = Settings(
    rates=(5e-4, 1e-3, 2e-3, 4e-3), decays=(0.01, 0.1), further_rates=(7e-4, 1.4e-3, 2.8e-3, 5.6e-3),
    warmups=(0.0, 2.0), swa_rates=(1e-4, 2e-4, 5e-4, 1e-3), swa_starts=(0.5, 0.75), distances=(0.25, 0.125),
    chain=THREE_ROUNDS, at=(SHORT_RATE, left_after(6)))


def _rates_and_decays(settings: Settings, arm: str, takers: tuple[str, ...]) -> Iterator[Part]:
    for lr, decay in product(settings.rates, settings.decays):
        yield Choice(f"choose {arm} lr {lr:g} decay {decay:g}", f"rate and decay of {arm}", arm,
                     {"training.lr": lr, "training.weight_decay": decay}, takers, settings.chain, 1, CHOICE_SEEDS)


def _rates_and_warmups(settings: Settings, arm: str, takers: tuple[str, ...]) -> Iterator[Part]:
    for lr, warmup in product(settings.further_rates, settings.warmups):
        yield Choice(f"choose {arm} lr {lr:g} warmup {warmup:g}", f"rate and warm-up of {arm}", arm,
                     {"training.lr": lr, "training.schedule.warmup": f"{warmup:g} epochs"}, takers, settings.chain, 2,
                     CHOICE_SEEDS, improves=f"rate and decay of {arm}")


def _swa(settings: Settings, arm: str, takers: tuple[str, ...]) -> Iterator[Part]:
    for lr, start in product(settings.swa_rates, settings.swa_starts):
        yield Choice(f"choose {arm} swa {lr:g} start {start:g}", f"SWA of {arm}", arm,
                     {"averaging.lr": lr, "averaging.start": start}, takers, settings.chain, 2, CHOICE_SEEDS)


def _swa_after_fork(settings: Settings) -> Iterator[Part]:
    """Snapshots begin at the fork, so that their distance is tried in place of their start."""
    for arm in FORKS:
        for lr, every in product(settings.swa_rates, settings.distances):
            yield Choice(f"choose {arm} swa {lr:g} every {every:g}", f"SWA of {arm}", arm,
                         {"averaging.lr": lr, "averaging.every": f"{every:g} epochs"}, (arm,), settings.chain, 2,
                         CHOICE_SEEDS)


def late_fork(epochs: float, share: float) -> dict[str, Any]:
    """A late fork whose trunk and four particles train 4 T together."""
    length = 4 * epochs / (share + 4 * (1 - share))
    return {"particles.fork_at": share, "averaging.start": share, "round.length": f"{length:g} epochs"}


def choices(settings: Settings) -> list[Part]:
    """What is chosen on validation: sixteen settings for IMP, and as many for each arm that it is compared with."""
    return [
        *_rates_and_decays(settings, "imp", (*LIKE_IMP, "imp_swa", *LIKE_SWAMP)),
        *_rates_and_warmups(settings, "imp", LIKE_IMP),
        *_swa(settings, "imp_swa", ("imp_swa",)),
        *_swa(settings, "swamp", ("swamp",)),
        *_swa_after_fork(settings),
        *_rates_and_decays(settings, "imp_4t", ("imp_4t",)),
        *_rates_and_warmups(settings, "imp_4t", ("imp_4t",)),
    ]


def arms(epochs: float, seeds: Sequence[int] | None = None) -> list[Part]:
    """The arms of a block, and what is measured of them.

    Args:
        epochs: T.
        seeds: Of all of them; default: the block's.
    """
    own = None if seeds is None else tuple(seeds)
    four_times = {**IMP, "round.length": f"{4 * epochs:g} epochs"}
    twice = {**IMP, "round.length": f"{2 * epochs:g} epochs", "pruning.target": 0.0}
    return [
        Arm("pilot", IMP, second=True, stage=3, seeds=CHOICE_SEEDS),
        Arm("dense_2t", twice, stage=3, seeds=CHOICE_SEEDS),
        Arm("imp", IMP, second=True, stage=4, seeds=own),
        Arm("imp_swa", SINGLE, second=True, stage=4, seeds=own),
        Arm("swamp", lines=True, stage=4, seeds=own),
        Arm("imp_4t", four_times, stage=5, seeds=own),
        *(Arm(name, late_fork(epochs, share), stage=5, seeds=own) for name, share in FORKS.items()),
        Arm("swamp_without_swa", NO_SWA, stage=5, seeds=own),
        Arm("imp_best_of_4", {**NO_SWA, "particles.combine": "best"}, stage=6, seeds=own),
        Arm("lr_rewinding", {**IMP, "rewind.weights": "none"}, stage=6, seeds=own),
        Swap("imp", "swamp", stage=7, seeds=own),
        Curvature(("imp", "imp_swa", "swamp"), num_images=1000, num_directions=16, stage=7, seeds=own),
    ]


def _block(config: str, settings: Settings, epochs: float, num_seeds: int) -> Tier:
    return Tier(f"configs/study/{config}.yaml", tuple(range(num_seeds)), [*choices(settings), *arms(epochs)],
                choose_at=settings.at)


BLOCKS = {
    "a10k": _block("a10k", MLP, epochs=32, num_seeds=10),
    "a60k": Tier("configs/study/a60k.yaml", tuple(range(10)), arms(epochs=32), settings_of="a10k"),
    "b": _block("b", IMAGES, epochs=32, num_seeds=6),
    "c": _block("c", IMAGES, epochs=48, num_seeds=6),
    "d_sst2": _block("d_sst2", TEXT, epochs=8, num_seeds=6),
    "d_trec": _block("d_trec", TEXT, epochs=8, num_seeds=6),
    "gpu_wrn_28_2": _block("gpu_wrn_28_2", IMAGES, epochs=48, num_seeds=6),
    "gpu_resnet20": _block("gpu_resnet20", IMAGES, epochs=48, num_seeds=6),
}
ORDER = {
    "cpu": ("a10k", "a60k", "c", "d_sst2", "d_trec", "b"),
    "gpu": ("gpu_wrn_28_2", "gpu_resnet20"),
}
"""The blocks of a kind of machine, in the order in which they are run."""
