"""Optimisers, and one optimiser step under a mask."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from swamp_ray.config.sections import TrainingConfig
from swamp_ray.sparsity.masks import apply_mask_

_NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def build_optimizer(
    model: nn.Module, config: TrainingConfig, weight_decay: float, fused: bool
) -> torch.optim.Optimizer:
    """The optimiser of one training run; its learning rate is set at every step.

    Args:
        model: Its parameters that require gradients are trained.
        config: Optimiser and hyper-parameters; ``weight_decay`` there is replaced by the argument.
        weight_decay: Decay of weights, and of biases, normalisation and other vectors if
            ``config.decay_norm_and_bias``.
        fused: torch's fused implementation.
    """
    exempt = _norms_and_biases(model)
    other_decay = weight_decay if config.decay_norm_and_bias else 0.0
    decayed: list[Tensor] = []
    others: list[Tensor] = []
    for parameter in model.parameters():
        if parameter.requires_grad:
            (others if id(parameter) in exempt else decayed).append(parameter)
    if other_decay == weight_decay:  # one group is one call of the fused kernel
        decayed += others
        others = []
    groups = []
    if decayed:
        groups.append({"params": decayed, "weight_decay": weight_decay})
    if others:
        groups.append({"params": others, "weight_decay": other_decay})
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=config.nesterov, fused=fused)


def _norms_and_biases(model: nn.Module) -> set[int]:
    """Identities of all vectors, and of normalisation parameters and biases that have more dimensions."""
    found: set[int] = set()
    for module in model.modules():
        is_norm = isinstance(module, _NORMS)
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.ndim <= 1 or is_norm or "bias" in name:
                found.add(id(parameter))
    return found


class MaskedStep:
    """Gradient masking, clipping and the optimiser's step, in this order; the weights are masked once, at the start.

    Masking the gradient first keeps pruned weights out of the clipped norm and out of the optimiser's
    state; weight decay of a pruned weight is zero because the weight is. With no gradient, no momentum and no decay
    a step leaves it at zero, so that masking the weights after each step would change nothing.

    Args:
        optimizer: Holds the parameters.
        weights: The prunable tensors.
        masks: One 0/1 tensor a prunable tensor, or None where nothing is pruned.
        clip_norm: Largest Euclidean norm of the gradient over all parameters, or None.

    Attributes:
        parameters: All that the optimiser trains.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        weights: Sequence[Tensor],
        masks: Sequence[Tensor] | None,
        clip_norm: float | None,
    ) -> None:
        self.optimizer = optimizer
        self._weights = list(weights) if masks is not None else []
        self._masks = list(masks) if masks is not None else []
        apply_mask_(self._weights, self._masks)
        self._clip_norm = clip_norm
        self.parameters: list[Tensor] = []
        for group in optimizer.param_groups:
            self.parameters += group["params"]

    def __call__(self, lr: float) -> None:
        """Take one step at a learning rate with the parameters' gradients, and clear them."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.mask_gradients()
        if self._clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(self.parameters, self._clip_norm)
        self.optimizer.step()
        self.clear_gradients()

    def change_masks(self, masks: Sequence[Tensor], continuing: Sequence[Tensor]) -> None:
        """Hold other masks from now on.

        A weight that does not continue is set to 0, and so is what the optimiser remembers of it: a new weight starts
        like one of a fresh network, and nothing moves one that was dropped.

        Args:
            masks: One 0/1 tensor a prunable tensor.
            continuing: Likewise, 1 where a weight keeps its value.
        """
        self.hold(masks)
        apply_mask_(self._weights, continuing)
        for weight, part in zip(self._weights, continuing, strict=True):
            remembered = self.optimizer.state.get(weight, {})
            states = [value for value in remembered.values() if isinstance(value, Tensor)]
            states = [value for value in states if value.shape == weight.shape and value.is_floating_point()]
            apply_mask_(states, [part] * len(states))

    @torch.no_grad()
    def hold(self, masks: Sequence[Tensor]) -> None:
        """Hold other masks from now on, with weights that they fit already."""
        for own, mask in zip(self._masks, masks, strict=True):
            own.copy_(mask)

    def clear_gradients(self) -> None:
        """Remove the parameters' gradients."""
        # Like the optimiser's zero_grad, whose grouping by device and kind takes longer than a small network's step.
        for parameter in self.parameters:
            parameter.grad = None

    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to zero."""
        if not self._weights:
            return
        gradients: list[Tensor] = []
        masks: list[Tensor] = []
        for weight, mask in zip(self._weights, self._masks, strict=True):
            if weight.grad is not None:
                gradients.append(weight.grad)
                masks.append(mask)
        apply_mask_(gradients, masks)
