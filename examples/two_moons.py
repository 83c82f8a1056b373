"""A model and data of your own: two moons, a small network, 95 % of its weights pruned."""

from sklearn.datasets import make_moons
from torch import nn

from swamp_ray import SwampTrainer


def moons(noise: float = 0.15) -> dict:
    """The data: two splits of (inputs, labels); validation is taken from the first."""
    parts = {}
    for seed, split in enumerate(("train", "test")):
        inputs, labels = make_moons(2000, noise=noise, random_state=seed)
        parts[split] = (inputs.astype("float32"), labels)
    return {**parts, "num_classes": 2}


def network(width: int = 64) -> nn.Module:
    """The model: any torch.nn.Module."""
    return nn.Sequential(nn.Linear(2, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 2))


if __name__ == "__main__":
    result = SwampTrainer({
        "name": "two-moons",
        "data": {"name": "two_moons:moons"},
        "model": {"name": "two_moons:network", "options": {"width": 64}},
        "training": {"batch_size": 50, "lr": 0.1},
        "dense": {"length": "1 epoch"},
        "round": {"length": "8 epochs"},
        "particles": {"count": 2},
        "pruning": {"target": 0.95, "rate": 0.5},
    }).fit()
    print(result.summary[["sparsity", "survivors", "average/test/accuracy"]])
    model = result.ticket(sparsity=0.95).load_into(network())
    print(model)
