"""Pictures of predicted against measured; needs matplotlib (``pip install 'meshwright[plots]'``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from planner.published.records import Prediction, Quantity

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def against_measured(lines: Sequence[Prediction], quantity: Quantity = "step_s", columns: int = 5) -> Figure:
    """Predicted over measured, one panel a source, each row with its 90 % interval; 1 is right.

    Only lines with both figures are drawn. The grey band is 10 % either way.
    """
    import matplotlib.pyplot as plt

    sources: dict[str, list[Prediction]] = {}
    for line in lines:
        if line.quantity == quantity and line.predicted and line.measured:
            sources.setdefault(line.case.source, []).append(line)
    rows = -(-len(sources) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.6 * columns, 2.1 * rows), sharey=True, squeeze=False)
    for axis in axes.flat[len(sources) :]:
        axis.set_visible(False)
    for axis, (source, own) in zip(axes.flat, sorted(sources.items()), strict=False):
        _panel(axis, source, own)
    figure.supylabel("predicted / measured")
    figure.tight_layout()
    return figure


def _panel(axis, source: str, lines: Sequence[Prediction]) -> None:
    measured, predicted, low, high = (
        np.array([getattr(line, name) or line.predicted for line in lines])
        for name in ("measured", "predicted", "low", "high")
    )
    axis.axhspan(0.9, 1.1, color="0.9")
    bars = [(predicted - low) / measured, (high - predicted) / measured]
    axis.errorbar(measured, predicted / measured, yerr=bars, fmt="o", ms=2.5, lw=0.4, alpha=0.7)
    axis.set_xscale("log")
    axis.set_yscale("log", base=2)
    axis.set_ylim(0.4, 2.5)
    axis.set_yticks([0.5, 1.0, 2.0], ["0.5", "1", "2"])
    error = np.mean(np.abs(predicted / measured - 1))
    axis.set_title(f"{source}: {len(lines)} rows, mean {error:.1%}", fontsize=8)
