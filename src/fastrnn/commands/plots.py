"""Plots as PNG files, written whole or not at all."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fastrnn import checkpoint

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
    checkpoint.write_bytes(path, buffer.getvalue())


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


def forecast(series: Any, split: int, predicted: Any, ahead: Any, path: Path) -> None:
    """Draw a series, what was predicted of its last part one window at a time, and the forecast beyond its end."""
    figure, axes = _figure(10, 3.8)
    N = len(series)
    shown = max(0, split - 2 * (N - split))  # the measured part fills about a third
    axes.plot(range(shown, N), series[shown:], "0.6", label="series")
    axes.plot(range(N - len(predicted), N), predicted, "C0", label="predicted from the values before")
    axes.plot(range(N, N + len(ahead)), ahead, "C1", label="forecast")
    axes.axvline(split, color="k", linewidth=0.8, linestyle=":", label="end of the training part")
    axes.set(xlabel="t", ylabel="value")
    axes.grid(alpha=0.3)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1))
    _write(figure, path)


def attention(source: str, translations: Mapping[str, tuple[str, Any]], path: Path) -> None:
    """Draw what was attended to, a panel a language: characters read across, characters written downwards."""
    longest = max(len(text) for text, _ in translations.values())
    figure, panels = _figure(
        1.2 + len(translations) * (1.6 + 0.3 * len(source)), 1.5 + 0.22 * longest, len(translations)
    )
    image: Any = None
    for axes, (language, (text, weights)) in zip(np.atleast_1d(panels), translations.items(), strict=True):
        image = axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), list(source))
        axes.set_yticks(range(len(text) + 1), [*text.replace(" ", "␣"), "end"])
        axes.set_title(language)
    figure.colorbar(image, ax=panels, label="attention", fraction=0.1)
    _write(figure, path)
