"""The study's own data and networks."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import find_prunable

pytestmark = pytest.mark.nightly

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "benchmarks"))
study_data: Any = importlib.import_module("_study_data")
IDS = np.array([[5, 6, 7, 0], [8, 0, 0, 0]], dtype=np.int32)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data in the form of the study's, made up."""
    (tmp_path / "text").mkdir()
    labels = np.array([0, 2])
    np.savez(tmp_path / "text" / "few-ids.npz", train_ids=IDS, train_labels=labels, test_ids=IDS, test_labels=labels)
    images = np.arange(2 * 28 * 28).reshape(2, 28, 28).astype(np.uint8)
    for split in ("train", "test"):
        np.savez(tmp_path / f"mnist-{split}.npz", images=images, labels=np.array([3, 9], dtype=np.uint8))
    monkeypatch.setenv("SWAMP_DATA", str(tmp_path))
    return tmp_path


def test_sentences_are_cut_or_padded_to_one_length(folder: Path) -> None:
    short = study_data.sentences("few", max_tokens=2)
    assert short["train"][0].tolist() == [[5, 6], [8, 0]]
    assert short["num_classes"] == 3
    assert "validation" not in short
    assert study_data.sentences("few", max_tokens=6)["test"][0].tolist() == [[5, 6, 7, 0, 0, 0], [8, 0, 0, 0, 0, 0]]
    with pytest.raises(UserError, match="between 1 and 64"):
        study_data.sentences("few", max_tokens=65)
    with pytest.raises(UserError, match="not there"):
        study_data.sentences("none")


def test_mnist_is_images_of_one_channel(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, labels = study_data.mnist()["train"]
    assert images.shape == (2, 28, 28, 1)
    assert images.dtype == np.uint8
    assert labels.tolist() == [3, 9]
    monkeypatch.delenv("SWAMP_DATA")
    with pytest.raises(UserError, match="SWAMP_DATA"):
        study_data.mnist()


def test_padding_changes_nothing_in_the_transformer() -> None:
    torch.manual_seed(0)
    network = study_data.SmallTransformer(3, vocabulary=20, width=8, heads=2).eval()
    ids = torch.tensor([[5, 6, 7], [8, 9, 1]])
    padded = torch.nn.functional.pad(ids, (0, 4))
    with torch.no_grad():
        torch.testing.assert_close(network(padded), network(ids))
        assert network(ids.flip(1)).sub(network(ids)).abs().max() > 1e-4, "the order of tokens matters"


def test_embeddings_of_the_transformer_are_not_prunable() -> None:
    layout = find_prunable(study_data.SmallTransformer(3, vocabulary=20), ("*",), ())
    assert layout.num_prunable == 2 * 12 * 64**2 + 3 * 64
    assert not any("tokens" in layer.name or "positions" in layer.name for layer in layout.layers)
