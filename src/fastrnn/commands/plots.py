"""Plots as PNG files, written whole or not at all."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import typer

from fastrnn import checkpoint

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 120
DRAWN = 1e150  # what is larger is left out, for the axis has ticks far beyond it, which must be float64 numbers too
GLYPH = re.compile(r"Glyph (\d+) .*missing from")  # matplotlib's warning, which names its own source file
FEW = 20  # values of a forecast that are marked one by one: a single one has no line


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, Any]:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("the plot needs matplotlib: pip install 'fastrnn[cli]'") from error
    figure = Figure(figsize=(width, height), layout="constrained")  # no pyplot: nothing global, no window
    return figure, figure.subplots(1, columns)


def _write(figure: Figure, path: Path) -> None:
    buffer = io.BytesIO()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        figure.savefig(buffer, format="png", dpi=DPI)
    checkpoint.write_bytes(path, buffer.getvalue())
    unknown = [found and chr(int(found[1])) for found in (GLYPH.match(str(one.message)) for one in said)]
    for one in (one for one, character in zip(said, unknown, strict=True) if character is None):
        warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if boxes := "".join(dict.fromkeys(filter(None, unknown))):
        typer.echo(f"{path}: drawn with boxes for characters that the font lacks: {boxes}", err=True)


def loss_curve(
    history: Sequence[Mapping[str, Any]], path: Path, loss: str, score: str, unit: str | None = None
) -> None:
    """Draw the training loss and the measured score over the steps of a run: on one axis if they have one unit."""
    figure, left = _figure(7, 4)
    steps, right = [line["step"] for line in history], left if unit else left.twinx()
    (first,) = left.plot(steps, [line["loss"] for line in history], "C0.-", label=loss)
    (second,) = right.plot(steps, [line["score"] for line in history], "C1s--", markersize=3, label=score)
    left.set(xlabel="step", ylabel=unit or loss)
    left.locator_params(axis="x", integer=True)
    if unit is None:
        left.set(yscale="log")
        right.set(ylabel=score)
    right.legend(handles=[first, second], loc="upper right")  # of the upper axes, so that no line crosses it
    _write(figure, path)


def gradient_flow(
    cells: Mapping[str, Sequence[float]], diagonals: Mapping[str, tuple[Sequence[float], Sequence[float]]], path: Path
) -> None:
    """Draw ||dL/dh_t|| over t: of cells side by side, and of diagonal matrices beside their closed form.

    Args:
        cells: norms by "cell" or "cell, layer k": a colour a cell, a dash a layer.
        diagonals: norms and their closed form, by name.
        path: of the PNG.
    """
    figure, (left, right) = _figure(11, 4, 2)
    layers: dict[str, int] = {}
    for name, norms in cells.items():
        cell = name.partition(",")[0]
        k = layers[cell] = layers.get(cell, -1) + 1
        style, color = (0, (6 / k, 2)) if k else "-", f"C{list(layers).index(cell)}"
        left.plot(range(len(norms)), _above_zero(norms), color, linestyle=style, label="" if k else cell)
        if name != cell and color == "C0":
            left.plot([], [], "k", linestyle=style, label=f"layer {k + 1}")
    left.set(title="random input, L = sum of $h_T$")
    for k, (name, (norms, closed_form)) in enumerate(diagonals.items()):
        t = np.arange(len(norms))
        right.plot(t, _above_zero(norms), f"C{k}-", label=name)
        every = max(1, len(t) // 15)
        right.plot(
            t[::every],
            _above_zero(closed_form)[::every],
            f"C{k}o",
            fillstyle="none",
            label=r"closed form $\|U^{T-t} 1\|$",
        )
    right.set(title=r"$h_t = U h_{t-1} + x_t$, diagonal U")
    for axes in (left, right):
        axes.set(xlabel="t", ylabel=r"$\|dL/dh_t\|$", yscale="log")
        axes.grid(alpha=0.3)
        axes.legend()
    _write(figure, path)


def _above_zero(values: Sequence[float]) -> Any:
    """The values that a logarithmic axis can show, NaN for the others: it would draw a fall to its edge for 0."""
    array = np.array(values)
    return np.where((array > 1 / DRAWN) & (array < DRAWN), array, np.nan)


def forecast(name: str, series: Any, split: int | None, predicted: Any, ahead: Any, path: Path) -> None:
    """Draw a series, what was predicted of its last part one window at a time, and the forecast beyond its end.

    Args:
        name: of the series.
        series: [N] values.
        split: where the training part ends; None without one.
        predicted: of the last values, each from those before it.
        ahead: what follows the series.
        path: of the PNG.
    """
    figure, axes = _figure(9, 4)
    N = len(series)
    unseen = max(FEW, len(ahead)) if split is None else N - split
    shown = max(0, N - 3 * unseen)  # what was not seen in training, or is forecast, fills about a third
    axes.plot(range(shown, N), series[shown:], "0.6", label="series")
    if len(predicted):
        axes.plot(range(N - len(predicted), N), predicted, "C0", label="predicted from the values before")
    marks = "C1.-" if len(ahead) < FEW else "C1-"
    axes.plot(range(N, N + len(ahead)), ahead, marks, label="forecast")
    if split is not None:
        axes.axvline(split, color="k", linewidth=0.8, linestyle=":", label="end of the training part")
    axes.set(xlabel="t (values from the start)", ylabel="value")
    axes.set_title(name, parse_math=False)
    axes.locator_params(axis="x", integer=True)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=4)  # beside it, it would take a third of the width
    _write(figure, path)


def attention(source: str, translations: Mapping[str, tuple[str, Any]], path: Path) -> None:
    """Draw what was attended to, a panel a language: characters read across, characters written downwards.

    A blank is drawn as an open box.
    """
    longest = max(len(text) for text, _ in translations.values())
    figure, panels = _figure(
        1.2 + len(translations) * (1.6 + 0.3 * len(source)), 1.5 + 0.22 * longest, len(translations)
    )
    image: Any = None
    for axes, (language, (text, weights)) in zip(np.atleast_1d(panels), translations.items(), strict=True):
        image = axes.imshow(weights, cmap="Greys", vmin=0, vmax=1, aspect="auto")
        axes.set_xticks(range(len(source)), [*source.replace(" ", "␣")], parse_math=False)
        axes.set_yticks(range(len(text) + 1), [*text.replace(" ", "␣"), "end"], parse_math=False)
        axes.set_title(language, parse_math=False)
        axes.set(xlabel="read", ylabel="written")
    figure.colorbar(image, ax=panels, label="attention", fraction=0.1)
    _write(figure, path)
