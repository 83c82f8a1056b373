"""What a network's ``state_dict()`` holds, and the facts with which others can use the trained network."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.data.samples import Data
from swamp_ray.errors import UserError, first_line
from swamp_ray.sparsity.masks import Layout, clean_name
from swamp_ray.training.tasks import Task

EXTRA_STATE = "_extra_state"
"""Last part of the name under which torch puts what ``get_extra_state()`` of a module returns."""


@dataclass(frozen=True)
class StateDictContents:
    """The entries of a network's ``state_dict()`` under their clean names.

    Attributes:
        sources: For each entry that is a parameter or buffer, the first name of that tensor. Tied ones have several
            entries, buffers that are not persistent none.
        dtypes: Element types of these entries.
        computed: Tensors that the network makes for its ``state_dict()``, extra state among them.
        plain: Extra state of plain values.
    """

    sources: Mapping[str, str]
    dtypes: Mapping[str, torch.dtype]
    computed: tuple[str, ...] = ()
    plain: Mapping[str, Any] = field(default_factory=dict)

    def tensors(self, state: Mapping[str, np.ndarray], build: Callable[[], nn.Module]) -> dict[str, Tensor]:
        """The entries that are tensors, of a trained network.

        Args:
            state: Its parameters and buffers by their first clean name, whole.
            build: Makes a network of its kind; called only where some entries are computed.
        """
        found = {}
        for name, source in self.sources.items():
            found[name] = torch.tensor(state[source]).to(self.dtypes[name])
        if not self.computed:
            return found
        model = build()
        with torch.no_grad():
            for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
                tensor.copy_(torch.tensor(state[clean_name(name)]))
        for key, value in model.state_dict().items():
            if clean_name(key) in self.computed:
                found[clean_name(key)] = value
        return found


def state_dict_contents(model: nn.Module, layout: Layout) -> StateDictContents:
    """What the ``state_dict()`` of a network holds.

    Args:
        model: As it is initialised.
        layout: Its prunable weights.

    Raises:
        UserError: It leaves out a parameter, or names a prunable weight in another way.
    """
    names = {id(tensor): clean_name(name) for name, tensor in [*model.named_buffers(), *model.named_parameters()]}
    sources: dict[str, str] = {}
    dtypes: dict[str, torch.dtype] = {}
    computed: list[str] = []
    plain: dict[str, Any] = {}
    for key, value in _state_dict(model).items():
        name = clean_name(key)
        if name in sources or name in computed:
            raise UserError(f"two entries of state_dict() are called {name!r} once wrappers' prefixes are taken off",
                            got=key, where="model.name", do="Rename the submodule.")
        if id(value) in names:
            sources[name] = names[id(value)]
            dtypes[name] = value.dtype
        elif isinstance(value, Tensor):
            computed.append(name)
        elif _is_plain(value):
            plain[name] = value
    _check_complete(model, layout, set(sources.values()), sources)
    return StateDictContents(sources, dtypes, tuple(computed), plain)


def _state_dict(model: nn.Module) -> dict[str, Any]:
    """The entries, with the network's own tensors and not detached ones."""
    try:
        return model.state_dict(keep_vars=True)
    except Exception as error:  # of the network's own
        raise UserError(f"state_dict() of the network fails: {type(error).__name__}: {first_line(error)}",
                        where="model.name") from error


def _check_complete(model: nn.Module, layout: Layout, known: set[str], sources: Mapping[str, str]) -> None:
    for name, _ in model.named_parameters():
        if clean_name(name) not in known:
            raise UserError(f"state_dict() of the network leaves out the parameter {name!r}, so that its tickets "
                            "could not be loaded", where="model.name", do="Let it hold all parameters.")
    for layer in layout.layers:
        if sources.get(layer.name) != layer.name:
            raise UserError(f"state_dict() of the network has no entry of its own name for the weight {layer.name!r}",
                            where="model.name", do="Let it name weights as named_parameters() does, or exclude this "
                            "one with pruning.exclude.")


def extra_state(model: nn.Module) -> dict[str, Any]:
    """What modules keep besides parameters and buffers, by the name in ``state_dict()``; tensors are copied."""
    if all(type(module).get_extra_state is nn.Module.get_extra_state for module in model.modules()):
        return {}
    found = {}
    for name, value in model.state_dict().items():
        if name.rpartition(".")[2] == EXTRA_STATE:
            found[clean_name(name)] = value.detach().clone() if isinstance(value, Tensor) else value
    return found


def refuse_moving_extra_state(model: nn.Module, before: Mapping[str, Any]) -> None:
    """Raise UserError if training has changed what :func:`extra_state` returned before."""
    for name, value in extra_state(model).items():
        old = before[name]
        same = torch.equal(value, old) if isinstance(value, Tensor) else _equal(value, old)
        if not same:
            raise UserError(f"training changes the extra state {name!r}", where="model.name",
                            do="Particles cannot be averaged over such state; make it a parameter or keep it constant.")


def _equal(one: Any, other: Any) -> bool:
    """Whether two plain values are equal; others, which cannot be compared, count as equal if of one type."""
    return one == other if _is_plain(one) and _is_plain(other) else type(one) is type(other)


def _is_plain(value: Any) -> bool:
    """Whether a value comes out of JSON as it went in."""
    try:
        return bool(json.loads(json.dumps(value, allow_nan=False)) == value)
    except (TypeError, ValueError, RecursionError):
        return False


def usage_facts(config: SwampConfig, data: Data, task: Task) -> dict[str, Any]:
    """The facts with which others can use a network: how its inputs are made, what its outputs mean, its metric.

    Returns:
        JSON: ``input``, ``classes`` and ``task``. ``input.pixels`` is there where the network reads images:
        ``(pixels / 255 - mean) / std`` per channel, and for files the sizes before.
    """
    images = data.train.images
    given: dict[str, Any] = {"shape": None if data.input_shape is None else list(data.input_shape)}
    if images is not None:
        given["pixels"] = {"mean": list(images.mean), "std": list(images.std)}
    if config.data.name == "image_folder":
        given["files"] = {"resize": config.data.resize, "crop": config.data.image_size}
    return {
        "input": given,
        "classes": {"count": None if data.num_classes is None else int(data.num_classes),
                    "names": [str(name) for name in data.class_names]},
        "task": {"name": config.task.name, "primary": task.primary, "higher_is_better": task.higher_is_better},
    }
