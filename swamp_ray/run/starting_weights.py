"""Where the first training starts: at the initialisation, at a checkpoint of the user's, or at an earlier ticket."""

from __future__ import annotations

import argparse
import contextlib
import glob
import io
import re
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor, nn

from swamp_ray.config.schema import SwampConfig
from swamp_ray.config.sections import StartFrom
from swamp_ray.errors import UserError
from swamp_ray.sparsity.masks import Layout, clean_name
from swamp_ray.storage.places import as_spot, is_url
from swamp_ray.storage.ticket_fit import broken_ties, is_extra, own_names, transient_names
from swamp_ray.storage.tickets import load_ticket

MANY_ZEROS = 0.05
"""Share of the prunable weights from which on exact zeros are no accident."""
_PLAIN: list[Any] = [argparse.Namespace]
"""Classes of plain values that checkpoints hold beside their tensors; nothing in them is executed."""
_SHOWN = 20
_REFUSED_OBJECT = re.compile(r"Unsupported (?:global|class)[^:]*: (?:GLOBAL )?([\w.]+)")
"""How torch.load with weights_only names the class or function that a file refers to."""
_ZIP = b"PK"


def take_start_(config: SwampConfig, model: nn.Module, layout: Layout) -> tuple[np.ndarray, tuple[str, ...]]:
    """Put the weights before the first training into a model, as ``start_from`` says.

    Args:
        config: The run.
        model: At its initialisation.
        layout: Its prunable weights.

    Returns:
        The mask of round 0, bool ``[P]``, and what the user should know of the checkpoint.

    Raises:
        UserError: The checkpoint cannot be read, does not fit, or leaves open what becomes of its zeros.
    """
    mask = np.ones(layout.num_prunable, dtype=bool)
    start = config.start_from
    if start is None:
        return mask, ()
    tensors, masks = _read_checkpoint(start)
    outside = transient_names(model)  # older tickets hold buffers that are not persistent
    tensors = {name: tensor for name, tensor in tensors.items() if name not in outside}
    own = own_names(model)
    targets = {name: model.state_dict()[key] for name, key in own.items()}
    skipped = _skipped(start.skip, targets, tensors)
    tensors = {name: tensor for name, tensor in tensors.items() if name not in skipped}
    masks = {name: part for name, part in masks.items() if name not in skipped}
    _refuse_misfits({name: tensor for name, tensor in targets.items() if name not in skipped}, tensors, start.path)
    if not masks:
        masks = _zeros(start, layout, tensors)
    if config.brings_weights:
        model.load_state_dict({own[name]: tensor for name, tensor in tensors.items()}, strict=False)
    elif not masks:
        raise UserError("a mask is to be taken from it, but this is no ticket", got=start.path,
                        where="start_from.take", do="Name a ticket of a run, or set start_from.take: all.")
    for layer in layout.layers:
        if layer.name in masks:
            mask[layer.span] = masks[layer.name].reshape(-1)
    unknown = set(masks) - {layer.name for layer in layout.layers}
    if unknown:
        raise UserError("the ticket prunes tensors that this config does not", got=", ".join(sorted(unknown)),
                        where="pruning.include", do="Use the include and exclude patterns of the ticket's run.")
    return mask, _notes(start, skipped, mask)


def take_whole_start_(config: SwampConfig, model: nn.Module, layout: Layout) -> bool:
    """Put a checkpoint into a model with what ``start_from.skip`` leaves out, if that can be.

    Args:
        config: The run, which takes weights from a checkpoint.
        model: At its initialisation.
        layout: Its prunable weights.

    Returns:
        Whether all of the model's tensors are the checkpoint's now.
    """
    start = config.start_from
    assert start is not None
    own = own_names(model)
    with contextlib.suppress(UserError):
        others = [name for name in _read_checkpoint(start)[0] if name not in own]
        whole = start.model_copy(update={"skip": tuple(map(glob.escape, others)), "zeros": "regrow"})
        take_start_(config.model_copy(update={"start_from": whole}), model, layout)
        return True
    return False


def skips_own(config: SwampConfig, model: nn.Module) -> bool:
    """Whether tensors of the model itself are left as they are initialised."""
    patterns = config.start_from.skip if config.start_from is not None else ()
    return any(fnmatchcase(name, pattern) for name in own_names(model) for pattern in patterns)


def _notes(start: StartFrom, skipped: Mapping[str, str], mask: np.ndarray) -> tuple[str, ...]:
    found = []
    if skipped:
        found.append(f"not taken from {start.path}: " + _listed([f"{name} ({why})" for name, why in skipped.items()]))
    if start.zeros == "keep" and not mask.all():
        found.append(f"{mask.size - int(mask.sum()):,} weights that are 0 in {start.path} stay pruned")
    return tuple(found)


def _skipped(patterns: Sequence[str], targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> dict[str, str]:
    """Names that are not taken, and what becomes of each."""
    found: dict[str, str] = {}
    for pattern in patterns:
        names = [name for name in [*targets, *tensors] if fnmatchcase(name, pattern)]
        if not names:
            raise UserError("no tensor of the model or the checkpoint matches the pattern", got=pattern,
                            where="start_from.skip", do=f"They are called like {', '.join(list(tensors)[:4])}.")
        for name in names:
            found[name] = "initialised anew" if name in targets else "only in the checkpoint"
    return found


def _zeros(start: StartFrom, layout: Layout, tensors: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    """Masks of the weights that are not 0, where they are to be kept.

    Raises:
        UserError: There are many zeros, and the config does not say what they are.
    """
    if start.zeros == "regrow":
        return {}
    present = {layer.name: (tensors[layer.name] != 0).cpu().numpy() for layer in layout.layers if layer.name in tensors}
    num = sum(part.size - int(np.count_nonzero(part)) for part in present.values())
    if start.zeros == "keep":
        return present
    if num > MANY_ZEROS * layout.num_prunable:
        raise UserError(f"{num:,} of {layout.num_prunable:,} prunable weights of {start.path} are exactly 0, as if it "
                        "had been pruned", where="start_from.zeros",
                        do="Set keep, so that they stay pruned, or regrow, so that they are trained.")
    return {}


def _read_checkpoint(start: StartFrom) -> tuple[dict[str, Tensor], dict[str, np.ndarray]]:
    """State dict and masks (by parameter name; empty for a plain checkpoint)."""
    path = start.path if is_url(start.path) else Path(start.path)
    where = "start_from.path"
    if isinstance(path, Path):
        data = path.read_bytes() if path.is_file() else None
    else:
        data = as_spot(path).read()
    if data is None:
        raise UserError("the checkpoint does not exist", got=str(path), where=where)
    try:
        tensors: Any = load_safetensors(data)
        if any(name.startswith("swamp.mask/") for name in tensors):
            ticket = load_ticket(path)
            return ticket.state, {name: mask.numpy() for name, mask in ticket.masks.items()}
    except SafetensorError:
        tensors = _unpickled(data, path)
    for key in filter(None, start.prefix.split(".")):
        if not isinstance(tensors, Mapping) or key not in tensors:
            raise UserError(f"the checkpoint has no key {start.prefix!r}", where="start_from.prefix",
                            do=_prefixes_in_words(tensors))
        tensors = tensors[key]
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        keys = ", ".join(map(str, tensors)) if isinstance(tensors, Mapping) else type(tensors).__name__
        raise UserError("the checkpoint must be a state dict of tensors", got=keys[:200], where=where,
                        do="Name the key that holds it in start_from.prefix, e.g. 'state_dict'.")
    return {clean_name(str(name)): value for name, value in tensors.items()}, {}


def _prefixes_in_words(tensors: Any) -> str:
    if not isinstance(tensors, Mapping):
        return "Leave start_from.prefix empty."
    nested = [str(name) for name, value in tensors.items() if isinstance(value, Mapping)]
    if nested:
        return f"There is: {_listed(nested)}."
    return "Leave start_from.prefix empty, if the file holds the weights themselves."


def _unpickled(data: bytes, path: Path | str) -> Any:
    try:
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(_PLAIN):
            return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # what is no such file makes the unpickler raise almost anything
        reason = _why_unreadable(data, error)
        raise UserError(f"the checkpoint is neither safetensors nor a torch file of plain tensors: {reason}",
                        got=str(path), where="start_from.path", do="Save model.state_dict() alone.") from error


def _why_unreadable(data: bytes, error: Exception) -> str:
    """What torch.load refused, in a sentence; its own texts are about options of torch.load."""
    held = _REFUSED_OBJECT.search(str(error))
    if held:
        return f"besides tensors it holds an object ({held[1]}), whose code would have to be run"
    if not data:
        return "the file is empty"
    if not data.startswith(_ZIP):
        return "it begins like neither of them"
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return "the file is damaged or was cut off"
    if any(Path(name).name == "constants.pkl" for name in names):
        return "it is a TorchScript archive, and its weights alone are needed"
    return "it is a ZIP file of another kind, or holds plain data that torch does not read"


def _refuse_misfits(expected: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str) -> None:
    lines = [f"missing: {name} {tuple(value.shape)}" for name, value in expected.items()
             if name not in tensors and not is_extra(name)]
    for name, value in tensors.items():
        if name not in expected:
            lines.append(f"not in the model: {name} {tuple(value.shape)}")
        elif expected[name].shape != value.shape:
            lines.append(f"{name}: the model has {tuple(expected[name].shape)}, the checkpoint {tuple(value.shape)}")
        elif not torch.can_cast(value.dtype, expected[name].dtype):
            lines.append(f"{name}: the model has {expected[name].dtype}, the checkpoint {value.dtype}")
    lines = lines or broken_ties(tensors, expected)
    if lines:
        shown = "\n  ".join(lines[:_SHOWN]) + (f"\n  and {len(lines) - _SHOWN} more" if len(lines) > _SHOWN else "")
        raise UserError(f"{len(lines)} tensors of {path} do not fit the model:\n  {shown}\n", where="start_from.path",
                        do="Tensors that are not to be taken are named in start_from.skip, e.g. ['head.*'].")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
