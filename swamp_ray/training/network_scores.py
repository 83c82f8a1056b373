"""Scores of a whole network before it is trained: the largest survive.

A score of this form sees the network, the task and training batches: ``score(model, task, batches, mask)``. It returns
a mapping with the score of every prunable weight, a tensor of the weight's shape for each name in ``mask``. Built-in
scores and those of the user's own are called in the same way.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.modules.batchnorm import _NormBase

from swamp_ray.data.pairs import built_in_pair
from swamp_ray.errors import UserError, nearest
from swamp_ray.sparsity.masks import Layout, clean_name
from swamp_ray.training.tasks import Batch, Task
from swamp_ray.user_code.importing import is_import_path, load_object, own_traceback

SELF_NORMALISING = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
"""Modules that always divide by what they are given: behind them the size of a weight does not show."""
WHERE = "pruning.score"


class ScoreBatches(Protocol):
    """Training batches on the device, as training sees them. Every pass gives the same ones, in new tensors."""

    def __len__(self) -> int:
        """How many there are."""
        ...

    def __iter__(self) -> Iterator[Batch]:
        """One pass."""
        ...


NetworkScore = Callable[[nn.Module, Task, ScoreBatches, Mapping[str, Tensor]], Mapping[str, Tensor]]
"""``score(model, task, batches, mask) -> scores``: see :func:`checked_scores` for what it must return.

Pruned weights of the model are 0; ``mask`` has a boolean tensor for each prunable weight, by the parameter's name.
"""


def magnitude(model: nn.Module, task: Task, batches: ScoreBatches, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``|w|`` (Han et al., 2015), of the weights before training."""
    return {name: weight.detach().abs() for name, weight in _weights(model, mask).items()}


def snip(model: nn.Module, task: Task, batches: ScoreBatches, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``|g w|``, with g the gradient of the mean training loss (Lee et al., 2019, "SNIP").

    That is how strongly the loss depends on a factor of the weight, at 1. The paper's division by the sum of all scores
    changes no order, and is left out.
    """
    weights = _weights(model, mask)
    gradients = _mean_gradients(model, task, batches, weights)
    return {name: (gradients[name] * weight.detach()).abs() for name, weight in weights.items()}


def grasp(
    model: nn.Module, task: Task, batches: ScoreBatches, mask: Mapping[str, Tensor], temperature: float = 1.0
) -> dict[str, Tensor]:
    """``w (H g)``, with g and H gradient and Hessian of the mean training loss (Wang et al., 2020, "GraSP").

    Removing a weight changes the squared norm of the gradient by ``2 (-w) (H g)`` to first order. The paper prunes the
    weights of the largest ``-w (H g)``, whose removal reduces the norm the least or raises it; so the largest
    ``w (H g)`` survive. Both are over the prunable weights. The product comes from differentiating the scalar product
    of the gradient and g held constant, batch by batch.

    The paper's authors divide the logits by 200 in their own code. It matters: at 1 the curvature of the softmax
    outweighs that of the network, and far worse masks come out.

    Args:
        model, task, batches, mask: As of every score.
        temperature: The outputs are divided by it.
    """
    weights = _weights(model, mask)
    cooled = model if temperature == 1.0 else _Cooled(model, temperature)
    products = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    # Fused attention has no second derivative; its plain form has.
    with sdpa_kernel(SDPBackend.MATH):
        gradients = _mean_gradients(cooled, task, batches, weights)
        for batch in batches:
            loss = task.training_step(cooled, batch)[0]
            for name, part in _hessian_product(loss, weights, gradients).items():
                products[name] += part / len(batches)
    return {name: weight.detach() * products[name] for name, weight in weights.items()}


class _Cooled(nn.Module):
    """A network whose outputs are divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float) -> None:
        super().__init__()
        self._model = model
        self._temperature = temperature

    def forward(self, *inputs: Any) -> Tensor:
        """The outputs, divided."""
        return self._model(*inputs) / self._temperature


def synflow(model: nn.Module, task: Task, batches: ScoreBatches, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``(dR/d|w|) |w|`` with R the sum of the outputs for an input of ones (Tanaka et al., 2020, "SynFlow").

    All parameters are replaced by their absolute values, in float64, with normalisation in evaluation mode, so that
    every path adds to R what the product of its weights says. No sample enters: of a batch only the shape is used.

    Raises:
        UserError: The network does not read one tensor of floats, or does not give one; it normalises by its input; or
            its scores overflow even float64, or are all 0.
    """
    _refuse_self_normalising(model)
    inputs = _ones(next(iter(batches)))
    parameters = {name: parameter.detach().double().abs().requires_grad_() for name, parameter in
                  model.named_parameters()}
    buffers = {name: buffer.double() if buffer.is_floating_point() else buffer
               for name, buffer in model.named_buffers()}
    weights = {clean_name(name): parameter for name, parameter in parameters.items() if clean_name(name) in mask}
    with _evaluating(model):
        outputs = functional_call(model, {**parameters, **buffers}, (inputs,))
    if not isinstance(outputs, Tensor) or not outputs.is_floating_point():
        raise UserError("synflow needs a network that gives one tensor of floats", got=type(outputs).__name__,
                        where=WHERE, do="Take snip, grasp, or a score of your own.")
    gradients = _gradients(outputs.sum(), weights)
    scores = {name: (gradients[name] * weights[name].detach()).abs() for name in mask}
    _refuse_odd_flow(scores)
    return scores


def random_network_score(seed: int) -> NetworkScore:
    """Scores drawn uniformly from [0, 1), layer after layer, from one seeded generator on the CPU."""

    def score(model: nn.Module, task: Task, batches: ScoreBatches, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        return {name: torch.rand(part.shape, generator=generator) for name, part in mask.items()}

    return score


NETWORK_SCORES: dict[str, NetworkScore] = {"magnitude": magnitude, "snip": snip, "grasp": grasp, "synflow": synflow}
ONLY_BEFORE = ("snip", "grasp", "synflow")
"""Scores that exist before training only."""
DEFAULT_STEPS = {"synflow": 100}
"""Steps of a score's schedule where the config does not say: SynFlow's are the paper's, others are taken at once."""
DEFAULT_BATCHES = 10
GRASP_TEMPERATURE = 200.0
"""As the authors' own code has it, for classification."""


def make_network_score(name: str, *, seed: int, temperature: float = 1.0) -> NetworkScore:
    """A score by name (magnitude, random, snip, grasp, synflow) or import path.

    Args:
        name: Its name, or ``package.module:function``.
        seed: Seed of random scores.
        temperature: Of grasp.

    Raises:
        UserError: There is no such score, or it cannot be imported.
    """
    if name == "random":
        return random_network_score(seed)
    if name == "grasp":
        return functools.partial(grasp, temperature=temperature)
    if name in NETWORK_SCORES:
        return NETWORK_SCORES[name]
    known = [*NETWORK_SCORES, "random"]
    if name == "movement":
        raise UserError("movement says how far training moved a weight, and there is none before pruning", got=name,
                        where=WHERE, do=f"With pruning.when: before take one of {', '.join(known)}.")
    if not is_import_path(name):
        raise UserError("there is no such score before training", got=name, where=WHERE,
                        do=f"{nearest(name, known)} Known: {', '.join(known)}; or package.module:function.".lstrip())
    function = load_object(name, WHERE)
    if not callable(function):
        raise UserError("a score must be a function", got=type(function).__name__, where=WHERE)
    return _users_score(cast(NetworkScore, function))


def _users_score(function: NetworkScore) -> NetworkScore:
    """A function of the user's, whose errors are told as such."""

    def score(model: nn.Module, task: Task, batches: ScoreBatches, mask: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        try:
            return function(model, task, batches, mask)
        except (MemoryError, torch.OutOfMemoryError):
            raise  # of the machine
        except Exception as error:  # whatever a function of the user's raises
            raise UserError(
                f"the score failed: {type(error).__name__}: {error}".splitlines()[0], where=WHERE,
                do="With pruning.when: before it is called as score(model, task, batches, mask). Its own error:\n"
                   f"{own_traceback(error)}") from error

    return score


def checked_scores(found: Any, layout: Layout, mask: np.ndarray) -> np.ndarray:
    """The scores of the surviving weights, in the layout's order: float64 if some are, else float32.

    Args:
        found: What a score has returned: a mapping with a tensor of the weight's shape for each prunable parameter.
        layout: The layers.
        mask: The present mask, bool ``[P]``.

    Raises:
        UserError: It is no such mapping, a name is missing or unknown, a shape is another one, or a score is NaN.
    """
    if not isinstance(found, Mapping):
        raise UserError("a score must return a mapping of parameter names to tensors", got=type(found).__name__,
                        where=WHERE, do="Return {name: scores for name in mask}.")
    names = [layer.name for layer in layout.layers]
    missing = [name for name in names if name not in found]
    unknown = [str(name) for name in found if name not in names]
    if missing or unknown:
        got = f"none for {missing[0]!r}" if missing else f"scores for {unknown[0]!r}, which is not prunable"
        raise UserError("a score must return one tensor for each prunable weight", got=got, where=WHERE,
                        do="Return {name: scores for name in mask}.")
    parts = []
    for layer in layout.layers:
        scores = found[layer.name]
        if not isinstance(scores, Tensor) or tuple(scores.shape) != layer.shape:
            shape = tuple(scores.shape) if isinstance(scores, Tensor) else type(scores).__name__
            raise UserError(f"the score of {layer.name} must be a tensor of shape {layer.shape}", got=str(shape),
                            where=WHERE)
        values = scores.detach().cpu()
        values = values if values.dtype == torch.float64 else values.float()
        kept = values.reshape(-1).numpy()[mask[layer.span]]
        if np.isnan(kept).any():
            raise UserError(f"the score is NaN in {layer.name}", where=WHERE)
        parts.append(kept)
    return np.concatenate(parts)


def _weights(model: nn.Module, mask: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The prunable parameters, in the mask's order."""
    parameters = {clean_name(name): parameter for name, parameter in model.named_parameters()}
    return {name: parameters[name] for name in mask}


def _gradients(scalar: Tensor, weights: Mapping[str, Tensor], **options: Any) -> dict[str, Tensor]:
    """The gradients of a scalar; zeros of a weight that it does not depend on."""
    if not scalar.requires_grad:
        return {name: torch.zeros_like(weight) for name, weight in weights.items()}
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    found: Any = torch.autograd.grad(scalar, list(trained.values()), allow_unused=True, **options)
    gradients = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for name, gradient in zip(trained, found, strict=True):
        if gradient is not None:
            gradients[name] = gradient
    return gradients


def _mean_gradients(
    model: nn.Module, task: Task, batches: ScoreBatches, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The gradient of the mean training loss of all batches, which are of one size."""
    means = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    for batch in batches:
        loss = task.training_step(model, batch)[0]
        for name, gradient in _gradients(loss, weights).items():
            means[name] += gradient / len(batches)
    return means


def _hessian_product(
    loss: Tensor, weights: Mapping[str, Tensor], vectors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The Hessian of the loss times a vector, by double backward.

    Raises:
        UserError: Some operation of the network cannot be differentiated twice.
    """
    try:
        gradients = _gradients(loss, weights, create_graph=True)
        products = [(gradients[name] * vectors[name]).sum() for name in weights]
        return _gradients(torch.stack(products).sum(), weights)
    except (RuntimeError, NotImplementedError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"grasp needs a network that can be differentiated twice: {error}".splitlines()[0], where=WHERE,
                        do="Take snip, synflow, or a score of your own.") from error


def _refuse_self_normalising(model: nn.Module) -> None:
    for name, module in model.named_modules():
        keeps_none = isinstance(module, _NormBase) and not module.track_running_stats
        if keeps_none or isinstance(module, SELF_NORMALISING):
            raise UserError("synflow needs a network that scales with its weights, and normalisation by the sample at "
                            "hand does not", got=f"{type(module).__name__} at {name}", where=WHERE,
                            do="Take snip, grasp, or a score of your own.")


def _ones(batch: Batch) -> Tensor:
    """An input of ones, of one sample, in float64."""
    inputs: Any = batch
    if not isinstance(batch, Tensor):
        try:
            inputs, _ = built_in_pair(batch, WHERE)
        except UserError as error:
            raise UserError("synflow needs samples that are pairs of inputs and labels: it replaces the inputs by ones",
                            got=error.got, where=WHERE, do="Take snip, grasp, or a score of your own.") from error
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
        got = f"{str(inputs.dtype).removeprefix('torch.')}" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise UserError("synflow needs a network that reads one tensor of floats: its input is ones", got=got,
                        where=WHERE, do="Take snip, grasp, or a score of your own.")
    return torch.ones_like(inputs[:1], dtype=torch.float64)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode for a block."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def _refuse_odd_flow(scores: Mapping[str, Tensor]) -> None:
    for name, part in scores.items():
        if not bool(part.isfinite().all()):
            raise UserError(f"synflow's scores overflow float64 in {name}", where=WHERE,
                            do="The product of all layers is too large: use a network with normalisation or a smaller "
                               "initialisation, or take snip or grasp.")
    if not any(bool((part > 0).any()) for part in scores.values()):
        raise UserError("synflow's scores are all 0: no path of weights leads from the inputs to the outputs",
                        where=WHERE, do="Check the network's initial weights, lower pruning.target, or take another "
                                        "score.")
