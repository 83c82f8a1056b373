"""Curvature against quadratic losses, whose Hessian is known, and against differences of gradients."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from swamp_ray.analysis.curvature import Hessian, largest_eigenvalue, scaled_trace, trace


def symmetric(size: int, seed: int = 0) -> np.ndarray:
    draw = np.random.default_rng(seed).standard_normal((size, size))
    return draw + draw.T


def test_the_trace_lies_within_its_standard_errors() -> None:
    matrix = symmetric(40)
    found = trace(lambda v: matrix @ v, 40, num=400, seed=1)
    assert abs(found.mean - np.trace(matrix)) < 4 * found.standard_error
    exact = np.sqrt(2 * ((matrix**2).sum() - (np.diag(matrix) ** 2).sum()) / 400)  # variance of Hutchinson's estimator
    assert found.standard_error == pytest.approx(exact, rel=0.2)


def test_of_a_diagonal_matrix_it_is_exact() -> None:
    diagonal, weights = np.array([3.0, -1.0, 0.5]), np.array([2.0, 1.0, -4.0])
    found = trace(lambda v: diagonal * v, 3, num=3, seed=0)
    assert (found.mean, found.standard_error, found.num) == (pytest.approx(2.5), pytest.approx(0.0), 3)
    assert scaled_trace(lambda v: diagonal * v, weights, num=2, seed=0).mean == pytest.approx(12 - 1 + 8)
    with pytest.raises(ValueError, match="at least two"):
        trace(lambda v: v, 3, num=1, seed=0)


@pytest.mark.parametrize("seed", range(4))
def test_the_largest_eigenvalue_is_the_largest_not_the_largest_in_size(seed: int) -> None:
    matrix = symmetric(30, seed) - 5 * np.eye(30)
    found = largest_eigenvalue(lambda v: matrix @ v, 30, seed=seed, tolerance=1e-8)
    assert found.value == pytest.approx(np.linalg.eigvalsh(matrix)[-1], rel=1e-6)
    early = largest_eigenvalue(lambda v: matrix @ v, 30, seed=seed, tolerance=1e-2)
    assert early.num_steps < found.num_steps
    assert min(abs(np.linalg.eigvalsh(matrix) - early.value)) <= early.residual * (1 + 1e-9)


def test_a_multiple_of_the_identity_takes_one_step() -> None:
    found = largest_eigenvalue(lambda v: 2.5 * v, 10, seed=0)
    assert (found.value, found.num_steps) == (pytest.approx(2.5), 1)


def regression(num: int = 60) -> tuple[nn.Linear, list[tuple[Tensor, Tensor]], np.ndarray]:
    """A linear model without bias, uneven batches, and all inputs."""
    draw = torch.Generator().manual_seed(0)
    inputs, targets = torch.randn(num, 6, generator=draw), torch.randn(num, 1, generator=draw)
    batches = [(inputs[:50], targets[:50]), (inputs[50:], targets[50:])]
    return nn.Linear(6, 1, bias=False), batches, inputs.numpy().astype(np.float64)


def squares(model: nn.Module) -> object:
    return lambda batch: (F.mse_loss(model(batch[0]), batch[1]), len(batch[0]))


def test_of_a_linear_model_it_is_that_of_its_inputs_over_what_is_kept() -> None:
    model, batches, inputs = regression()
    kept = torch.tensor([[True, False, True, True, False, True]])
    hessian = Hessian([model.weight], [kept], batches, squares(model))  # type: ignore[arg-type]
    exact = (2 * inputs.T @ inputs / len(inputs))[np.ix_(kept[0].numpy(), kept[0].numpy())]
    assert hessian.size == 4
    found = np.stack([hessian(row) for row in np.eye(4)])
    np.testing.assert_allclose(found, exact, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hessian.weights, model.weight.detach()[kept].double().numpy())
    eigen = largest_eigenvalue(hessian, 4, seed=0, tolerance=1e-7)
    assert eigen.value == pytest.approx(np.linalg.eigvalsh(exact)[-1], rel=1e-5)


def test_of_a_network_it_is_the_difference_of_gradients() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.BatchNorm1d(5), nn.Linear(5, 3)).double().eval()
    unused = nn.Parameter(torch.ones(2, dtype=torch.float64))
    batches = [(torch.randn(7, 4).double(), torch.randint(0, 3, (7,)))]
    parameters = [*model.parameters(), unused]

    def loss(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, int]:
        return F.cross_entropy(model(batch[0]), batch[1]), len(batch[0])

    hessian = Hessian(parameters, [None] * len(parameters), batches, loss)

    def gradient() -> np.ndarray:
        found = torch.autograd.grad(loss(batches[0])[0], parameters[:-1])
        return np.concatenate([one.numpy().ravel() for one in found] + [np.zeros(2)])

    direction = np.random.default_rng(1).standard_normal(hessian.size)
    step = 1e-5
    sides = []
    for sign in (1, -2):  # forth, and back beyond the start
        first = 0
        with torch.no_grad():
            for parameter in parameters:
                last = first + parameter.numel()
                parameter += sign * step * torch.from_numpy(direction[first:last]).view_as(parameter)
                first = last
        sides.append(gradient())
    with torch.no_grad():
        first = 0
        for parameter in parameters:
            last = first + parameter.numel()
            parameter += step * torch.from_numpy(direction[first:last]).view_as(parameter)
            first = last
    np.testing.assert_allclose(hessian(direction), (sides[0] - sides[1]) / (2 * step), rtol=1e-5, atol=1e-8)
