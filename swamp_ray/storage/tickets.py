"""Tickets on disk: the weights of a network and their mask, in one safetensors file without any code in it."""

from __future__ import annotations

import contextlib
import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from swamp_ray.errors import RunError, SwampError, UserError
from swamp_ray.sparsity import masks as sparsity_masks
from swamp_ray.storage.files import check_is_file
from swamp_ray.storage.identity import canonical_json
from swamp_ray.storage.places import as_spot, is_url

METADATA_KEY = "swamp"
MASK_PREFIX = "swamp.mask/"
TICKET_FORMAT = 1

_RESERVED = {"format", "mask_shapes"}
_NUM_LISTED = 10


@dataclass(repr=False)
class Ticket:
    """A sparse network's weights and mask.

    Attributes:
        state: Parameters (tied ones under each of their names) and buffers, by the model's own names.
        masks: For each prunable parameter a bool tensor of its shape, True = kept.
        meta: What was recorded about the ticket, JSON.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    meta: dict[str, Any]

    def __repr__(self) -> str:
        return f"Ticket(sparsity={self.sparsity:.6g}, {len(self.state)} tensors, {len(self.masks)} of them with a mask)"

    @property
    def density(self) -> float:
        """Share of the prunable weights that are kept, in [0, 1]; 1 if there are none."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(int(mask.sum()) for mask in self.masks.values()) / total if total else 1.0

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are zero, in [0, 1]."""
        return 1.0 - self.density

    def load_into(self, model: nn.Module, strict: bool = True) -> nn.Module:
        """Copy parameters and buffers into a plain model, in place and on its device.

        Names are compared without ``module.`` and ``_orig_mod.``, on both sides.

        Args:
            model: A model of the same architecture.
            strict: Refuse tensors that only the ticket or only the model has; otherwise these are left alone.
                Shapes must agree in either case.

        Returns:
            The same model.

        Raises:
            UserError: If the tensors differ; it lists which. The model is then unchanged.
        """
        own = _own_names(model)
        state = model.state_dict()
        targets = {clean: state[name] for clean, name in own.items()}
        if problems := _differences(self.state, targets, strict):
            raise UserError("the ticket does not fit the model:\n" + _listed(problems), where="load_into",
                            do="Build the model with the settings that the ticket was made with.")
        model.load_state_dict({own[name]: tensor for name, tensor in self.state.items() if name in own}, strict=False)
        return model

    def to_torch_prune(self, model: nn.Module) -> nn.Module:
        """Load the ticket and put its mask into the form of ``torch.nn.utils.prune`` (weight_orig, weight_mask).

        Returns:
            The same model.

        Raises:
            UserError: If the ticket does not fit the model.
        """
        self.load_into(model)
        # Square brackets would otherwise be a pattern.
        include = [name.replace("[", "[[]") for name in self.masks]
        layout = sparsity_masks.find_prunable(model, include=include)
        names = [layer.name for layer in layout.layers]
        if set(names) != set(self.masks):
            missing = sorted(set(self.masks) - set(names))
            raise UserError("the ticket does not fit the model:\n" + _listed([f"{name}: not prunable there" for name in
                                                                              missing]), where="to_torch_prune")
        flat = np.concatenate([self.masks[name].cpu().numpy().reshape(-1) for name in names])
        return sparsity_masks.to_torch_prune(model, layout, flat)


def ticket_bytes(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], meta: Mapping[str, object]) -> bytes:
    """A ticket as the bytes of a safetensors file; equal content gives equal bytes, whatever the order of names.

    Args:
        state: Parameters and buffers by name, any device and dtype; ``module.`` and ``_orig_mod.`` are stripped.
        masks: For some of the parameters a bool tensor of the same shape, True = kept.
        meta: JSON to record, without the keys ``format`` and ``mask_shapes``. No time, path or run name belongs here.

    Returns:
        A file with the tensors by name, the masks as packed bits (uint8) under ``swamp.mask/<name>``, and one metadata
        key ``swamp``.

    Raises:
        RunError: If a weight outside the mask is not zero.
        ValueError: If names clash, or a mask is not a bool tensor that fits its parameter.
        TypeError: If a value is no dense tensor, or `meta` is not JSON.
    """
    tensors = _cleaned({name: _storable(name, tensor) for name, tensor in state.items()})
    bits = _cleaned({name: mask.detach().cpu() for name, mask in masks.items()})
    if taken := sorted(_RESERVED & meta.keys()) + [name for name in tensors if name.startswith(MASK_PREFIX)]:
        raise ValueError(f"these names are taken by the file format: {taken}")
    for name, mask in bits.items():
        if mask.dtype != torch.bool or name not in tensors or mask.shape != tensors[name].shape:
            raise ValueError(f"the mask of {name!r} must be a bool tensor of the shape of a parameter of that name")
        if outside := _num_outside(tensors[name], mask):
            raise RunError(f"{name}: {outside} weights outside the mask are not zero, so this is not a ticket.")
    header = {"format": TICKET_FORMAT, "mask_shapes": {name: list(mask.shape) for name, mask in bits.items()}, **meta}
    packed = {MASK_PREFIX + name: torch.from_numpy(sparsity_masks.to_bits(mask.numpy().reshape(-1)))
              for name, mask in bits.items()}
    # A second metadata key would come out in random order and change the bytes.
    return safetensors.torch.save({**tensors, **packed}, {METADATA_KEY: canonical_json(header).decode()})


def load_ticket(path: str | Path) -> Ticket:
    """Read and verify a ticket. Nothing in the file is executed.

    Args:
        path: A file written from `ticket_bytes`, or the URL of one in an object store.

    Raises:
        UserError: If there is no such file, it is not a ticket, or its weights and masks contradict each other.
        RunError: The object store did not answer.
    """
    with _local_copy(path) as file:
        tensors, text = _read_file(file, str(path))
    try:
        header = _parse_header(text)
        shapes: dict[str, list[int]] = header["mask_shapes"]
        bits = {name.removeprefix(MASK_PREFIX): tensors.pop(name) for name in list(tensors)
                if name.startswith(MASK_PREFIX)}
        if bits.keys() != shapes.keys():
            raise _NotATicketError(f"its masks and their shapes disagree about {sorted(bits.keys() ^ shapes.keys())}")
        masks = {name: _unpack_mask(name, bits[name], shape, tensors) for name, shape in sorted(shapes.items())}
    except _NotATicketError as error:
        raise UserError(f"this is not a sound ticket: {error}", where=str(path),
                        do="Use the file as swamp_ray wrote it.") from error
    return Ticket(tensors, masks, {key: value for key, value in header.items() if key not in _RESERVED})


class _NotATicketError(Exception):
    """Why a safetensors file is not a ticket."""


@contextlib.contextmanager
def _local_copy(path: str | Path) -> Iterator[Path]:
    """The file itself; of an object a temporary one, because safetensors reads metadata from files alone."""
    if not is_url(path):
        check_is_file(Path(path))
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="swamp-ticket-") as folder:
        copy = Path(folder) / "ticket"
        data = as_spot(path).read()
        if data is not None:
            copy.write_bytes(data)
        yield copy


def _read_file(path: Path, where: str) -> tuple[dict[str, Tensor], str | None]:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            # Cloned: the file's own tensors change, or crash the process, when someone writes into the file.
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
            return tensors, (file.metadata() or {}).get(METADATA_KEY)
    except FileNotFoundError as error:
        raise UserError("there is no such ticket", where=where,
                        do="The tickets of a run lie in its folder tickets/.") from error
    except OSError as error:
        raise UserError(f"the ticket could not be read ({error.strerror or error})", where=where) from error
    except (safetensors.SafetensorError, ValueError, RuntimeError, TypeError, KeyError) as error:
        raise UserError(f"this is not a ticket ({error})", where=where,
                        do="A ticket is a safetensors file that swamp_ray wrote, whole and unchanged.") from error


def _parse_header(text: str | None) -> dict[str, Any]:
    try:
        header = json.loads(text) if text is not None else None
    except (ValueError, RecursionError):
        header = None
    if not isinstance(header, dict) or "format" not in header:
        raise _NotATicketError(f"its metadata has no readable {METADATA_KEY!r}")
    if header["format"] != TICKET_FORMAT:
        raise _NotATicketError(f"it has format {header['format']}, but this version of swamp_ray reads {TICKET_FORMAT}")
    shapes = header.get("mask_shapes")
    if not isinstance(shapes, dict):
        raise _NotATicketError("it does not say which shapes its masks have")
    return header


def _unpack_mask(name: str, bits: Tensor, shape: object, tensors: Mapping[str, Tensor]) -> Tensor:
    if name not in tensors or list(tensors[name].shape) != shape:
        raise _NotATicketError(f"the mask of {name!r} does not fit a parameter of that name")
    num = math.prod(tensors[name].shape)
    if bits.dtype != torch.uint8 or tuple(bits.shape) != (math.ceil(num / 8),):
        raise _NotATicketError(f"the mask of {name!r} does not have one bit a weight")
    try:
        mask = torch.from_numpy(sparsity_masks.from_bits(bits.numpy(), num)).reshape(tensors[name].shape)
    except (SwampError, ValueError) as error:
        raise _NotATicketError(f"the mask of {name!r} is damaged ({error})") from error
    if outside := _num_outside(tensors[name], mask):
        raise _NotATicketError(f"{outside} weights of {name!r} outside its mask are not zero")
    return mask


def _num_outside(values: Tensor, mask: Tensor) -> int:
    return int(((values != 0) & ~mask).sum())


def _storable(name: str, tensor: Tensor) -> Tensor:
    if not isinstance(tensor, Tensor) or tensor.layout != torch.strided or tensor.is_meta or tensor.is_quantized:
        raise TypeError(f"{name!r} must be a dense tensor with values")
    # Cloned: tensors that share memory, such as tied weights, cannot be written as they are.
    return tensor.detach().to("cpu", copy=True).contiguous()


def _cleaned(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    cleaned = {sparsity_masks.clean_name(name): tensor for name, tensor in tensors.items()}
    if len(cleaned) < len(tensors):
        raise ValueError(f"some names differ only by a wrapper's prefix: {sorted(tensors)}")
    return cleaned


def _own_names(model: nn.Module) -> dict[str, str]:
    names = [name for name, value in model.state_dict().items() if isinstance(value, Tensor)]
    own = {sparsity_masks.clean_name(name): name for name in names}
    if len(own) < len(names):
        raise UserError("some of the model's names differ only by 'module.' or '_orig_mod.'", where="load_into",
                        do="Rename the submodules in question.")
    return own


def _differences(given: Mapping[str, Tensor], targets: Mapping[str, Tensor], strict: bool) -> list[str]:
    problems: list[str] = []
    for name in dict.fromkeys([*targets, *given]):
        if name not in given:
            problems += [f"{name}: only in the model"] if strict else []
        elif name not in targets:
            problems += [f"{name}: only in the ticket"] if strict else []
        elif given[name].shape != targets[name].shape:
            shapes = f"{list(given[name].shape)} in the ticket, {list(targets[name].shape)} in the model"
            problems.append(f"{name}: {shapes}")
        elif targets[name].is_meta:
            problems.append(f"{name}: the model has no memory for it (device 'meta')")
    return problems or _broken_ties(given, targets)


def _broken_ties(given: Mapping[str, Tensor], targets: Mapping[str, Tensor]) -> list[str]:
    """Names that are one tensor in the model but hold different values in the ticket."""
    first: dict[tuple[object, ...], str] = {}
    problems: list[str] = []
    for name in [name for name in targets if name in given and targets[name].numel()]:
        target = targets[name]
        other = first.setdefault((target.data_ptr(), target.dtype, target.shape, target.stride()), name)
        if other != name and not torch.equal(given[name], given[other]):
            problems.append(f"{name}: the same tensor as {other} in the model, but not in the ticket")
    return problems


def _listed(problems: list[str]) -> str:
    more = len(problems) - _NUM_LISTED
    return "".join(f"  {line}\n" for line in [*problems[:_NUM_LISTED], *([f"and {more} more"] if more > 0 else [])])
