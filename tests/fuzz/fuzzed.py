"""Networks and data whose form is drawn at random; their values do not depend on any global generator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

INPUTS, HIDDEN, CLASSES = 6, 12, 3
NUM_TRAIN, NUM_TEST = 90, 60
NAMES = np.array(["apple", "pear", "plum"])

LAYOUTS = ("plain", "gaps", "transposed", "reversed_strides", "one_storage", "overlapping", "expanded", "tied",
           "float64", "bfloat16", "half", "scalar", "empty", "unused", "parameter_list")
BUFFERS = ("none", "constant", "not_persistent", "bfloat16", "float8", "sparse", "integer", "float64", "complex")
NORMS = ("none", "batch", "kept_in_eval", "untracked", "cumulative", "layer", "frozen_affine")
FREEZING = ("none", "first_layer", "biases")
LABELS = ("int64", "int32", "uint8", "float", "column", "one_hot", "from_one", "strings", "negative", "not_a_number",
          "fractions", "list")
FORMS = ("arrays", "tensors", "mapping", "dataset", "named_tuples", "dataset_of_mappings", "float64", "bfloat16")


def numbers(*shape: int, seed: int, scale: float = 0.4) -> Tensor:
    """Normal numbers of a seed, float32."""
    drawn = np.random.default_rng(seed).normal(0.0, scale, shape)
    return torch.from_numpy(drawn.astype(np.float32))


def laid_out(values: Tensor, layout: str) -> Tensor:
    """The same values in memory of another form."""
    rows, columns = values.shape
    if layout == "gaps":
        whole = torch.zeros(rows, 2 * columns, dtype=values.dtype, device=values.device)
        whole[:, ::2] = values
        return whole[:, ::2]
    if layout == "transposed":
        return values.t().contiguous().t()
    if layout == "reversed_strides":
        padded = torch.zeros(columns + 3, rows, dtype=values.dtype, device=values.device)
        padded[:columns] = values.t()
        return padded[:columns].t()
    if layout == "expanded":
        return values[:1].expand(rows, columns)
    return values


class Network(nn.Module):
    """Two linear layers, the first weight in the form that is asked for."""

    def __init__(self, layout: str, buffer: str, norm: str, freezing: str) -> None:
        super().__init__()
        self.layout, self.norm_kind = layout, norm
        dtype = {"float64": torch.float64, "bfloat16": torch.bfloat16, "half": torch.float16}.get(layout, torch.float32)
        self.first = nn.Linear(INPUTS, HIDDEN, dtype=dtype)
        self.last = nn.Linear(HIDDEN, CLASSES)
        self._fill(layout, dtype)
        self.norm = self._norm(norm)
        made = make_buffer(buffer)
        if made is not None:
            self.register_buffer("extra", made, persistent=buffer != "not_persistent")
        if freezing == "first_layer":
            self.first.weight.requires_grad_(False)
        if freezing == "biases":
            self.first.bias.requires_grad_(False)
            self.last.bias.requires_grad_(False)

    def _fill(self, layout: str, dtype: torch.dtype) -> None:
        weight = numbers(HIDDEN, INPUTS, seed=1).to(dtype)
        self.first.weight = nn.Parameter(laid_out(weight, layout))
        self.first.bias = nn.Parameter(torch.zeros(HIDDEN, dtype=dtype))
        self.last.weight = nn.Parameter(numbers(CLASSES, HIDDEN, seed=2))
        self.last.bias = nn.Parameter(torch.zeros(CLASSES))
        if layout in ("one_storage", "overlapping"):
            flat = numbers(HIDDEN * INPUTS + CLASSES * HIDDEN, seed=3)
            end = HIDDEN * INPUTS
            begin = end if layout == "one_storage" else end - HIDDEN
            self.first.weight = nn.Parameter(flat[:end].view(HIDDEN, INPUTS))
            self.last.weight = nn.Parameter(flat[begin:begin + CLASSES * HIDDEN].view(CLASSES, HIDDEN))
        if layout == "tied":
            self.middle = nn.Linear(INPUTS, HIDDEN)
            self.middle.weight = self.first.weight
            self.middle.bias = nn.Parameter(torch.zeros(HIDDEN))
        if layout == "scalar":
            self.gain = nn.Parameter(torch.tensor(1.0))
        if layout == "empty":
            self.nothing = nn.Parameter(torch.zeros(0))
        if layout == "unused":
            self.unused = nn.Linear(3, 3)
            self.unused.weight = nn.Parameter(numbers(3, 3, seed=4))
            self.unused.bias = nn.Parameter(torch.zeros(3))
        if layout == "parameter_list":
            self.shifts = nn.ParameterList([nn.Parameter(torch.zeros(HIDDEN)), nn.Parameter(torch.zeros(HIDDEN))])

    def _norm(self, kind: str) -> nn.Module:
        if kind == "none":
            return nn.Identity()
        if kind == "layer":
            return nn.LayerNorm(HIDDEN)
        made = nn.BatchNorm1d(HIDDEN, track_running_stats=kind != "untracked",
                              momentum=None if kind == "cumulative" else 0.1)
        if kind == "kept_in_eval":
            assert made.running_mean is not None
            assert made.running_var is not None
            made.running_mean += 0.3
            made.running_var *= 4.0
        if kind == "frozen_affine":
            made.weight.requires_grad_(False)
            made.bias.requires_grad_(False)
        return made

    def train(self, mode: bool = True) -> Network:
        super().train(mode)
        if self.norm_kind == "kept_in_eval":
            self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.first(x.to(self.first.weight.dtype)).float()
        if self.layout == "tied":
            hidden = hidden + torch.tanh(self.middle(x))
        if self.layout == "scalar":
            hidden = hidden * self.gain
        if self.layout == "parameter_list":
            hidden = hidden + self.shifts[0] + self.shifts[1]
        return self.last(torch.relu(self.norm(hidden)))


def make_buffer(kind: str) -> Tensor | None:
    """A buffer that no computation reads."""
    makers: dict[str, Callable[[], Tensor]] = {
        "constant": lambda: torch.ones(4), "not_persistent": lambda: torch.ones(4),
        "bfloat16": lambda: torch.ones(4, dtype=torch.bfloat16),
        "float8": lambda: torch.ones(4, dtype=torch.float32).to(torch.float8_e4m3fn),
        "sparse": lambda: torch.eye(4).to_sparse(), "integer": lambda: torch.arange(4),
        "float64": lambda: torch.ones(4, dtype=torch.float64), "complex": lambda: torch.ones(4, dtype=torch.complex64)}
    return makers[kind]() if kind in makers else None


def network(layout: str = "plain", buffer: str = "none", norm: str = "none", freezing: str = "none") -> nn.Module:
    """A new network, always with the same values."""
    return Network(layout, buffer, norm, freezing)


def split(num: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Points around three centres, float32 ``[num, 6]``, and their classes."""
    centres = np.random.default_rng(7).normal(0.0, 1.0, (CLASSES, INPUTS))
    labels = np.arange(num) % CLASSES
    points = centres[labels] + np.random.default_rng(seed).normal(0.0, 0.9, (num, INPUTS))
    return points.astype(np.float32), labels


def spelled(labels: np.ndarray, kind: str) -> Any:
    """Classes as a user might write them."""
    floats = labels.astype(np.float32)
    made: dict[str, Any] = {
        "int64": labels, "int32": labels.astype(np.int32), "uint8": labels.astype(np.uint8), "float": floats,
        "column": labels[:, None], "one_hot": np.eye(CLASSES, dtype=np.float32)[labels], "from_one": labels + 1,
        "strings": NAMES[labels], "negative": labels - 1, "fractions": floats + 0.5, "list": labels.tolist()}
    if kind == "not_a_number":
        floats[3] = np.nan
        return floats
    return made[kind]


class Pair(NamedTuple):
    """A sample."""

    image: Any
    label: Any


class Samples(Dataset[Any]):
    """Samples one by one, in some form."""

    def __init__(self, inputs: np.ndarray, labels: Any, form: str) -> None:
        self.inputs, self.labels, self.form = inputs, labels, form

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> Any:
        sample, label = torch.from_numpy(self.inputs[index].copy()), self.labels[index]
        if self.form == "named_tuples":
            return Pair(sample, label)
        return {"image": sample, "label": label} if self.form == "dataset_of_mappings" else (sample, label)


def shaped(inputs: np.ndarray, labels: Any, form: str) -> Any:
    """A split in some form."""
    if form == "tensors":
        is_array = isinstance(labels, np.ndarray) and labels.dtype.kind in "iuf"
        return torch.from_numpy(inputs.copy()), torch.from_numpy(labels.copy()) if is_array else labels
    if form == "mapping":
        return {"image": inputs, "label": labels}
    if form in ("dataset", "named_tuples", "dataset_of_mappings"):
        return Samples(inputs, labels, form)
    if form == "float64":
        return inputs.astype(np.float64), labels
    if form == "bfloat16":
        return torch.from_numpy(inputs.copy()).bfloat16(), labels
    return inputs, labels


def data(labels: str = "int64", form: str = "arrays") -> dict[str, Any]:
    """All splits; validation is given, so that training uses all of its own."""
    splits = {"train": split(NUM_TRAIN, 1), "validation": split(NUM_TEST, 2), "test": split(NUM_TEST, 3)}
    return {name: shaped(inputs, spelled(classes, labels), form) for name, (inputs, classes) in splits.items()}
