"""One particle's loop in three forms: the product's, a minimal one tuned by hand, and the usual one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from _measuring import spread
from _training_cases import CASES, arithmetic_of, begun, data_of, start_of, synchronise
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from swamp_ray.config import SwampConfig
from swamp_ray.sparsity.masks import find_prunable, mask_tensors, prunable_tensors
from swamp_ray.sparsity.packing import load_packed_
from swamp_ray.training.arithmetic import Arithmetic, applied
from swamp_ray.training.data import Data
from swamp_ray.training.particle import ParticleTrainer, initial_model
from swamp_ray.training.pixels import Draws, Pixels

WARM_UP = 2
Epoch = Callable[[], Any]


def measure(case: str, device: str, repeats: int) -> dict[str, Any]:
    """Images a second of all three, timed in turn, and the product's share of the other two."""
    config = CASES[case].config(device)
    data = data_of(case, device)
    arithmetic = arithmetic_of(config, data, device)
    with applied(arithmetic):
        loops: dict[str, Epoch] = {
            "ours": begun(ParticleTrainer(config, data, arithmetic)).epoch,
            "bare": Bare(config, data, arithmetic).epoch,
        }
        if device == "cuda":
            loops["bare_graph"] = BareGraph(config, data, arithmetic).epoch
        steps = len(data.train) // config.training.batch_size
        times = in_turn(loops, device, repeats)
        times |= in_turn({"usual": Usual(config, data, arithmetic).epoch}, device, min(repeats, 3), warm_up=1)
    images = steps * config.training.batch_size
    row: dict[str, Any] = {"batch": config.training.batch_size, "steps": steps, "data": config.data.name,
                           "precision": arithmetic.precision, "threads": arithmetic.threads}
    row |= {f"{name}_images_per_s": spread([images / second for second in seconds]) for name, seconds in times.items()}
    for name in ("bare", "bare_graph"):
        if name in times:
            row[f"ours_over_{name}"] = spread([b / a for a, b in zip(times["ours"], times[name], strict=True)])
    row["ours_over_usual"] = spread([b / a for a, b in zip(times["ours"], times["usual"], strict=False)])
    return row


def in_turn(loops: dict[str, Epoch], device: str, repeats: int, warm_up: int = WARM_UP) -> dict[str, list[float]]:
    """Seconds of each repetition of each loop; all are repeated in turn, every other time in the opposite order."""
    for _ in range(warm_up):
        for epoch in loops.values():
            epoch()
    times: dict[str, list[float]] = {name: [] for name in loops}
    for repeat in range(repeats):
        for name in list(loops)[:: 1 if repeat % 2 == 0 else -1]:
            synchronise(device)
            began = time.perf_counter()
            loops[name]()
            synchronise(device)
            times[name].append(time.perf_counter() - began)
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
        self.pixels = Pixels(data.train.images, self.device)
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
        self.loader = DataLoader(OneByOne(data), batch_size=given.batch_size, shuffle=True, drop_last=True,
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

    def __init__(self, data: Data) -> None:
        self.images, self.labels = data.train.arrays  # pyright: ignore[reportAttributeAccessIssue]
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
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


def masked_model(config: SwampConfig, data: Data) -> nn.Module:
    """The case's network at its ticket."""
    model = initial_model(config, data)
    packed, mask, _ = start_of(config, data)
    load_packed_(model, find_prunable(model), mask, packed)
    return model
