"""What every part of a report shows: a figure, the numbers in it, and what they mean."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
from matplotlib.figure import Figure


@dataclass(frozen=True)
class Chart:
    """A figure with its data.

    Attributes:
        name: Stem of its files, e.g. ``accuracy_against_sparsity``.
        title: Its heading on the page.
        caption: What is drawn, how it was computed, and of how many runs; plain text.
        figure: The figure, without a title.
        data: Exactly what is drawn, one row a point, with names of columns that need no explanation.
    """

    name: str
    title: str
    caption: str
    figure: Figure
    data: pd.DataFrame
