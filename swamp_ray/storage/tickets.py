"""Tickets on disk: the weights of a network and their mask, in one safetensors file without any code in it."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from swamp_ray.config.paths import expanded
from swamp_ray.data.augmentation import ImagePipeline
from swamp_ray.data.samples import ImageSettings
from swamp_ray.errors import RunError, SwampError, UserError
from swamp_ray.process_state import plain_thread
from swamp_ray.sparsity import masks as sparsity_masks
from swamp_ray.storage.names import canonical_json
from swamp_ray.storage.places import as_spot, is_url
from swamp_ray.storage.run_folder import RunDir
from swamp_ray.storage.ticket_fit import differences, extra_names, is_extra, listed, own_names, transient_names
from swamp_ray.storage.ticket_records import check_is_of_round, recorded_digest, refuse_no_file, tell_unverified

METADATA_KEY = "swamp"
MASK_PREFIX = "swamp.mask/"
TICKET_FORMAT = 1

_RESERVED = {"format", "mask_shapes", "digest"}


@dataclass(repr=False)
class Ticket:
    """A sparse network's weights and mask, and what has to be known to use it.

    Attributes:
        state: What the network's ``state_dict()`` holds, tied weights under each of their names, by its own names.
        masks: For each prunable parameter a bool tensor of its shape, True = kept.
        meta: What was recorded about the ticket, JSON.
        verified: Whether a digest has shown that this is what was written; older versions wrote none.
    """

    state: dict[str, Tensor]
    masks: dict[str, Tensor]
    meta: dict[str, Any]
    verified: bool = False

    def __repr__(self) -> str:
        parts = [f"sparsity={self.sparsity:.6g}", *([f"model={self.model_name!r}"] if self.model_name else []),
                 *([f"input_shape={self.input_shape}"] if self.input_shape else []),
                 *([f"num_classes={self.num_classes}"] if self.num_classes else []),
                 *([f"primary={self.primary!r}"] if self.primary else []),
                 f"{len(self.state)} tensors", f"{len(self.masks)} of them with a mask",
                 *([] if self.verified else ["not verified"])]
        return f"Ticket({', '.join(parts)})"

    @property
    def model_name(self) -> str | None:
        """The network: the name of a built-in one, or the import path of what builds it; None where it is unknown."""
        return self._noted("model", "name")

    @property
    def model_options(self) -> dict[str, Any]:
        """What the network was built with, besides ``num_classes`` and ``input_shape`` where it takes these."""
        return dict(self._noted("model", "options") or {})

    @property
    def input_shape(self) -> tuple[int, ...] | None:
        """Of one input, images as ``(C, H, W)``; None where an input is not one tensor, or it is unknown."""
        shape = self._noted("input", "shape")
        return None if shape is None else tuple(shape)

    @property
    def mean(self) -> tuple[float, ...] | None:
        """Per channel, subtracted from pixels in [0, 1]; None where inputs reach the network as they are."""
        return self._pixels("mean")

    @property
    def std(self) -> tuple[float, ...] | None:
        """Per channel, by which pixels in [0, 1] are divided after that; None likewise."""
        return self._pixels("std")

    @property
    def num_classes(self) -> int | None:
        """How many classes the data had; None where they had none, or it is unknown."""
        return self._noted("classes", "count")

    @property
    def class_names(self) -> tuple[str, ...]:
        """In the order of the labels; empty where they have none."""
        return tuple(self._noted("classes", "names") or ())

    @property
    def primary(self) -> str | None:
        """The metric that the network was judged by; None where it is unknown."""
        return self._noted("task", "primary")

    @plain_thread()
    def normalise(self, images: np.ndarray | Tensor) -> Tensor:
        """Images as the network reads them: float32 ``[B, C, H, W]``, on the device of the images.

        Args:
            images: uint8 ``[B, H, W, C]``, of the size that the network was trained with.

        Raises:
            UserError: They are no such images, or the ticket does not say how they are normalised.
        """
        given = torch.as_tensor(images)
        if self.mean is None or self.std is None:
            raise UserError("the ticket names no normalisation of images", where="normalise",
                            do="Give the network its inputs as they are, or normalise as its data did.")
        if given.dtype != torch.uint8 or given.ndim != 4 or given.shape[3] != len(self.mean):
            raise UserError(f"images must be uint8 [B, H, W, {len(self.mean)}]", where="normalise",
                            got=f"{str(given.dtype).removeprefix('torch.')} {list(given.shape)}")
        pixels = ImagePipeline(ImageSettings(self.mean, self.std), given.device)
        return pixels(given, None).permute(0, 3, 1, 2).contiguous()

    def _noted(self, part: str, key: str) -> Any:
        found = self.meta.get(part)
        return found.get(key) if isinstance(found, Mapping) else None

    def _pixels(self, key: str) -> tuple[float, ...] | None:
        pixels = self._noted("input", "pixels")
        return tuple(pixels[key]) if isinstance(pixels, Mapping) and key in pixels else None

    @property
    def density(self) -> float:
        """Share of the prunable weights that are kept, in [0, 1]; 1 if there are none."""
        total = sum(mask.numel() for mask in self.masks.values())
        return sum(int(mask.sum()) for mask in self.masks.values()) / total if total else 1.0

    @property
    def sparsity(self) -> float:
        """Share of the prunable weights that are zero, in [0, 1]."""
        return 1.0 - self.density

    @plain_thread()
    def load_into(self, model: nn.Module, strict: bool = True) -> nn.Module:
        """Copy what ``state_dict()`` holds into a plain model, in place and on its device.

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
        if not isinstance(model, nn.Module):
            raise UserError("a ticket is loaded into a torch.nn.Module", got=repr(model), where="load_into",
                            do="Build the network first, and give it.")
        own = own_names(model)
        state = model.state_dict()
        extra = extra_names(model)
        # Older tickets hold buffers that are not persistent, and no extra state.
        outside = transient_names(model)
        given = {name: tensor for name, tensor in self.state.items() if name not in outside}
        targets = {clean: state[name] for clean, name in own.items() if clean in given or not is_extra(clean)}
        problems = differences(given, targets, strict)
        if problems:
            raise UserError("the ticket does not fit the model:\n" + listed(problems), where="load_into",
                            do="Build the model with the settings that the ticket was made with.")
        plain = self.meta.get("extra_state") or {}
        found = {own[name]: tensor for name, tensor in given.items() if name in own}
        found |= {extra[name]: value for name, value in plain.items() if name in extra}
        model.load_state_dict(found, strict=False)
        return model

    @plain_thread()
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
            raise UserError("the ticket does not fit the model:\n" + listed([f"{name}: not prunable there" for name in
                                                                              missing]), where="to_torch_prune")
        flat = np.concatenate([self.masks[name].cpu().numpy().reshape(-1) for name in names])
        return sparsity_masks.to_torch_prune(model, layout, flat)


def ticket_bytes(state: Mapping[str, Tensor], masks: Mapping[str, Tensor], meta: Mapping[str, object]) -> bytes:
    """A ticket as the bytes of a safetensors file; equal content gives equal bytes, whatever the order of names.

    Args:
        state: Entries of a ``state_dict()``, any device and dtype; ``module.`` and ``_orig_mod.`` are stripped.
        masks: For some of the parameters a bool tensor of the same shape, True = kept.
        meta: JSON to record, without the keys ``format``, ``mask_shapes`` and ``digest``. No
            time, path or run name belongs here.

    Returns:
        A file with the tensors by name, the masks as bits (uint8) under ``swamp.mask/<name>``, and one metadata
        key ``swamp``.

    Raises:
        RunError: If a weight outside the mask is not zero.
        ValueError: If names clash, or a mask is not a bool tensor that fits its parameter.
        TypeError: If a value is no dense tensor, or `meta` is not JSON.
    """
    tensors = _cleaned({name: _storable(name, tensor) for name, tensor in state.items()})
    bits = _cleaned({name: mask.detach().cpu() for name, mask in masks.items()})
    taken = sorted(_RESERVED & meta.keys()) + [name for name in tensors if name.startswith(MASK_PREFIX)]
    if taken:
        raise ValueError(f"these names are taken by the file format: {taken}")
    for name, mask in bits.items():
        if mask.dtype != torch.bool or name not in tensors or mask.shape != tensors[name].shape:
            raise ValueError(f"the mask of {name!r} must be a bool tensor of the shape of a parameter of that name")
        outside = _num_outside(tensors[name], mask)
        if outside:
            raise RunError(f"{name}: {outside} weights outside the mask are not zero, so this is not a ticket.")
    header = {"format": TICKET_FORMAT, "mask_shapes": {name: list(mask.shape) for name, mask in bits.items()}, **meta}
    mask_bits = {MASK_PREFIX + name: torch.from_numpy(sparsity_masks.to_bits(mask.numpy().reshape(-1)))
              for name, mask in bits.items()}
    everything = {**tensors, **mask_bits}
    header["digest"] = _digest(header, everything)
    # A second metadata key would come out in random order and change the bytes.
    return safetensors.torch.save(everything, {METADATA_KEY: canonical_json(header).decode()})


def _digest(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a ticket: its metadata, and names, dtypes, shapes and values of its tensors in the order of names."""
    found = hashlib.sha256(canonical_json({key: value for key, value in header.items() if key != "digest"}))
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(canonical_json([name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]))
        # torch gives an empty tensor the stride 0, which cannot be viewed as bytes; its shape is in the digest already.
        if tensor.numel():
            found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


@plain_thread()
def load_ticket(path: str | Path, *, sha256: str | None = None) -> Ticket:
    """Read and verify a ticket. Nothing in the file is executed.

    Args:
        path: A file written from `ticket_bytes`, or the URL of one in an object store.
        sha256: Digest of the whole file, or "" where it is not known; default: as the run recorded it in whose folder
            the file lies.

    Raises:
        UserError: If there is no such file, it is not a ticket, it is not the one that was written, or its weights and
            masks contradict each other.
        RunError: The object store did not answer.
    """
    path = expanded(os.fspath(path), "load_ticket")
    data = _read_bytes(path)
    where = str(path)
    recorded = recorded_digest(path) if sha256 is None else sha256
    if recorded and hashlib.sha256(data).hexdigest() != recorded:
        raise UserError("this is not the ticket that its run recorded: the file was changed, exchanged or damaged "
                        "after it was written", where=where,
                        do="Run the same command as before: it writes the ticket anew from the stored results.")
    tensors, text = _parsed(data, where)
    try:
        header = _parse_header(text)
        is_verified = _verify(header, tensors) or bool(recorded)
        shapes: dict[str, list[int]] = header["mask_shapes"]
        bits = {name.removeprefix(MASK_PREFIX): tensors.pop(name) for name in list(tensors)
                if name.startswith(MASK_PREFIX)}
        if bits.keys() != shapes.keys():
            raise _NotATicketError(f"its masks and their shapes disagree about {sorted(bits.keys() ^ shapes.keys())}")
        masks = {name: _unpack_mask(name, bits[name], shape, tensors) for name, shape in sorted(shapes.items())}
    except _NotATicketError as error:
        raise UserError(f"this is not a sound ticket: {error}", where=where,
                        do="Use the file as swamp_ray wrote it.") from error
    if not is_verified:
        tell_unverified(path)
    return Ticket(tensors, masks, {key: value for key, value in header.items() if key not in _RESERVED}, is_verified)


def load_round_ticket(rundir: RunDir, record: Mapping[str, Any]) -> Ticket:
    """The ticket of a finished round, compared with the round's record.

    Raises:
        UserError: As for :func:`load_ticket`, or it is the ticket of another round.
        CorruptArtifactError: The record does not say where it lies.
    """
    spot = rundir.ticket_of(record)
    ticket = load_ticket(spot.location, sha256=str(record.get("ticket_sha256") or ""))
    check_is_of_round(ticket.meta, record, str(spot))
    return ticket


class _NotATicketError(Exception):
    """Why a safetensors file is not a ticket."""


def _read_bytes(path: str | Path) -> bytes:
    do = "The tickets of a run lie in its folder tickets/."
    try:
        if not is_url(path):
            refuse_no_file(Path(path))
        data = as_spot(path).read() if is_url(path) else Path(path).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        data = None
    except OSError as error:
        raise UserError(f"the ticket could not be read ({error.strerror or error})", where=str(path)) from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"this is no path of a file ({error})", where=repr(str(path)), do=do) from error
    if data is None:
        raise UserError("there is no such ticket", where=str(path), do=do)
    return data


def _parsed(data: bytes, where: str) -> tuple[dict[str, Tensor], str | None]:
    """The tensors of a safetensors file, and what stands under the one key of its metadata."""
    try:
        tensors = safetensors.torch.load(data)
        length = int.from_bytes(data[:8], "little")
        return tensors, (json.loads(data[8:8 + length]).get("__metadata__") or {}).get(METADATA_KEY)
    except (safetensors.SafetensorError, ValueError, RuntimeError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"this is not a ticket ({error})", where=where,
                        do="A ticket is a safetensors file that swamp_ray wrote, whole and unchanged.") from error


def _verify(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> bool:
    """Whether the digest shows that this is what was written; False where there is none."""
    if "digest" not in header:
        return False
    try:
        found = _digest(header, tensors)
    except (ValueError, TypeError) as error:
        raise _NotATicketError(f"its metadata are not those that were written ({error})") from error
    if found != header["digest"]:
        raise _NotATicketError("it does not hold what was written: a bit of its weights, its mask or its metadata has "
                               "changed since")
    return True


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
    outside = _num_outside(tensors[name], mask)
    if outside:
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
