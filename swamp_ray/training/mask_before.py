"""The mask that is chosen before the only training: scores of the whole network, over the steps of a schedule."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.config.rules import SEES_NO_DATA
from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.data.trees import split_batch, tree_map
from swamp_ray.errors import UserError
from swamp_ray.random_state import seeded
from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.masks import Layout, clean_name, from_bits, split, to_bits
from swamp_ray.sparsity.schedule import falling_densities
from swamp_ray.sparsity.selection import ScoredSlice, here, select
from swamp_ray.training.model_tensors import named_buffers
from swamp_ray.training.network_scores import (
    DEFAULT_BATCHES,
    DEFAULT_STEPS,
    GRASP_TEMPERATURE,
    NetworkScore,
    ScoreBatches,
    checked_scores,
    make_network_score,
)
from swamp_ray.training.normalisation import reset_batchnorm
from swamp_ray.training.normalisation_checks import small_batch
from swamp_ray.training.results import Arrays
from swamp_ray.training.tasks import Batch, Classification, Task
from swamp_ray.training.trainer import ParticleTrainer, initial_model


@dataclass(frozen=True)
class MaskProgram:
    """How the mask before training is chosen.

    Attributes:
        score: Name or import path of the score.
        survivors: Weights that the mask keeps.
        steps: Steps from the first mask to it.
        num_batches: Training batches that a score sees.
        seed: Of those batches, and of random scores.
        temperature: grasp: the outputs are divided by it.
        input_shape: Of one sample; None where the network reads more than one tensor.
    """

    score: str
    survivors: int
    steps: int
    num_batches: int
    seed: int
    temperature: float
    input_shape: tuple[int, ...] | None

    def as_dict(self) -> dict[str, Any]:
        """Plain values of what decides the mask, for the recipe: nothing that the score does not read."""
        plain = asdict(self) | {"input_shape": None if self.input_shape is None else list(self.input_shape)}
        unread = {"score"}  # its code is in the recipe too
        if self.score in SEES_NO_DATA:
            unread |= {"num_batches"} if self.score == "random" else {"num_batches", "seed"}
        if self.score != "grasp":
            unread |= {"temperature"}
        if self.score != "synflow":
            unread |= {"input_shape"}
        return {key: value for key, value in plain.items() if key not in unread}


def mask_program(
    config: SwampConfig, data: Data, task: Task, survivors: int, steps_per_epoch: int
) -> MaskProgram | None:
    """How a run chooses its mask before training; None where it prunes after each round.

    Raises:
        UserError: The score is to see more batches than the training split has, or to cool what are no logits.
    """
    pruning = config.pruning
    if pruning.when != "before":
        return None
    asked = pruning.before.num_batches
    if asked is not None and asked > steps_per_epoch:
        raise UserError(f"the training split has {steps_per_epoch} batches of {config.training.batch_size}", got=asked,
                        where="pruning.before.num_batches", do="Lower it.")
    num_batches = asked or min(DEFAULT_BATCHES, steps_per_epoch)
    if pruning.score in SEES_NO_DATA:
        num_batches = 1  # whose shape is looked at
    steps = pruning.before.steps or DEFAULT_STEPS.get(pruning.score, 1)
    return MaskProgram(pruning.score, survivors, steps, num_batches, derive_seed(config.seed, "mask"),
                       _temperature(config, task), data.input_shape)


def _temperature(config: SwampConfig, task: Task) -> float:
    """What GraSP divides the logits by; 1 where the task has none that can be divided."""
    asked = config.pruning.before.temperature
    has_logits = isinstance(task, Classification) and not task.has_own_loss
    if asked not in (None, 1) and not has_logits:
        raise UserError("a temperature divides the logits of the built-in classification, and other losses have none",
                        got=asked, where="pruning.before.temperature", do="Leave it out.")
    return asked or (GRASP_TEMPERATURE if has_logits else 1.0)


def check_network_score(config: SwampConfig, data: Data, layout: Layout, task: Task, kept: frozenset[str]) -> None:
    """Try the score on the initial weights and two samples, so that a broken one is not found by a worker.

    Raises:
        UserError: There is no such score, it fails, or returns what it must not.
    """
    score = make_network_score(config.pruning.score, seed=0, temperature=_temperature(config, task))
    model = initial_model(config, data).train()
    reset_batchnorm(model, kept)
    mask = np.ones(layout.num_prunable, dtype=bool)
    with seeded(0):
        _scores(score, model, task, _Few([small_batch(config, data)]), layout, mask)


def choose_mask(
    trainer: ParticleTrainer, program: MaskProgram, start: Arrays, buffers: Arrays, mask: np.ndarray,
    stop: Callable[[], bool], say: Callable[[str], None] = lambda _: None,
) -> np.ndarray | None:
    """Bits of the mask; None if it was stopped.

    The scores are computed in float32, whatever the precision of training is, on a network of its own.

    Args:
        trainer: Its data, task and device are used.
        program: Score, steps, batches.
        start: The weights by name.
        buffers: The network's buffers; statistics that training changes are reset.
        mask: The mask that survivors are chosen from, bool ``[P]``.
        stop: Asked before every step.
        say: Told of every step.

    Raises:
        UserError: The score fails, or returns what it must not.
    """
    config = trainer.config
    layout = trainer.layout
    score = make_network_score(program.score, seed=program.seed, temperature=program.temperature)
    model = initial_model(config, trainer.data).to(trainer.device)
    batches = _Shuffled(trainer, program)
    counts = falling_densities(int(np.count_nonzero(mask)), program.survivors, program.steps)
    bits = to_bits(mask)
    for step, count in enumerate(counts, start=1):
        if stop():
            return None
        present = from_bits(bits, layout.num_prunable)
        if int(np.count_nonzero(present)) == count:
            continue  # a small step, or a ticket's mask that is sparse enough: there is nothing to choose
        _load_(model, trainer, start, buffers, present)
        with trainer.randomness(derive_seed(program.seed, "score")):
            scores = _scores(score, model, trainer.task, batches, layout, present)
        bits = select(layout, bits, count, config.pruning.scope, [here(ScoredSlice(0, scores))])
        say(f"step {step}/{program.steps}: {count} weights left")
    return bits


class _Few:
    """Batches that are there already; each pass gives copies."""

    def __init__(self, batches: list[Batch]) -> None:
        self._batches = batches

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[Batch]:
        for batch in self._batches:
            yield tree_map(torch.clone, batch)


class _Shuffled:
    """Training batches in the order and with the augmentation of one seed, in parts of a forward pass's size."""

    def __init__(self, trainer: ParticleTrainer, program: MaskProgram) -> None:
        self._trainer = trainer
        self._program = program
        self._size = trainer.config.training.batch_size

    def __len__(self) -> int:
        return self._program.num_batches * (self._size // self._trainer.forward_batch)

    def __iter__(self) -> Iterator[Batch]:
        seed = derive_seed(self._program.seed, "shuffle")
        batches = self._trainer.batches("train").one_pass(self._size, seed=seed, drop_last=True)
        for batch in itertools.islice(batches, self._program.num_batches):
            yield from split_batch(batch, self._trainer.forward_batch)


def _scores(
    score: NetworkScore, model: nn.Module, task: Task, batches: ScoreBatches, layout: Layout, mask: np.ndarray
) -> np.ndarray:
    """Scores of the surviving weights of a network."""
    return checked_scores(score(model, task, batches, _mask_tensors(model, layout, mask)), layout, mask)


def _mask_tensors(model: nn.Module, layout: Layout, mask: np.ndarray) -> Mapping[str, Tensor]:
    device = next(model.parameters()).device
    return {name: torch.tensor(part, device=device) for name, part in split(layout, mask).items()}


def _load_(model: nn.Module, trainer: ParticleTrainer, start: Arrays, buffers: Arrays, mask: np.ndarray) -> None:
    """Put weights, masked, and buffers in place, in training mode."""
    masks = split(trainer.layout, mask)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            value = start[clean_name(name)]
            kept = masks.get(clean_name(name))
            if kept is not None:
                value = np.where(kept, value, np.float32(0))
            parameter.copy_(torch.tensor(value))
        for name, buffer in named_buffers(model):
            if name in buffers:
                buffer.copy_(torch.tensor(buffers[name]))
    reset_batchnorm(model, trainer.kept)
    model.train()
