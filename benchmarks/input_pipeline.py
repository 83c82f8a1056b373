"""Do files of ImageNet's size keep a device busy? Reading, decoding and transforming against training ResNet-50.

    python benchmarks/input_pipeline.py

Makes JPEG files (500 x 375, quality 90) in a temporary folder and lists them several times, so they come out of the
file cache: a slow disk is not in these figures. Measures images a second of decoding, of the transforms and of whole
samples in one process; of the loader by its number of processes; of ``torchvision/resnet50`` at 224 pixels as a
particle trains it (bf16 and channels last on CUDA), with a batch that is there already and with the loader. And how
long the start of a pass takes, by the number of files that are listed. Writes
``benchmarks/results/input_pipeline.json``.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _measuring import spread, timed, write
from PIL import Image
from torchvision import io as torchvision_io
from torchvision.transforms import v2

from swamp_ray.config.reading import build_config
from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.datasets import load_data
from swamp_ray.data.image_folder import ImageFiles, Listing
from swamp_ray.data.loader import DeviceCopies, Loader, loader_of, read_sample, usable_cores
from swamp_ray.data.samples import Data, LazySamples
from swamp_ray.random_state import seeded
from swamp_ray.sparsity.compact import compact_state
from swamp_ray.training.arithmetic import applied, resolve_arithmetic
from swamp_ray.training.program import TrainingSpec, round_program
from swamp_ray.training.trainer import ParticleTrainer, initial_model
from swamp_ray.training.training_run import begin_training

SIZE = (500, 375)
LISTED = (10_000, 1_281_167)
TARGET = 1.0
"""Images of the loader for each that the network takes."""


def jpeg(rng: np.random.RandomState) -> bytes:
    """Soft shapes with noise, about as many bytes as ImageNet's files have at this size."""
    shapes = Image.fromarray(rng.randint(0, 256, (12, 16, 3), dtype=np.uint8)).resize(SIZE, Image.Resampling.BICUBIC)
    noise = rng.normal(0, 16, (SIZE[1], SIZE[0], 1))
    file = io.BytesIO()
    Image.fromarray((np.asarray(shapes) + noise).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def make_files(root: Path, num: int) -> float:
    """``num`` files for training in two classes, ten for the test; their mean size in bytes."""
    rng, sizes = np.random.RandomState(0), []
    for index in range(num + 10):
        folder = root / ("train" if index < num else "val") / ("even", "odd")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        sizes.append((folder / f"{index:05d}.jpg").write_bytes(jpeg(rng)))
    return float(np.mean(sizes))


def rates(work: Callable[[], object], num: int, repeats: int) -> dict[str, Any]:
    """Images a second of some work on ``num`` of them, after one run that does not count."""
    work()
    return spread([round(num / timed(work)[0], 2) for _ in range(repeats)])


def core_rates(work: Callable[[], object], num: int, repeats: int) -> dict[str, Any]:
    """Likewise, a second of this process's processor time, which others on the machine hardly change."""
    def once() -> float:
        began = time.process_time()
        work()
        return time.process_time() - began

    work()
    return spread([round(num / once(), 1) for _ in range(repeats)])


def parts_of_a_sample(samples: LazySamples, repeats: int, num: int) -> dict[str, dict[str, Any]]:
    """One process: what a sample's processor time goes to."""
    dataset: ImageFiles = samples.dataset
    rows = samples.indices[:num].tolist()
    images = [dataset[row] for row in rows]
    augment, plain = samples.train_transform, samples.eval_transform
    assert augment is not None
    assert plain is not None
    return {
        "decode": core_rates(lambda: [dataset[row] for row in rows], num, repeats),
        "training_transform": core_rates(lambda: [augment(image) for image in images], num, repeats),
        "evaluation_transform": core_rates(lambda: [plain(image) for image in images], num, repeats),
        "training_sample": core_rates(lambda: [read_sample(samples, row, 1) for row in rows], num, repeats),
        "evaluation_sample": core_rates(lambda: [read_sample(samples, row, None) for row in rows], num, repeats),
    }


def ways_not_taken(root: Path, size: int, repeats: int, num: int) -> dict[str, dict[str, Any]]:
    """Training samples in other ways, which give other pixels, in one process; the first row is ours."""
    files = [path.read_bytes() for path in sorted((root / "train" / "even").iterdir())[:num]]
    augment = v2.Compose([v2.RandomResizedCrop(size), v2.RandomHorizontalFlip()])

    def decoded(file: bytes, draft: bool = False) -> Any:
        with Image.open(io.BytesIO(file)) as image:
            if draft:
                image.draft("RGB", (size, size))
            image.load()
            return image

    def torchvision_decoded(file: bytes) -> Any:
        data = torch.frombuffer(bytearray(file), dtype=torch.uint8)
        return torchvision_io.decode_jpeg(data, mode=torchvision_io.ImageReadMode.RGB)

    ways: dict[str, Callable[[bytes], Any]] = {
        "PIL, transforms of PIL images": lambda file: np.array(augment(decoded(file))),
        "PIL, transforms of tensors": lambda file: augment(v2.functional.pil_to_tensor(decoded(file))).permute(1, 2, 0),
        "torchvision, transforms of tensors": lambda file: augment(torchvision_decoded(file)).permute(1, 2, 0),
        "PIL draft mode, transforms of PIL images": lambda file: np.array(augment(decoded(file, draft=True))),
    }

    def pixels_of(way: Callable[[bytes], Any]) -> np.ndarray:
        with seeded(0):
            return np.stack([np.asarray(way(file)) for file in files]).astype(int)

    ours, found = pixels_of(ways["PIL, transforms of PIL images"]), {}
    for name, way in ways.items():
        off = np.abs(pixels_of(way) - ours)
        found[name] = {"images_per_s": core_rates(lambda way=way: [way(file) for file in files], len(files), repeats),
                       "largest_difference": int(off.max()), "share_of_other_values": round(float((off > 0).mean()), 4)}
    return found


def listed_again(samples: LazySamples, num: int) -> LazySamples:
    """The same files, listed until there are ``num``."""
    return replace(samples, indices=np.resize(samples.indices, num))


def loader_rates(samples: LazySamples, counts: list[int], device: torch.device, batch: int, repeats: int,
                 num: int) -> dict[int, dict[str, Any]]:
    """Images a second of whole passes over about ``num`` for each process, onto the device as uint8."""
    found = {}
    for count in counts:
        total = max(1, round(num * max(1, count) / batch)) * batch
        loader, upload = Loader([samples], count, pinned=device.type == "cuda"), DeviceCopies(device)
        rows = np.split(np.resize(samples.indices, total), total // batch)

        def run(loader: Loader = loader, upload: DeviceCopies = upload, rows: list[np.ndarray] = rows) -> None:
            for _ in upload(loader.batches(samples, rows, 1)):
                pass
            if device.type == "cuda":
                torch.cuda.synchronize()

        before, measured = processor_s(), rates(run, total, repeats)
        loader.close()  # processor time of processes counts when they have ended
        a_core = round(total * (repeats + 1) / (processor_s() - before), 1)
        found[count] = {**measured, "a_processor_second": a_core}
        print(f"  {count:>2} processes: {shown(measured)} images/s, {a_core:g} a second of processor time", flush=True)
    return found


def processor_s() -> float:
    """Processor time of this process and of those that it has started and that have ended, in seconds."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def starts(root: Path, samples: LazySamples, repeats: int) -> list[dict[str, Any]]:
    """Seconds until a shuffled pass gives its first batch of 16, with new processes and with those that stay."""
    files = samples.dataset.files
    rows = []
    for num in LISTED:
        listing = Listing(root / "train", np.resize(files, num), np.zeros(num, np.int64), np.zeros((num, 2), np.int64),
                          np.zeros(num, np.uint8), ("even", "odd"))
        listed = replace(samples, dataset=ImageFiles(listing), indices=np.arange(num))
        seconds: dict[str, list[float]] = {"new": [], "stay": []}
        for repeat in range(repeats):
            loader = Loader([listed], min(2, usable_cores()))
            for kind in ("new", "stay"):
                seconds[kind].append(first_batch(loader, listed, repeat))
            loader.close()
        rows.append({"listed": num, **{f"{kind}_s": spread(values) for kind, values in seconds.items()}})
    return rows


def first_batch(loader: Loader, samples: LazySamples, seed: int) -> float:
    """Seconds until a pass gives its first batch; the pass is given up then."""
    def begin() -> None:
        order = torch.randperm(len(samples), generator=torch.Generator().manual_seed(seed)).numpy()
        rows = np.array_split(samples.indices[order], max(1, len(samples) // 256))
        next(loader.batches(samples, [rows[0][:16], *rows], seed))

    return round(timed(begin)[0], 4)


def configured(root: Path, batch: int, device: str) -> SwampConfig:
    """ResNet-50 as a particle trains it, long enough that nothing ends."""
    return build_config({
        "data": {"name": "image_folder", "root": str(root), "loader_workers": usable_cores()},
        "model": {"name": "torchvision/resnet50"}, "execution": {"device": device},
        "training": {"batch_size": batch, "lr": 0.01, "schedule": {"warmup": 0}}, "round": {"length": 1000},
        "averaging": {"within": "none"},
    })


class Training:
    """A particle in training, some epochs of a few steps."""

    def __init__(self, config: SwampConfig, data: Data, device: str) -> None:
        model = initial_model(config, data)
        self.arithmetic = resolve_arithmetic(config.execution, device, model)
        self.trainer = ParticleTrainer(config, data, self.arithmetic)
        mask = np.ones(self.trainer.layout.num_prunable, dtype=bool)
        packed = compact_state(dict(model.named_parameters()), self.trainer.layout, mask)
        job = TrainingSpec("dense", 1, round_program(config, self.trainer.steps_per_epoch, 0, 0))
        buffers = {name: b.numpy() for name, b in model.named_buffers()}
        self.run = begin_training(self.trainer, job, packed, mask, buffers)
        self.batch_size = config.training.batch_size

    def resident(self, num_steps: int, repeats: int) -> dict[str, Any]:
        """Images a second with one batch that stays on the device."""
        trainer = self.trainer
        batch = next(trainer.batches("train").one_pass(self.batch_size, seed=1, drop_last=True))
        trainer.model.train()

        def steps() -> None:
            for _ in range(num_steps):
                with trainer.autocast():
                    loss = trainer.task.training_step(trainer.network, batch)[0]
                loss.backward()
                self.run.take_step(0.01)
            if trainer.device.type == "cuda":
                torch.cuda.synchronize()

        with applied(self.arithmetic):
            return rates(steps, num_steps * self.batch_size, repeats)

    def from_files(self, repeats: int) -> dict[str, Any]:
        """Images a second of whole epochs through the loader."""
        def epoch() -> None:
            assert self.run.epoch() is not None

        with applied(self.arithmetic):
            return rates(epoch, self.trainer.steps_per_epoch * self.batch_size, repeats)


def counts_up_to(cores: int) -> Iterator[int]:
    """0, 1, 2, 4, ... and all cores."""
    yield from (0, 1)
    count = 2
    while count < cores:
        yield count
        count *= 2
    if cores > 1:
        yield cores


def shown(values: dict[str, Any]) -> str:
    """A median with its extremes."""
    return f"{values['median']:.4g} ({values['min']:.4g} to {values['max']:.4g}, n = {values['n']})"


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=300)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--batch-size", type=int, help="default: 256 on CUDA, 4 on the CPU")
    given = parser.parse_args()
    began, on_cuda, cores = time.perf_counter(), given.device == "cuda", usable_cores()
    load = os.getloadavg()[0]
    device = torch.device(given.device)
    batch, steps = given.batch_size or (256 if on_cuda else 4), 10 if on_cuda else 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        size_bytes = make_files(root, given.files)
        config = configured(root, batch, given.device)
        data = load_data(config.data)
        train = data.train
        assert isinstance(train, LazySamples)
        print(f"{given.files} files of {size_bytes / 1000:.0f} kB; one process, images a second of processor time:")
        single = parts_of_a_sample(train, given.repeats, 100)
        for name, values in single.items():
            print(f"  {name:<22} {shown(values)}")
        others = ways_not_taken(root, config.data.image_size, given.repeats, 60)
        for name, row in others.items():
            print(f"  {name:<42} {shown(row['images_per_s'])}, pixels differ by up to {row['largest_difference']}")
        print("loader:")
        loader = loader_rates(train, list(counts_up_to(cores)), device, 256 if on_cuda else 64, given.repeats, 256)
        pass_starts = starts(root, train, given.repeats)
        for row in pass_starts:
            print(f"start of a pass over {row['listed']:,} files: {shown(row['stay_s'])} s, "
                  f"with new processes {shown(row['new_s'])} s")
        data = replace(data, train=listed_again(train, batch * (20 if on_cuda else steps)))
        training = Training(config, data, given.device)
        resident = training.resident(steps, min(3, given.repeats))
        print(f"training, batch on the device: {shown(resident)} images/s")
        together = training.from_files(min(3, given.repeats))
        print(f"training from files, {cores} processes: {shown(together)} images/s")
        loader_of(data, cores, pinned=on_cuda).close()
    a_core, most = loader[1]["a_processor_second"], max(values["median"] for values in loader.values())
    ratio, needed = most / resident["median"], math.ceil(resident["median"] / a_core)
    print(f"loader / training: {ratio:.2f} (target {TARGET:g}); {needed} of these cores keep the device busy")
    path = write("input_pipeline", {
        "unit": "images/s; one_process and ways_not_taken: images a second of processor time",
        "load_average_before": round(load, 1),
        "target_ratio": TARGET, "loader_over_training": round(ratio, 3), "cores_needed": needed,
        "seconds_in_all": round(time.perf_counter() - began, 1),
        "files": {"distinct": given.files, "pixels": list(SIZE), "mean_bytes": round(size_bytes), "cached": True},
        "one_process": single, "ways_not_taken": others,
        "loader_by_processes": {str(count): values for count, values in loader.items()},
        "pass_start": pass_starts,
        "training": {"model": "torchvision/resnet50", "batch_size": batch, **training.arithmetic.as_dict(),
                     "batch_on_device": resident, "from_files": together, "loader_workers": cores},
    })
    print(f"wrote {os.path.relpath(path)}; {time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    main()
