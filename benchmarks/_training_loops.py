"""One particle's loop in three forms: the product's, a minimal one tuned by hand, and the usual one."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import spread
from _training_cases import CASES, arithmetic_of, begun, data_of, start_of, synchronise
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.augmentation import Draws, ImagePipeline
from swamp_ray.data.samples import Data
from swamp_ray.sparsity.compact import load_compact_
from swamp_ray.sparsity.masks import find_prunable, mask_tensors, prunable_tensors
from swamp_ray.training.arithmetic import Arithmetic, applied
from swamp_ray.training.trainer import ParticleTrainer, initial_model

WARM_UP = {"cpu": 1, "cuda": 3}
USUAL_IMAGES = {"cpu": 1280, "cuda": 12800}
"""Of an epoch of the usual loop, which takes several times as long."""
Epoch = Callable[[], Any]


@dataclass
class Times:
    """Seconds of each repetition.

    Attributes:
        wall: As a user waits.
        own: Of the process on the processor; on CUDA the same as ``wall``. A loop of one thread takes as long where
            nobody else uses its core.
    """

    wall: list[float]
    own: list[float]


def measure(case: str, device: str, repeats: int) -> dict[str, Any]:
    """Images a second of all three, timed in turn, and the product's share of the other two."""
    config, data = CASES[case].config(device), data_of(case, device)
    arithmetic = arithmetic_of(config, data, device)
    batch = config.training.batch_size
    images = len(data.train) // batch * batch
    with applied(arithmetic):
        ours = begun(ParticleTrainer(config, data, arithmetic)).epoch
        loops: dict[str, Epoch] = {"ours": ours, "bare": Bare(config, data, arithmetic).epoch}
        if device == "cuda":
            loops["bare_graph"] = BareGraph(config, data, arithmetic).epoch
        times = in_turn(loops, device, repeats)
        usual = Usual(config, data, arithmetic)
        usual.epoch()
        slow = in_turn({"ours": ours, "usual": usual.epoch}, device, 3, warm_up=0)
    row: dict[str, Any] = {"batch": batch, "steps": images // batch, "data": config.data.name,
                           "precision": arithmetic.precision, "threads": arithmetic.threads}
    row |= {f"{name}_images_per_s": spread([images / one for one in found.own]) for name, found in times.items()}
    row["usual_images_per_s"] = spread([usual.images / one for one in slow["usual"].wall])
    for name in ("bare", "bare_graph"):
        if name in times:
            row[f"ours_over_{name}"] = share(times["ours"].own, times[name].own)
    row["ours_over_usual"] = share(slow["ours"].wall, slow["usual"].wall, images / usual.images)
    return row


def share(ours: list[float], theirs: list[float], scale: float = 1.0) -> dict[str, Any]:
    """The speed of one over that of the other, repetition by repetition, with quartiles of many; and at its best."""
    ratios = [scale * b / a for a, b in zip(ours, theirs, strict=True)]
    quartiles = statistics.quantiles(ratios, n=4) if len(ratios) > 3 else None
    return (spread(ratios) | ({"quartiles": [quartiles[0], quartiles[2]]} if quartiles else {})
            | {"of_the_fastest": scale * min(theirs) / min(ours)})


def in_turn(loops: dict[str, Epoch], device: str, repeats: int, warm_up: int | None = None) -> dict[str, Times]:
    """Time loops in turn, every other time in the opposite order; after epochs to warm up."""
    for _ in range(WARM_UP[device] if warm_up is None else warm_up):
        for epoch in loops.values():
            epoch()
    times = {name: Times([], []) for name in loops}
    own = time.process_time if device == "cpu" else time.perf_counter
    for repeat in range(repeats):
        for name in list(loops)[:: 1 if repeat % 2 == 0 else -1]:
            synchronise(device)
            began, own_began = time.perf_counter(), own()
            loops[name]()
            synchronise(device)
            times[name].own.append(own() - own_began)
            times[name].wall.append(time.perf_counter() - began)
    return times


class Bare:
    """A minimal loop tuned by hand: everything on the device, fused optimiser, mask on the gradients, no .item()."""

    def __init__(self, config: SwampConfig, data: Data, arithmetic: Arithmetic) -> None:
        self.device = torch.device(arithmetic.device)
        self.batch, self.seed = config.training.batch_size, 0
        self.bf16 = arithmetic.precision == "bf16"
        self.layout = torch.channels_last if arithmetic.channels_last else torch.contiguous_format
        self.model = masked_model(config, data).to(self.device, memory_format=self.layout)  # pyright: ignore[reportCallIssue]
        self.optimizer = self.new_optimizer(config)
        layout = find_prunable(self.model)
        self.weights = prunable_tensors(self.model, layout)
        self.masks = mask_tensors(layout, start_of(config, data)[1], device=self.device, like=self.weights)
        pixels, labels = data.train.arrays  # pyright: ignore[reportAttributeAccessIssue]
        self.images, self.labels = torch.tensor(pixels, device=self.device), torch.tensor(labels, device=self.device)
        assert data.train.images is not None
        self.pixels = ImagePipeline(data.train.images, self.device)
        if not self.pixels.random:
            self.images = self.pixels(self.images, None)
        self.steps = len(labels) // self.batch

    def new_optimizer(self, config: SwampConfig) -> torch.optim.Optimizer:
        """Momentum as in the config."""
        given = config.training
        return torch.optim.SGD(self.model.parameters(), lr=given.lr, momentum=given.momentum,
                               nesterov=given.nesterov, weight_decay=given.weight_decay, fused=True)

    def batches(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Of one epoch; on CUDA all of them are augmented at once, or as many as fit into 2 GiB."""
        self.seed += 1
        draws = Draws.of(len(self.labels), self.pixels.images, self.seed)
        assert draws is not None
        draws = draws.to(self.device)
        a_batch = self.batch * self.images[0].numel() * 4
        at_once = max(1, 2**31 // a_batch) if self.device.type == "cuda" else 1
        for first in range(0, self.steps, at_once):
            part = draws.part(slice(first * self.batch, min(first + at_once, self.steps) * self.batch))
            images, labels = self.images.index_select(0, part.order), self.labels.index_select(0, part.order)
            if self.pixels.random:
                images = self.pixels(images, part)
            images = images.permute(0, 3, 1, 2).contiguous(memory_format=self.layout)
            yield from zip(images.split(self.batch), labels.split(self.batch), strict=True)

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """One step; the loss."""
        with torch.autocast(self.device.type, dtype=torch.bfloat16) if self.bf16 else contextlib.nullcontext():
            loss = F.cross_entropy(self.model(images).float(), labels)
        loss.backward()
        torch._foreach_mul_([weight.grad for weight in self.weights], self.masks)  # pyright: ignore
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()

    def epoch(self) -> float:
        """Train through all data once; the mean loss."""
        self.model.train()
        return float(torch.stack([self.step(images, labels) for images, labels in self.batches()]).mean())


class BareGraph(Bare):
    """The same with the whole step, optimiser included, in one CUDA graph."""

    def __init__(self, config: SwampConfig, data: Data, arithmetic: Arithmetic) -> None:
        super().__init__(config, data, arithmetic)
        self.model.train()
        self.given = next(iter(self.batches()))
        self.given = self.given[0].clone(), self.given[1].clone()
        stream: Any = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                super().step(*self.given)
        torch.cuda.current_stream().wait_stream(stream)
        self.graph: Any = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = super().step(*self.given)

    def new_optimizer(self, config: SwampConfig) -> torch.optim.Optimizer:
        """With a rate that a replay reads from the device."""
        optimizer = super().new_optimizer(config)
        for group in optimizer.param_groups:
            group["lr"] = torch.tensor(config.training.lr, device=self.device)
        return optimizer

    def step(self, images: Tensor, labels: Tensor) -> Tensor:
        """Replay for another batch."""
        self.given[0].copy_(images)
        self.given[1].copy_(labels)
        self.graph.replay()
        return self.loss.clone()


class Usual:
    """As it is often written: a DataLoader with transforms image by image, plain SGD, loss.item() at every step."""

    def __init__(self, config: SwampConfig, data: Data, arithmetic: Arithmetic) -> None:
        self.device, self.bf16 = torch.device(arithmetic.device), arithmetic.precision == "bf16"
        self.model = masked_model(config, data).to(self.device)
        given = config.training
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=given.lr, momentum=given.momentum,
                                         weight_decay=given.weight_decay)
        layout = find_prunable(self.model)
        self.weights = prunable_tensors(self.model, layout)
        self.masks = mask_tensors(layout, start_of(config, data)[1], device=self.device)
        num = min(USUAL_IMAGES[arithmetic.device], len(data.train)) // given.batch_size * given.batch_size
        self.images = max(num, given.batch_size)
        self.loader = DataLoader(OneByOne(data, self.images), batch_size=given.batch_size, shuffle=True, drop_last=True,
                                 num_workers=2, pin_memory=self.device.type == "cuda", persistent_workers=True)

    def epoch(self) -> float:
        """Train through all data once; the summed loss."""
        self.model.train()
        total = 0.0
        for images, labels in self.loader:
            images, labels = images.to(self.device), labels.to(self.device)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                loss = F.cross_entropy(self.model(images), labels)
            loss.backward()
            for weight, mask in zip(self.weights, self.masks, strict=True):
                assert weight.grad is not None
                weight.grad.mul_(mask)
            self.optimizer.step()
            total += loss.item()
        return total


class OneByOne(Dataset[Any]):
    """Images through torchvision's transforms, one after the other."""

    def __init__(self, data: Data, num: int) -> None:
        self.images, self.labels = data.train.arrays  # pyright: ignore[reportAttributeAccessIssue]
        self.num = num
        pipeline = data.train.images
        assert pipeline is not None
        steps: list[Any] = [transforms.ToPILImage()]
        if pipeline.crop:
            steps.append(transforms.RandomCrop(self.images.shape[1], padding=pipeline.crop_padding))
        if pipeline.flip:
            steps.append(transforms.RandomHorizontalFlip())
        steps += [transforms.ToTensor(), transforms.Normalize(pipeline.mean, pipeline.std)]
        self.transform = transforms.Compose(steps)

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def masked_model(config: SwampConfig, data: Data) -> nn.Module:
    """The case's network at its ticket."""
    model = initial_model(config, data)
    packed, mask, _ = start_of(config, data)
    load_compact_(model, find_prunable(model), mask, packed)
    return model
