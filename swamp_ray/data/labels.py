"""Class labels: converted where their meaning is certain, else refused in words about labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from swamp_ray.data.pairs import OWN_TASK, built_in_pair, integer_labels, label_leaf, with_labels
from swamp_ray.errors import UserError, nearest

_SHOWN = 5


@dataclass(frozen=True)
class TargetInfo:
    """What is known of the targets.

    Attributes:
        num_classes: None where they are no classes.
        class_names: In label order; may be empty.
        warnings: What the user should know of them.
        shift: What was subtracted from the labels that the user returned.
    """

    num_classes: int | None
    class_names: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    shift: int = 0


@dataclass(frozen=True)
class Classes:
    """The labels of all splits, once it is clear what they mean.

    Attributes:
        labels: By split, int64 ``[N]`` in ``[0, num_classes)``.
        num_classes: How many classes there are.
        shift: What was subtracted from the labels that the user returned.
    """

    labels: dict[str, np.ndarray]
    num_classes: int
    shift: int = 0


# From labels to classes


def with_classes(
    source: str, task: str | None, trees: dict[str, Any], num_classes: int | None, names: tuple[str, ...]
) -> tuple[dict[str, Any], TargetInfo]:
    """Splits whose labels are numbers of classes where that is their meaning, and what is known of the classes.

    Args:
        source: The data's name, for errors.
        task: ``"classification"`` or ``"regression"``; None: a user's task.
        trees: The splits by name.
        num_classes: As the user gave it, or None.
        names: Of the classes, as the user gave them; may be empty.

    Raises:
        UserError: The labels do not fit, or may mean several things.
    """
    labels = {name: label_leaf(tree) for name, tree in trees.items()}
    if any(is_texts(found) for found in labels.values()):
        if task == "regression":
            raise UserError("a regression needs targets that are numbers", got="texts", where=source,
                            do="Set task.name: classification, if they are classes.")
        labels, names = from_texts(labels, names, source)
        trees = {name: with_labels(tree, labels[name]) for name, tree in trees.items()}
        names = class_names_of(names, num_classes)
    if task == "classification":
        classes = _classes_of_splits(source, labels, num_classes, names)
        trees = {name: with_labels(tree, classes.labels[name]) for name, tree in trees.items()}
        warnings = missing_classes(classes.labels, classes.num_classes, source)
        names = class_names_of(names, classes.num_classes)
        return trees, TargetInfo(classes.num_classes, names, warnings, classes.shift)
    if task == "regression":
        return trees, TargetInfo(num_classes, names)
    num_classes = _classes_of_own_task(source, trees, num_classes)
    return trees, TargetInfo(num_classes, class_names_of(names, num_classes))


def _classes_of_splits(
    source: str, labels: Mapping[str, Any], num_classes: int | None, names: Sequence[str]
) -> Classes:
    """The labels of a classification's splits as numbers of classes."""
    numbers: dict[str, np.ndarray] = {}
    widths: set[int | None] = set()
    for name, split in labels.items():
        where = f"{source}, {name}"
        if not isinstance(split, np.ndarray):
            raise UserError("labels must be one array", got=type(split).__name__, where=where)
        numbers[name], width = class_numbers(split, where)
        widths.add(width)
    if len(widths) > 1 or (num_classes is not None and not widths <= {None, num_classes}):
        shapes = ", ".join(f"{name}: {list(split.shape)}" for name, split in labels.items())
        raise UserError("labels must have one form and one number of classes in all splits", where=source, got=shapes)
    width = widths.pop()
    return decide_classes(numbers, num_classes if width is None else width, names, source)


def _classes_of_own_task(source: str, trees: Mapping[str, Any], num_classes: int | None) -> int | None:
    """How many classes the integer labels of a user's task name; None where there are none."""
    labels: dict[str, np.ndarray] = {}
    for name, tree in trees.items():
        split = integer_labels(tree)
        if split is not None:
            labels[name] = split
    if not labels:
        return num_classes
    if num_classes is None:
        num_classes = max(int(split.max(initial=0)) for split in labels.values()) + 1
    check_classes(labels, num_classes, source)
    return num_classes


def class_numbers(found: np.ndarray, where: str) -> tuple[np.ndarray, int | None]:
    """Labels as whole numbers.

    Whole numbers of any type, bools, ``[N, 1]`` and rows with a single 1 (one-hot) have one meaning.

    Args:
        found: ``[N, ...]``.
        where: Whose labels, for errors.

    Returns:
        int64 ``[N]``; and the number of classes where it follows from the form.

    Raises:
        UserError: They may mean several things, or nothing.
    """
    if found.dtype.kind not in "biuf":
        raise UserError("labels must be numbers, or all texts", got=str(found.dtype), where=where)
    if found.dtype.kind == "f" and not np.isfinite(found).all():
        row = int(np.argwhere(~np.isfinite(found))[0][0])
        raise UserError("labels must be finite numbers", got=f"{found[row]} in sample {row}", where=where,
                        do="Leave samples without a label out.")
    if found.ndim > 1 and found.size == len(found):
        found = found.reshape(-1)
    if found.ndim == 2:
        return _from_one_hot(found, where), found.shape[1]
    if found.ndim != 1:
        raise UserError("labels must be one number a sample", got=f"shape {list(found.shape)}", where=where,
                        do=f"Return them as [N], {OWN_TASK}")
    numbers = found.astype(np.int64)
    odd = np.flatnonzero(numbers != found)
    if odd.size:
        raise UserError("labels of a classification must be whole numbers", got=f"{found[odd[0]]} in sample {odd[0]}",
                        where=where, do="Return whole numbers, or set task.name: regression.")
    return numbers, None


def _from_one_hot(found: np.ndarray, where: str) -> np.ndarray:
    ones = found == 1
    only_ones_and_zeros = (ones | (found == 0)).all()
    if only_ones_and_zeros and (ones.sum(axis=1) == 1).all():
        return ones.argmax(axis=1).astype(np.int64)
    raise UserError("labels must be one number a sample, or rows with a single 1 and else 0",
                    got=f"rows of {found.shape[1]} numbers that are neither", where=where,
                    do=f"Return the number of each sample's class, {OWN_TASK}")


def decide_classes(
    labels: Mapping[str, np.ndarray], num_classes: int | None, names: Sequence[str], where: str
) -> Classes:
    """Decide how many classes there are, and whether they are numbered from 0 or from 1.

    Labels from 1 to the number of classes that ``num_classes`` or ``names`` give are numbered from 1. Without either,
    labels of which none is 0 are refused: class 0 may as well have no sample.

    Args:
        labels: By split, int64 ``[N]``.
        num_classes: As given by the user; None: as many as ``names``, or as the largest label says.
        names: Of the classes; may be empty.
        where: The data's name, for errors.

    Raises:
        UserError: They do not fit.
    """
    filled = [split for split in labels.values() if split.size]
    least = min(split.min() for split in filled)
    largest = max(split.max() for split in filled)
    expected = num_classes if num_classes is not None else len(names) or None
    if least >= 1 and expected is None:
        raise UserError("labels must begin at 0", got=f"{least} to {largest}", where=where,
                        do=f"If they are numbered from 1, return them minus 1, or with num_classes: {largest}. If "
                           f"class 0 has no sample, return them with num_classes: {largest + 1}.")
    shift = 1 if least == 1 and largest == expected else 0
    found = {name: split - shift for name, split in labels.items()}
    num = expected if expected is not None else int(largest) + 1
    check_classes(found, num, where)
    return Classes(found, num, shift)


def from_texts(
    labels: Mapping[str, np.ndarray], names: Sequence[str], where: str
) -> tuple[dict[str, np.ndarray], tuple[str, ...]]:
    """Labels that are texts, as numbers.

    Args:
        labels: By split, arrays of texts ``[N]``.
        names: The classes in order; where empty, those of the training split in alphabetical order.
        where: The data's name, for errors.

    Returns:
        int64 ``[N]`` by split; the names of the classes.

    Raises:
        UserError: Some are no texts, or a split has a text that is no class.
    """
    texts = {name: _texts(split, f"{where}, {name}") for name, split in labels.items()}
    classes = list(names) or sorted(set(texts["train"]))
    number_of = {text: number for number, text in enumerate(classes)}
    numbers: dict[str, np.ndarray] = {}
    for name, split in texts.items():
        for text in split:
            if text not in number_of:
                known = "class_names" if names else "the labels of train"
                raise UserError(f"a label is not among {known}", got=text, where=f"{where}, {name}",
                                do=f"{nearest(text, classes)} Return class_names with all classes.".strip())
        numbers[name] = np.array([number_of[text] for text in split], np.int64)
    return numbers, tuple(classes)


def is_texts(found: Any) -> bool:
    """Whether an array holds texts, or objects that are perhaps texts."""
    return isinstance(found, np.ndarray) and found.dtype.kind in "USOT"


def _texts(found: np.ndarray, where: str) -> list[str]:
    if not is_texts(found):
        raise UserError("labels must be texts in all splits, or numbers in all", got=str(found.dtype), where=where)
    if found.size != len(found):
        raise UserError("labels must be one text a sample", got=f"shape {list(found.shape)}", where=where)
    texts: list[str] = []
    for row, label in enumerate(found.reshape(-1).tolist()):
        text = label.decode(errors="replace") if isinstance(label, bytes) else label
        if not isinstance(text, str):
            raise UserError("labels must be numbers, or all texts", got=f"{text!r} in sample {row}", where=where,
                            do="Leave samples without a label out.")
        texts.append(text)
    return texts


def values_of(targets: torch.Tensor) -> np.ndarray:
    """The values of a tensor in the processor's memory; NumPy has no bfloat16."""
    return (targets.float() if targets.dtype == torch.bfloat16 else targets).numpy()


# Checks


def check_labels(labels: np.ndarray, num_classes: int, where: str) -> None:
    """Refuse labels outside [0, num_classes), no labels at all, and a single class.

    Raises:
        UserError: Names the first offending row.
    """
    if not len(labels):
        raise UserError("there are no samples", where=where)
    check_range(labels, num_classes, where)
    if labels.min() == labels.max():
        raise UserError("there must be at least two classes", got=f"only label {labels[0]}", where=where)


def check_classes(labels: Mapping[str, np.ndarray], num_classes: int, where: str) -> None:
    """Refuse labels outside [0, num_classes), and a training split of a single class.

    Raises:
        UserError: Names the split, and the first such sample.
    """
    for name, split in labels.items():
        check = check_labels if name == "train" else check_range
        check(split, num_classes, f"{where}, {name}")


def check_range(labels: np.ndarray, num_classes: int | None, where: str) -> None:
    """Refuse labels below 0, or not below the number of classes where that is known.

    Raises:
        UserError: Names the first such sample.
    """
    end = np.inf if num_classes is None else num_classes
    bad = np.flatnonzero((labels < 0) | (labels >= end))
    if not bad.size:
        return
    row = bad[0]
    wanted = "be 0 and up" if num_classes is None else f"lie in [0, {num_classes})"
    raise UserError(f"labels must {wanted}", got=f"{labels[row]} in row {row}", where=where,
                    do="Leave samples without a class out." if labels[row] < 0 else "")


def missing_classes(labels: Mapping[str, np.ndarray], num_classes: int, where: str) -> tuple[str, ...]:
    """Warnings about classes that the training or the test split has no sample of."""
    texts: list[str] = []
    for name, split in labels.items():
        if name not in ("train", "test"):
            continue
        missing = sorted(set(range(num_classes)) - set(np.unique(split).tolist()))
        if not missing:
            continue
        listed = ", ".join(map(str, missing[:_SHOWN]))
        if len(missing) > _SHOWN:
            listed += f" and {len(missing) - _SHOWN} more"
        noun = "class" if len(missing) == 1 else "the classes"
        follows = "cannot be learnt" if name == "train" else "count in no test metric"
        texts.append(f"{where}: {name} has no sample of {noun} {listed} (of {num_classes}), which {follows}")
    return tuple(texts)


def number_of_classes(value: Any) -> int | None:
    """The number of classes that the user gave, from any kind of whole number.

    Raises:
        UserError: It is none.
    """
    if value is None:
        return None
    try:
        number = value if isinstance(value, int | float) else value.item()
    except (AttributeError, ValueError, RuntimeError, TypeError):  # a text, or more than one number
        number = None
    if isinstance(number, bool) or not isinstance(number, int | float) or number != int(number) or number < 1:
        raise UserError("must be a whole number of classes", got=str(value), where="num_classes")
    return int(number)


def class_names_of(value: Any, num_classes: int | None) -> tuple[str, ...]:
    """Names in label order, from any sequence: a list, an array, an index.

    Raises:
        UserError: They are no names, or not one for each class.
    """
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping | set | frozenset) or not hasattr(value, "__iter__"):
        raise UserError("must be a list of names in the order of the labels", got=type(value).__name__,
                        where="class_names")
    names = [name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in value]
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(f"there must be one name for each of {num_classes} classes", got=len(names),
                        where="class_names")
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise UserError("class_names must differ", got=f"{name!r} twice", where="class_names")
        seen.add(name)
    return tuple(names)


@dataclass(frozen=True)
class BuiltInForm:
    """Turns collated samples into the pair that a built-in task reads; for samples that are read while training.

    Attributes:
        where: The data's name, for errors.
        classes: Whether the targets are classes.
        num_classes: How many; None: not known.
        shift: To be subtracted from the labels.
    """

    where: str
    classes: bool
    num_classes: int | None = None
    shift: int = 0

    def __call__(self, batch: Any) -> tuple[Any, Any]:
        """The pair.

        Raises:
            UserError: A label does not fit.
        """
        inputs, targets = built_in_pair(batch, self.where)
        if not self.classes:
            return inputs, targets
        if not isinstance(targets, torch.Tensor):
            raise UserError("labels must be one number a sample", got=type(targets).__name__, where=self.where)
        numbers, _ = class_numbers(values_of(targets), self.where)
        numbers = numbers - self.shift
        check_range(numbers, self.num_classes, f"{self.where}, in a batch")
        return inputs, torch.from_numpy(numbers)
