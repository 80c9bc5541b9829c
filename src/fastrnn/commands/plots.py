"""Plots as PNG files, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'fastrnn[cli]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: nothing global, no window
    return figure, figure.subplots(1, columns)


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    path.write_bytes(buffer.getvalue())


def loss_curve(history: Sequence[Mapping[str, Any]], path: Path, score: str) -> None:
    """Draw the training loss and the measured score over the steps of a run."""
    figure, left = _figure(7, 3.5)
    steps = [line["step"] for line in history]
    (first,) = left.plot(steps, [line["loss"] for line in history], "C0.-", label="training loss")
    right = left.twinx()
    (second,) = right.plot(steps, [line["score"] for line in history], "C1.-", label=score)
    left.set(xlabel="step", ylabel="training loss (nats or squared units)", yscale="log")
    right.set(ylabel=score)
    left.legend(handles=[first, second], loc="upper right")
    _write(figure, path)


def gradient_flow(
    cells: Mapping[str, Sequence[float]], diagonals: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path
) -> None:
    """Draw ||dL/dh_t|| over t: of cells side by side, and of diagonal matrices beside their closed form."""
    figure, (left, right) = _figure(11, 4, 2)
    for name, norms in cells.items():
        left.plot(range(len(norms)), norms, label=name)
    left.set(title="random input, L = sum of $h_T$", ylabel=r"$\|dL/dh_t\|$")
    for k, (name, (norms, closed_form)) in enumerate(diagonals.items()):
        t = np.arange(len(norms))
        right.plot(t, norms, f"C{k}-", label=name)
        every = max(1, len(t) // 15)
        right.plot(t[::every], closed_form[::every], f"C{k}o", fillstyle="none", label=r"closed form $\|U^{T-t} 1\|$")
    right.set(title=r"$h_t = U h_{t-1} + x_t$, diagonal U")
    for axes in (left, right):
        axes.set(xlabel="t", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    _write(figure, path)
