"""Datasets by name: what is read, how it is split and named, and what a user reads when it is wrong."""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.batches import Batches
from swamp_ray.data.datasets import load_data
from swamp_ray.data.samples import ArraySamples, Data, LazySamples
from swamp_ray.errors import UserError

CPU = torch.device("cpu")


def load(name: str = "synthetic", **fields: Any) -> Data:
    return load_data(DataConfig(name=name, **fields))


def arrays(samples: Any) -> Any:
    assert isinstance(samples, ArraySamples)
    return samples.arrays


def encoded(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


def random_images(num: int, size: int = 4) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (num, size, size, 3), dtype=np.uint8)


def write_parquet(path: Path, images: list[bytes | None], labels: list[int | None], **columns: Any) -> None:
    table = {"image": pa.array(images, pa.binary()), "label": pa.array(labels, pa.int8()), **columns}
    pq.write_table(pa.table({key: value for key, value in table.items() if value is not None}), path)


def cifar_root(tmp_path: Path, num: int = 40, name: str = "cifar10") -> Path:
    for split in ("train", "test"):
        write_parquet(tmp_path / f"{name}-{split}.parquet", [encoded(image) for image in random_images(num)],
                      [row % 10 for row in range(num)])
    return tmp_path


def image_tree(root: Path, splits: tuple[str, ...] = ("train", "val"), classes: tuple[str, ...] = ("cat", "dog"),
               num: int = 5) -> Path:
    pixels = random_images(num, 12)
    for split in splits:
        for name in classes:
            (root / split / name).mkdir(parents=True)
            for index in range(num):
                (root / split / name / f"{index}.jpg").write_bytes(encoded(pixels[index], "JPEG"))
    return root


# What is read ---------------------------------------------------------------------------------------------------------


def test_digits_are_all_there_once() -> None:
    data = load("digits")
    sizes = [len(split) for split in (data.train, data.validation, data.test)]
    assert sizes == [1294, 144, 359]
    assert (data.num_classes, data.input_shape) == (10, (1, 8, 8))
    rows = np.concatenate([arrays(split)[0] for split in (data.train, data.validation, data.test)])
    assert len(np.unique(rows.reshape(len(rows), -1), axis=0)) == 1797
    assert rows.dtype == np.uint8
    assert rows.max() == 255
    per_class = np.bincount(arrays(data.test)[1])
    assert per_class.min() >= 34
    assert per_class.max() <= 37


def test_synthetic_options() -> None:
    data = load(options={"num_train": 60, "num_test": 20, "num_classes": 3, "shape": [1, 5, 7]})
    assert (len(data.train) + len(data.validation), len(data.test), data.num_classes) == (60, 20, 3)
    assert data.input_shape == (1, 5, 7)
    assert data.digest == load(options={"num_train": 60, "num_test": 20, "num_classes": 3, "shape": [1, 5, 7]}).digest


def test_parquet_pixels_and_labels_survive(tmp_path: Path) -> None:
    data = load("cifar10", root=str(cifar_root(tmp_path)))
    images, labels = arrays(data.test)
    assert np.array_equal(images, random_images(40))
    assert labels.tolist() == [row % 10 for row in range(40)]
    assert labels.dtype == np.int64


def test_parquet_in_hugging_face_form(tmp_path: Path) -> None:
    images = [{"bytes": encoded(image), "path": None} for image in random_images(20)]
    for split in ("train", "test"):
        pq.write_table(pa.table({"image": images, "label": [row % 10 for row in range(20)]}),
                       tmp_path / f"cifar10-{split}.parquet")
    assert np.array_equal(arrays(load("cifar10", root=str(tmp_path)).test)[0], random_images(20))


def test_limits_are_honoured_before_decoding(tmp_path: Path) -> None:
    root = cifar_root(tmp_path)
    images: list[bytes | None] = [encoded(image) for image in random_images(40)]
    images[39] = b"no image"
    write_parquet(root / "cifar10-train.parquet", images, [row % 10 for row in range(40)])
    data = load("cifar10", root=str(root), limit_train=20, limit_test=10)
    assert (len(data.train) + len(data.validation), len(data.test)) == (20, 10)
    assert np.array_equal(arrays(data.test)[0], random_images(40)[:10])


def test_cifar_can_be_shrunk_by_averaging_blocks(tmp_path: Path) -> None:
    root = str(cifar_root(tmp_path))
    whole, half = load("cifar10", root=root), load("cifar10", root=root, options={"shrink": 2})
    images, small = arrays(whole.train)[0], arrays(half.train)[0]
    num, height, width, _ = images.shape
    assert (small.shape, small.dtype) == ((num, height // 2, width // 2, 3), np.uint8)
    expected = np.floor(images[:, 0:2, 2:4].reshape(num, 4, 3).mean(axis=1) + 0.5)
    np.testing.assert_array_equal(small[:, 0, 1], expected)
    assert half.digest != whole.digest
    assert load("cifar10", root=root, options={"shrink": 1}).digest == whole.digest
    for wrong in (3, True, "2", 0):
        with pytest.raises(UserError, match=r"data\.options\.shrink: must be 1, 2 or 4"):
            load("cifar10", root=root, options={"shrink": wrong})


def test_real_cifar10(cifar10_root: Path) -> None:
    data = load("cifar10", limit_train=300, limit_test=100)
    images, labels = arrays(data.train)
    assert images.shape == (270, 32, 32, 3)
    assert np.bincount(labels).tolist() == [27] * 10
    assert data.class_names[0] == "airplane"
    batch = next(Batches(data.train, device=CPU, channels_last=True, on_device=False)
                 .one_pass(270, seed=None, drop_last=False))
    assert abs(float(batch[0].mean())) < 0.2
    assert float(batch[0].std()) == pytest.approx(1.0, abs=0.2)


@pytest.mark.parametrize(("name", "folder"), [("cifar10", "cifar-10-batches-py"), ("cifar100", "cifar-100-python")])
def test_torchvision_files(name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision import datasets

    kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    target = tmp_path / folder
    target.mkdir()

    def write(file: str, content: dict[str, Any]) -> list[str]:
        (target / file).write_bytes(pickle.dumps(content))
        return [file, hashlib.md5((target / file).read_bytes()).hexdigest()]

    images = random_images(20, 32)
    key = "labels" if name == "cifar10" else "fine_labels"
    content = {"data": images.transpose(0, 3, 1, 2).reshape(20, -1), key: [row % 10 for row in range(20)]}
    lists = [write("train_part", content)], [write("test_part", content)]
    names = write("names", {kind.meta["key"]: [f"class {n}" for n in range(10)]})
    monkeypatch.setattr(kind, "train_list", lists[0])
    monkeypatch.setattr(kind, "test_list", lists[1])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "filename": names[0], "md5": names[1]})
    data = load(name, root=str(tmp_path), validation=0.2)
    assert np.array_equal(arrays(data.test)[0], images)
    assert len(data.train) == 16
    assert data.class_names[3] == "class 3"
    (target / "train_part").write_bytes(b"damaged")
    with pytest.raises(UserError, match="cannot be read"):
        load(name, root=str(tmp_path))


@pytest.mark.parametrize("channels_last", [True, False])
def test_data_travel_as_bytes(channels_last: bool, tmp_path: Path) -> None:
    root = str(image_tree(tmp_path))
    for data in (load("digits"), load("image_folder", root=root, image_size=8, resize=8)):
        copy = pickle.loads(pickle.dumps(data))
        assert copy.digest == data.digest
        for mine, theirs in ((data.train, copy.train), (data.test, copy.test)):
            first, second = (
                next(Batches(split, device=CPU, channels_last=channels_last, on_device=False)
                     .one_pass(4, seed=1, drop_last=True)) for split in (mine, theirs))
            assert torch.equal(first[0], second[0])
            assert torch.equal(first[1], second[1])


# Splits ---------------------------------------------------------------------------------------------------------------


def test_validation_is_stratified_and_disjoint() -> None:
    data = load(options={"num_train": 103, "num_classes": 4}, validation=0.1)
    sizes = np.bincount(np.arange(103) % 4)
    held = np.bincount(arrays(data.validation)[1], minlength=4)
    assert held.sum() == 10
    assert np.abs(held - sizes * 10 / 103).max() < 1
    images = np.concatenate([arrays(data.train)[0], arrays(data.validation)[0]])
    assert len(np.unique(images.reshape(103, -1), axis=0)) == 103


def test_only_the_split_seed_moves_the_split() -> None:
    first, again, other = load("digits"), load("digits"), load("digits", split_seed=1)
    torch.manual_seed(5)
    np.random.seed(5)
    assert np.array_equal(arrays(first.validation)[0], arrays(again.validation)[0])
    assert not np.array_equal(arrays(first.validation)[0], arrays(other.validation)[0])
    assert np.array_equal(arrays(first.test)[0], arrays(other.test)[0])


def test_fixed_order_does_not_go_class_by_class(tmp_path: Path) -> None:
    data = load("image_folder", root=str(image_tree(tmp_path, num=20)))
    assert isinstance(data.train, LazySamples)
    assert len({int(data.train.dataset.labels[index]) for index in data.train.indices[:8]}) == 2


# Digest ---------------------------------------------------------------------------------------------------------------


def test_digest_changes_with_one_pixel_one_label_and_one_setting(tmp_path: Path) -> None:
    root = cifar_root(tmp_path)
    images, labels = random_images(40), [row % 10 for row in range(40)]
    digests = [load("cifar10", root=str(root)).digest]
    assert load("cifar10", root=str(root)).digest == digests[0]
    digests.append(load("cifar10", root=str(root), augment="crop").digest)
    digests.append(load("cifar10", root=str(root), crop_padding=2).digest)
    digests.append(load("cifar10", root=str(root), split_seed=1).digest)
    images[7, 0, 0, 0] ^= 1
    write_parquet(root / "cifar10-test.parquet", [encoded(image) for image in images], [*labels])
    digests.append(load("cifar10", root=str(root)).digest)
    labels[0] = 1
    write_parquet(root / "cifar10-test.parquet", [encoded(image) for image in images], [*labels])
    digests.append(load("cifar10", root=str(root)).digest)
    assert len(set(digests)) == len(digests)


def test_digest_does_not_depend_on_where_the_data_lie(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    digest = load("cifar10", root=str(cifar_root(here))).digest
    here.rename(there)
    assert load("cifar10", root=str(there)).digest == digest


def test_folder_digest_sees_a_changed_file(tmp_path: Path) -> None:
    root = image_tree(tmp_path)
    before = load("image_folder", root=str(root)).digest
    assert load("image_folder", root=str(root), image_size=128).digest != before
    (root / "val" / "dog" / "1.jpg").write_bytes(encoded(random_images(1, 13)[0], "JPEG"))
    assert load("image_folder", root=str(root)).digest != before


# Bad input ------------------------------------------------------------------------------------------------------------


def without_root(root: Path) -> None:
    root.rmdir()


def one_parquet_file(root: Path) -> None:
    cifar_root(root)
    (root / "cifar10-test.parquet").unlink()


def wrong_columns(root: Path) -> None:
    cifar_root(root)
    pq.write_table(pa.table({"img": [b"x"], "label": [0]}), root / "cifar10-train.parquet")


def no_parquet(root: Path) -> None:
    cifar_root(root)
    (root / "cifar10-train.parquet").write_bytes(b"PAR1 not really")


def changed_rows(**change: Any) -> Callable[[Path], None]:
    def write(root: Path) -> None:
        cifar_root(root)
        images: list[bytes | None] = [encoded(image) for image in random_images(20)]
        labels: list[int | None] = [row % 10 for row in range(20)]
        images[3] = change.get("image", images[3])
        labels[3] = change.get("label", labels[3])
        write_parquet(root / "cifar10-train.parquet", images, change.get("labels", labels))

    return write


def no_rows(root: Path) -> None:
    cifar_root(root)
    write_parquet(root / "cifar10-train.parquet", [], [])


@pytest.mark.parametrize(("prepare", "text"), [
    (without_root, "data.root: the data folder does not exist"),
    (lambda root: None, "data.root: cifar10 is not in this folder"),
    (one_parquet_file, "cifar10-test.parquet: this file is missing"),
    (wrong_columns, "there is no column image. The columns must be image and label; the file has: img, label."),
    (no_parquet, "no Parquet file that can be read"),
    (no_rows, "there are no samples"),
    (changed_rows(image=b"\xff\xd8 broken"), "row 3: the image cannot be decoded"),
    (changed_rows(image=encoded(random_images(1)[0])[:-30]), "row 3: the image cannot be decoded"),
    (changed_rows(image=None), "row 3: the image is missing"),
    (changed_rows(image=encoded(random_images(1, 6)[0])), "row 3: all images must have one size, but got '6x6"),
    (changed_rows(label=10), "labels must lie in [0, 10), but got '10 in row 3'"),
    (changed_rows(label=None), "integers without gaps"),
    (changed_rows(labels=[4] * 20), "at least two classes, but got 'only label 4'"),
])
def test_bad_parquet(prepare: Callable[[Path], None], text: str, tmp_path: Path) -> None:
    root = tmp_path / "data"
    root.mkdir()
    prepare(root)
    with pytest.raises(UserError) as caught:
        load("cifar10", root=str(root))
    assert text in str(caught.value)


def image_folder_without(root: Path, *parts: str) -> None:
    import shutil

    shutil.rmtree(root.joinpath(*parts))


@pytest.mark.parametrize(("damage", "text"), [
    (lambda root: image_folder_without(root, "train"), "train: this folder does not exist"),
    (lambda root: image_folder_without(root, "val"), "a folder val or test"),
    (lambda root: image_folder_without(root, "train", "dog"), "at least two classes, but got 'only cat'"),
    (lambda root: image_folder_without(root, "val", "dog"), "differences in: dog"),
    (lambda root: [file.unlink() for file in (root / "train" / "dog").iterdir()], "dog: this class has no images"),
    (lambda root: (root / "train" / "dog" / "2.jpg").write_bytes(b""), "2.jpg: this image file is empty"),
])
def test_bad_image_folder(damage: Callable[[Path], Any], text: str, tmp_path: Path) -> None:
    damage(image_tree(tmp_path))
    with pytest.raises(UserError) as caught:
        load("image_folder", root=str(tmp_path))
    assert text in str(caught.value)


@pytest.mark.parametrize(("fields", "text"), [
    ({"name": "cifar11"}, "there is no such dataset, but got 'cifar11'. Did you mean 'cifar10'?"),
    ({"name": "digits", "options": {"shape": 1}}, "takes no option 'shape'"),
    ({"options": {"num_trian": 1}}, "Did you mean 'num_train'?"),
    ({"options": {"num_train": 0}}, "data.options.num_train: must be a whole number of at least 1, but got 0"),
    ({"options": {"num_classes": 1}}, "at least 2"),
    ({"options": {"shape": [32, 32]}}, "[channels, height, width]"),
    ({"options": {"num_train": 2}, "validation": 0.9}, "too few"),
    ({"name": "image_folder", "root": ".", "resize": 8}, "train: this folder does not exist"),
    ({"name": "cifar10"}, "Set data.root or the environment variable SWAMP_DATA."),
])
def test_bad_settings(fields: dict[str, Any], text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SWAMP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        load_data(DataConfig(**{"name": "synthetic", **fields}))
    assert text in str(caught.value)
