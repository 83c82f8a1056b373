"""How much of a training step would leaving dead channels out save?

Prunes LeNet-300-100, ResNet-20 and VGG-16 on CIFAR-10 with this project (IMP, one particle, short rounds of a few
thousand images) to 95, 98 and 99 %, counts the channels that nobody reads or nothing feeds, and the share of a step's
multiply-adds that is theirs; beside it for random masks, of the same density over all or in every layer. Then takes
training steps of ResNet-20 and VGG-16 at 99 % as they are and really built narrower, in turn.

    python benchmarks/dead_channels.py

The networks are kept in --storage, where there is one, and not trained again.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from _dead_channels import LayerChannels, channels_of, saved_share
from _measuring import spread, write
from _narrowed import narrowed
from torch import Tensor, nn

from swamp_ray.api import Result, SwampTrainer
from swamp_ray.config.reading import build_config, with_values
from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import TrainingConfig
from swamp_ray.storage.tickets import Ticket
from swamp_ray.training.models import build_model
from swamp_ray.training.networks import CifarResNet, CifarVGG
from swamp_ray.training.optimizers import build_optimizer

CONFIG: dict[str, Any] = {
    "data": {"name": "cifar10", "limit_test": 200},
    "training": {"lr": 0.05, "schedule": {"warmup": "20 steps"}},
    "dense": {"length": 1, "warmup": "20 steps"},
    "averaging": {"within": "none"},
    "particles": {"count": 1},
    # Rounds at sparsities of 0, 63.2, 86.5, 95.0, 98.2 and 99 %.
    "pruning": {"target": 0.99, "rate": 0.632},
    "execution": {"executor": "inline", "device": "cpu", "precision": "bf16"},
}
NETWORKS: dict[str, dict[str, Any]] = {
    "lenet_300_100": {"data.limit_train": 10000, "round.length": 6, "training.batch_size": 64},
    "resnet20": {"data.limit_train": 3000, "round.length": 3, "training.batch_size": 64},
    "vgg16_bn": {"data.limit_train": 1200, "round.length": 2, "training.batch_size": 32},
}
FROM = 0.94
"""Sparser rounds are looked at."""
SHAPE = (3, 32, 32)


def config_of(name: str, storage: str) -> SwampConfig:
    """The run that prunes a network."""
    return with_values(build_config(CONFIG), {"name": name, "model.name": name, "storage": storage, **NETWORKS[name]})


def network(config: SwampConfig) -> nn.Module:
    """The network of a run, at its initialisation."""
    return build_model(config.model, num_classes=10, input_shape=SHAPE, seed=0)


def rows_of(config: SwampConfig, result: Result, num_controls: int) -> list[dict[str, Any]]:
    """A row a sparse round."""
    model, rows = network(config), []
    for record in result.rounds:
        if record.sparsity < FROM:
            continue
        masks = result.ticket(record.sparsity).masks
        found = channels_of(model, masks, torch.zeros(1, *SHAPE))
        density = 1 - record.sparsity
        even = [saved(model, {name: random_mask(mask.shape, density, seed) for name, mask in masks.items()})
                for seed in range(num_controls)]
        alike = [saved(model, {name: random_mask(mask.shape, float(mask.float().mean()), seed)
                               for name, mask in masks.items()}) for seed in range(num_controls)]
        rows.append({
            "model": config.model.name, "sparsity": round(record.sparsity, 4),
            "test_accuracy": round(record.average["test"]["accuracy"], 4),
            "saved": {"unread": round(saved_share(found), 4),
                      "unread_and_unfed": round(saved_share(found, unfed=True), 4)},
            "saved_random": spread([one[0] for one in even]),
            "saved_random_unfed_too": spread([one[1] for one in even]),
            "saved_random_layerwise": spread([one[0] for one in alike]),
            "saved_random_layerwise_unfed_too": spread([one[1] for one in alike]),
            "layers": {name: counts(layer) for name, layer in found.items()}})
    return rows


def counts(layer: LayerChannels) -> dict[str, int]:
    """Output channels of a layer."""
    return {"channels": layer.read.size, "unread": int((~layer.read).sum()), "unfed": int((~layer.fed).sum()),
            "either": int((~(layer.read & layer.fed)).sum())}


def random_mask(shape: torch.Size, density: float, seed: int) -> Tensor:
    """A mask that keeps each weight with the same probability."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < density


def saved(model: nn.Module, masks: Mapping[str, Tensor]) -> tuple[float, float]:
    """Saved shares: unread channels, and unfed ones too."""
    found = channels_of(model, masks, torch.zeros(1, *SHAPE))
    return round(saved_share(found), 4), round(saved_share(found, unfed=True), 4)


def time_steps(config: SwampConfig, ticket: Ticket, repeats: int) -> dict[str, Any]:
    """Processor seconds of training steps of the pruned network as it is, and narrower, taken in turn in float32."""
    wide = ticket.load_into(network(config))
    assert isinstance(wide, CifarResNet | CifarVGG)
    found = channels_of(wide, ticket.masks, torch.zeros(1, *SHAPE))
    narrow = narrowed(wide, {name: (layer.inputs_read, layer.read) for name, layer in found.items()})
    steps = {"wide": step_of(wide, config.training), "narrow": step_of(narrow, config.training)}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for repeat in range(repeats + 1):
        for name, step in steps.items():
            began = time.process_time()  # of one thread: others on the machine do not count
            step()
            if repeat:  # the first ones make buffers
                seconds[name].append(time.process_time() - began)
    ratios = [b / a for a, b in zip(seconds["wide"], seconds["narrow"], strict=True)]
    return {"model": config.model.name, "batch_size": config.training.batch_size, "threads": torch.get_num_threads(),
            "multiply_adds_saved": round(saved_share(found), 4), "narrow_over_wide": spread(ratios),
            "processor_seconds": {name: spread(values) for name, values in seconds.items()}}


def step_of(model: nn.Module, training: TrainingConfig) -> Callable[[], None]:
    """A training step: forward, backward, optimiser."""
    model = model.train().to(memory_format=torch.channels_last)
    optimizer = build_optimizer(model, training, training.weight_decay, fused=True)
    images = torch.randn(training.batch_size, *SHAPE).contiguous(memory_format=torch.channels_last)
    labels = torch.arange(training.batch_size) % 10

    def step() -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def show(rows: list[dict[str, Any]], timings: list[dict[str, Any]]) -> None:
    """Print what was found."""
    print(f"{'model':<14} {'sparsity':>8} {'accuracy':>8} {'unread':>7} {'+ unfed':>7} {'random':>7} {'layerwise':>9}")
    for row in rows:
        print(f"{row['model']:<14} {row['sparsity']:>8.4f} {row['test_accuracy']:>8.3f} {row['saved']['unread']:>7.3f} "
              f"{row['saved']['unread_and_unfed']:>7.3f} {row['saved_random']['median']:>7.3f} "
              f"{row['saved_random_layerwise']['median']:>9.3f}")
    for one in timings:
        print(f"{one['model']}: a step takes {one['narrow_over_wide']['median']:.3f} times the time, with "
              f"{1 - one['multiply_adds_saved']:.3f} of the multiply-adds")


def main() -> None:
    """Prune, count, time and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--storage", help="keeps the pruned networks")
    parser.add_argument("--controls", type=int, default=5, help="random masks of each kind")
    parser.add_argument("--repeats", type=int, default=9, help="timed steps")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows, timings, trained = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.models:
            config = config_of(name, arguments.storage or folder)
            result = SwampTrainer(config, quiet=True).fit()
            trained[name] = {"images": NETWORKS[name]["data.limit_train"], "epochs": NETWORKS[name]["round.length"],
                             "dense_test_accuracy": result.rounds[0].average["test"]["accuracy"]}
            rows += rows_of(config, result, arguments.controls)
            if name != "lenet_300_100":
                timings.append(time_steps(config, result.ticket(), arguments.repeats))
    show(rows, timings)
    write("dead_channels", {
        "pruned_by": {"config": CONFIG, "networks": trained, "rounds": "each rewinds to the end of one epoch"},
        "saved": "share of a training step's multiply-adds", "rows": rows, "timings": timings})


if __name__ == "__main__":
    main()
