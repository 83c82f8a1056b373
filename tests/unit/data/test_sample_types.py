"""Element types and layouts of a user's samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.errors import UserError

SAMPLES = torch.tensor([[1.5, -2.0], [0.25, 4.0], [0.0, 1.0], [3.0, 2.0]])


def written(folder: Path, monkeypatch: pytest.MonkeyPatch, expression: str) -> DataConfig:
    """A data section whose function makes its samples with an expression of ``x``."""
    name = "their_" + str(abs(hash(expression)))
    (folder / f"{name}.py").write_text(
        f"import torch\nx = torch.tensor({SAMPLES.tolist()})\n"
        "def made():\n"
        f"    return {{key: ({expression}, torch.tensor([0, 1, 0, 1])) for key in ('train', 'validation', 'test')}}\n")
    monkeypatch.syspath_prepend(folder)
    return DataConfig.model_validate({"name": f"{name}:made"})


@pytest.mark.parametrize("convert", [
    "bfloat16()", "half()", "double()", "to(torch.float8_e5m2)", "t().contiguous().t()"])
def test_floating_point_of_any_width_is_read_as_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, convert: str
) -> None:
    data = load_data(written(tmp_path, monkeypatch, f"x.{convert}"))
    found = data.test.arrays[0]  # pyright: ignore[reportAttributeAccessIssue]
    assert found.dtype == np.float32
    assert np.array_equal(found, SAMPLES.numpy())


@pytest.mark.parametrize("expression", [
    "x.to_sparse()", "torch.quantize_per_tensor(x, 0.1, 0, torch.qint8)", "x.to('meta')"])
@pytest.mark.filterwarnings("ignore:.*(quantize_per_tensor|torch.ao.quantization).*")
def test_other_layouts_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expression: str) -> None:
    with pytest.raises(UserError, match="must be dense tensors"):
        load_data(written(tmp_path, monkeypatch, expression))
