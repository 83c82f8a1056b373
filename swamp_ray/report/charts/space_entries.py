"""Entries of a sweep's space and their values, as figures show them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd

from swamp_ray.text.metric_names import Metric

TARGET = "pruning.target"
WORDS = {TARGET: "sparsity", "particles.count": "number of particles", "seed": "seed"}
"""Entries of the space in plain words."""


def is_numeric(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column holds numbers."""
    kind = frame.dtypes[column]
    return pd.api.types.is_numeric_dtype(kind) and not pd.api.types.is_bool_dtype(kind)


def varies(frame: pd.DataFrame, column: str) -> bool:
    """Whether a column has more than one value."""
    return len(frame[column].drop_duplicates()) > 1


def value_text(entry: str, value: Any) -> str:
    """A value of the space for people: sparsities in percent, numbers with four digits."""
    if entry == TARGET:
        return f"{100 * value:.6g} %"
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def split_and_name(metric: str, shown_as: Mapping[str, str | int] | None) -> tuple[str, Metric]:
    """Split and metric of NETWORK/SPLIT/METRIC."""
    _, split, name = metric.split("/", 2)
    return split, Metric(name, shown_as)
