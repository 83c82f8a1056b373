"""What your own data say of their targets: classes, their number and names; the same for arrays and for datasets."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from swamp_ray.config.sections import DataConfig
from swamp_ray.data.labels import check_classes, class_numbers, from_texts, is_texts, missing_classes, settle
from swamp_ray.data.user_splits import label_leaf, with_labels
from swamp_ray.errors import UserError


@dataclass(frozen=True)
class Given:
    """What the user's function returned, checked.

    Attributes:
        splits: By name; tables and lists of samples in their final form.
        num_classes: None where it was not given.
        class_names: In label order; may be empty.
        transform: Of training samples; or None.
    """

    splits: dict[str, Any]
    num_classes: int | None
    class_names: tuple[str, ...]
    transform: Callable[[Any], Any] | None


def number_of_classes(value: Any) -> int | None:
    """The number of classes that was given, from any kind of whole number.

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
    names = tuple(name.decode(errors="replace") if isinstance(name, bytes) else str(name) for name in value)
    if names and num_classes is not None and len(names) != num_classes:
        raise UserError(f"there must be one name for each of {num_classes} classes", got=len(names),
                        where="class_names")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise UserError("class_names must differ", got=f"{twice!r} twice", where="class_names")
    return names


@dataclass(frozen=True)
class Target:
    """What is known of the targets.

    Attributes:
        num_classes: None where they are no classes.
        class_names: In label order; may be empty.
        warnings: What the user should know of them.
        shift: What was subtracted from the labels that were given.
    """

    num_classes: int | None
    class_names: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    shift: int = 0


def with_classes(
    config: DataConfig, task: str | None, given: Given, nests: dict[str, Any]
) -> tuple[dict[str, Any], Target]:
    """Nests whose labels are numbers of classes where that is what they mean, and what is known of these.

    Raises:
        UserError: The labels do not fit, or may mean several things.
    """
    names, num_classes = given.class_names, given.num_classes
    labels: dict[str, Any] = {name: label_leaf(nest) for name, nest in nests.items()}
    if any(is_texts(found) for found in labels.values()):
        if task == "regression":
            raise UserError("a regression needs targets that are numbers", got="texts", where=config.name,
                            do="Set task.name: classification, if they are classes.")
        labels, names = from_texts(labels, names, config.name)
        nests = {name: with_labels(nest, labels[name]) for name, nest in nests.items()}
        names = class_names_of(names, num_classes)
    if task == "classification":
        for name, split in labels.items():
            if not isinstance(split, np.ndarray):
                raise UserError("labels must be one array", got=type(split).__name__, where=f"{config.name}, {name}")
        found = {name: class_numbers(split, f"{config.name}, {name}") for name, split in labels.items()}
        widths = {width for _, width in found.values()}
        if len(widths) > 1 or (num_classes is not None and not widths <= {None, num_classes}):
            raise UserError("labels must have one form and one number of classes in all splits", where=config.name,
                            got=", ".join(f"{name}: {list(split.shape)}" for name, split in labels.items()))
        classes = settle({name: split for name, (split, _) in found.items()},
                         num_classes if widths == {None} else widths.pop(), names, config.name)
        nests = {name: with_labels(nest, classes.labels[name]) for name, nest in nests.items()}
        names = class_names_of(names, classes.num_classes)
        odd = missing_classes(classes.labels, classes.num_classes, config.name)
        return nests, Target(classes.num_classes, names, odd, classes.shift)
    if task == "regression":
        return nests, Target(num_classes, names)
    own = {name: split for name, nest in nests.items() if (split := labels_of(nest)) is not None}
    if own and num_classes is None:
        num_classes = max(int(split.max(initial=0)) for split in own.values()) + 1
    if own and num_classes is not None:
        check_classes(own, num_classes, config.name)
    return nests, Target(num_classes, class_names_of(names, num_classes))


def is_image_array(array: np.ndarray) -> bool:
    """Whether an array holds images as the pipeline reads them: uint8 ``[N, H, W, C]``, C 1 or 3."""
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[-1] in {1, 3}


def labels_of(nest: Any) -> np.ndarray | None:
    """Integer labels ``[N]``: the second part of a pair, or ``labels`` or ``label`` of a mapping."""
    found = label_leaf(nest)
    is_labels = isinstance(found, np.ndarray) and found.ndim == 1 and np.issubdtype(found.dtype, np.integer)
    return found if is_labels else None
