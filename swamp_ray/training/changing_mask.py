"""The mask of one training that changes at the steps of its program: chosen from the weights in place, and applied."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from swamp_ray.seeding import derive_seed
from swamp_ray.sparsity.averaging import ExponentialMean, SnapshotMean, is_finite
from swamp_ray.sparsity.dynamic import Exchange, exchange_layers, prune_to, random_growth
from swamp_ray.sparsity.masks import Layout, flatten, mask_tensors
from swamp_ray.sparsity.selection import layer_budgets
from swamp_ray.training.mask_updates import MaskUpdates
from swamp_ray.training.optimizers import MaskedStep


class NotFiniteError(ArithmeticError):
    """Weights or gradients that a mask is to be chosen from are not finite."""


class ChangingMask:
    """The present mask, and its updates.

    Args:
        updates: When the mask changes, and how.
        layout: The prunable weights.
        weights: Their tensors, in order.
        mask: The first mask, bool ``[P]``.
        seed: Of the training; decides random growth.
        take_step: Holds the mask in every step.

    Attributes:
        mask: The present mask, bool ``[P]``.
        updated_at: Finished steps at the last update; -1 before the first.
    """

    def __init__(
        self, updates: MaskUpdates, layout: Layout, weights: Sequence[Tensor], mask: np.ndarray, seed: int,
        take_step: MaskedStep,
    ) -> None:
        self.updates = updates
        self.mask = mask.copy()
        self.updated_at = -1
        self._layout = layout
        self._weights = list(weights)
        self._first = int(np.count_nonzero(mask))
        self._seed = seed
        self._take_step = take_step

    def is_due(self, done: int) -> bool:
        """Whether the mask has to change now that ``done`` steps are finished, and has not yet."""
        return self.updates.is_due(done) and self.updated_at != done

    def gradients(self) -> np.ndarray:
        """The dense gradients in the weights, float32 ``[P]``; 0 where a weight has none."""
        found = []
        for weight in self._weights:
            found.append(weight.grad if weight.grad is not None else weight.new_zeros(weight.shape))
        return flatten(found)

    def choose(self, done: int, gradients: np.ndarray | None = None) -> Exchange:
        """The next mask, from the weights in place.

        Args:
            done: Finished steps.
            gradients: Dense gradients, where growth needs them.

        Raises:
            NotFiniteError: A weight or a gradient is NaN or infinite.
        """
        values = flatten(self._weights)
        if not is_finite(values) or (gradients is not None and not is_finite(gradients)):
            raise NotFiniteError
        magnitudes = np.abs(values)
        if self.updates.method == "prune":
            kept = prune_to(self._layout, self.mask, magnitudes, self._budgets(done))
            return Exchange(kept, kept)
        if gradients is not None:
            growth = np.abs(gradients)
        else:
            growth = random_growth(self._layout, derive_seed(self._seed, "grow", done))
        return exchange_layers(self._layout, self.mask, magnitudes, growth, self.updates.share_at(done))

    def apply(self, done: int, exchange: Exchange, params: Sequence[Tensor],
              mean: SnapshotMean | ExponentialMean | None) -> None:
        """Let the next mask hold in weights, optimiser and the exponential mean along the training.

        Args:
            done: Finished steps.
            exchange: The next mask.
            params: The trained tensors.
            mean: Their mean along the training. Snapshots begin after the last update.
        """
        masks = self._tensors(exchange.kept)
        continuing = self._tensors(exchange.continuing)
        self._take_step.change_masks(masks, continuing)
        if isinstance(mean, ExponentialMean):
            mean.restrict_(params, self._weights, continuing)
        self.mask = exchange.kept
        self.updated_at = done

    def resume(self, mask: np.ndarray, updated_at: int) -> None:
        """Take up the mask of a checkpoint, whose weights and optimiser state fit it."""
        self._take_step.hold(self._tensors(mask))
        self.mask = mask
        self.updated_at = updated_at

    def _budgets(self, done: int) -> Sequence[int] | int:
        num = self.updates.survivors_at(done, self._layout.num_prunable, self._first)
        if self.updates.scope == "global":
            return num
        counts = [int(np.count_nonzero(self.mask[layer.span])) for layer in self._layout.layers]
        return layer_budgets(self._layout, counts, num, self.updates.scope)

    def _tensors(self, mask: np.ndarray) -> list[Tensor]:
        return mask_tensors(self._layout, mask, device=self._weights[0].device, like=self._weights)
