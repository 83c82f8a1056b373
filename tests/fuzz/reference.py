"""Iterative magnitude pruning of a fuzzed network in plain torch, as the method's description has it.

Every step sees the whole training set, so that no order of batches matters, and all particles of a round are equal.
"""

from __future__ import annotations

import copy
import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.fuzz import fuzzed

DENSE_STEPS, ROUND_STEPS, RATE, ROUNDS = 4, 12, 0.4, 2
LR = {"sgd": 0.2, "adamw": 0.02}
DECAY, MOMENTUM = 1e-3, 0.9


def accuracies(optimizer: str, layout: str, buffer: str, norm: str, freezing: str, form: str) -> list[float]:
    """Test accuracy of the network of each round."""
    model = fuzzed.network(layout, buffer, norm, freezing)
    train_x, train_y = tensors(*fuzzed.split(fuzzed.NUM_TRAIN, 1), form)
    test_x, test_y = tensors(*fuzzed.split(fuzzed.NUM_TEST, 3), form)
    weights = prunable(model)
    total = sum(weight.numel() for weight in weights)
    mask = [torch.ones_like(weight, dtype=torch.bool) for weight in weights]
    trained(model, mask, optimizer, DENSE_STEPS, train_x, train_y)
    rewind = copy.deepcopy(model.state_dict())
    found = []
    for index in range(ROUNDS + 1):
        restore(model, rewind, mask)
        trained(model, mask, optimizer, ROUND_STEPS, train_x, train_y)
        found.append(evaluated(model, train_x, test_x, test_y))
        kept = math.floor(total * (1 - RATE) ** (index + 1) + 0.5)
        mask = largest(prunable(model), mask, kept)
    return found


def tensors(inputs: np.ndarray, labels: np.ndarray, form: str) -> tuple[Tensor, Tensor]:
    """What the network sees."""
    x = torch.from_numpy(inputs.copy())
    return (x.bfloat16().float() if form == "bfloat16" else x), torch.from_numpy(labels.astype(np.int64))


def prunable(model: nn.Module) -> list[Tensor]:
    """Weights of linear layers, each once."""
    found: dict[int, Tensor] = {}
    for module in model.modules():
        if isinstance(module, nn.Linear):
            found.setdefault(id(module.weight), module.weight)
    return list(found.values())


def restore(model: nn.Module, state: dict[str, Tensor], mask: list[Tensor]) -> None:
    """Rewind; statistics that training may change start anew."""
    model.load_state_dict(state)
    if isinstance(model.norm, nn.BatchNorm1d) and model.norm_kind != "kept_in_eval":
        model.norm.reset_running_stats()
    with torch.no_grad():
        for weight, kept in zip(prunable(model), mask, strict=True):
            weight.mul_(kept)


def trained(model: nn.Module, mask: list[Tensor], optimizer: str, steps: int, x: Tensor, y: Tensor) -> None:
    """Full-batch steps at a constant rate; pruned weights have no gradient."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optimizer == "sgd":
        chosen: torch.optim.Optimizer = torch.optim.SGD(parameters, LR["sgd"], MOMENTUM, weight_decay=DECAY,
                                                        foreach=False, fused=False)
    else:
        chosen = torch.optim.AdamW(parameters, LR["adamw"], weight_decay=DECAY, foreach=False, fused=False)
    weights = prunable(model)
    for _ in range(steps):
        model.train()
        chosen.zero_grad()
        F.cross_entropy(model(x), y).backward()
        for weight, kept in zip(weights, mask, strict=True):
            if weight.grad is not None:
                weight.grad.mul_(kept)
        chosen.step()


def evaluated(model: nn.Module, train_x: Tensor, x: Tensor, y: Tensor) -> float:
    """Test accuracy, with statistics of the training set where training estimates any."""
    norm = model.norm
    if isinstance(norm, nn.BatchNorm1d) and norm.track_running_stats and model.norm_kind != "kept_in_eval":
        momentum = norm.momentum
        norm.reset_running_stats()
        norm.momentum = None
        model.train()
        with torch.no_grad():
            model(train_x)
        norm.momentum = momentum
    model.eval()
    with torch.no_grad():
        return float((model(x).argmax(dim=1) == y).float().mean())


def largest(weights: list[Tensor], mask: list[Tensor], kept: int) -> list[Tensor]:
    """The mask that keeps so many of the largest weights over all layers."""
    scores = torch.cat([weight.detach().abs().double().masked_fill(~one, -1.0).flatten()
                        for weight, one in zip(weights, mask, strict=True)])
    chosen = torch.zeros_like(scores, dtype=torch.bool)
    chosen[torch.sort(scores, descending=True, stable=True).indices[:kept]] = True
    parts = chosen.split([weight.numel() for weight in weights])
    return [part.view(weight.shape) for part, weight in zip(parts, weights, strict=True)]
