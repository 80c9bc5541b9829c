"""One picture of a recorded run: every contestant's time in every row, the floor, and the ratio to the best peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastrnn.bench import report
from fastrnn.bench.results import Record, Row

STYLES = {
    "fastrnn": ("#c8102e", "o"), "fastrnn.torch": ("#ee8f9c", "o"), "torch": ("#1f77b4", "s"),
    "onnxruntime": ("#2ca02c", "D"),
}  # fmt: skip
OTHER = ("#a6a6a6", "^")


def draw(record: Record, path: Path) -> None:
    """Write the plot, its format by the file's ending: a row of panels a number of threads, a column a mode."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    threads = list(dict.fromkeys(row.threads for row in record.rows))
    modes = [m for m in ("infer", "train") if any(row.case.mode == m for row in record.rows)]
    panels = {(n, m): [r for r in record.rows if (r.threads, r.case.mode) == (n, m)] for n in threads for m in modes}
    tallest = max(map(len, panels.values()))
    height = len(threads) * (0.25 * tallest + 1.1) + 0.9
    figure = Figure(figsize=(6.4 * len(modes) + 0.4, height), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(threads), len(modes), squeeze=False, sharex="col")
    for axes, ((number, mode), rows) in zip(grid.flat, panels.items(), strict=True):
        _panel(axes, rows, report.columns(record))
        mean = record.geometric_mean(number, mode)
        title = f"{mode}, {number} thread{'s' * (number > 1)}"
        axes.set_title(title if mean is None else f"{title}: geometric mean {mean:.2f}x", fontsize=11)
    for axes in grid[-1]:
        axes.set_xlabel("milliseconds, median")
    handles = {label: h for a in grid.flat for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    title = f"{record.machine['processor']}, {record.settings['dtype']}, {record.date[:10]}"
    figure.suptitle(f"{title}. Rows: cell and T, B, I=H. Right: times faster than the best peer.", fontsize=10)
    figure.savefig(path, dpi=130)


def _panel(axes: Any, rows: list[Row], names: list[str]) -> None:
    """Times on a logarithmic axis, a line a row; at the right how many times faster than the best peer."""
    for name in names:
        color, marker = STYLES.get(name, OTHER)
        entries = [(y, e) for y, row in enumerate(rows) if (e := row.entry(name)) is not None and e.median is not None]
        times = [1e3 * (e.median or 0) for _, e in entries]
        size, order = (36, 3) if name == "fastrnn" else (20, 2)
        axes.scatter(times, [y for y, _ in entries], s=size, c=color, marker=marker, label=name, zorder=order)
    floors = [1e3 * row.floor for row in rows]
    axes.scatter(floors, range(len(rows)), s=90, c="black", marker="|", label="floor", zorder=1)
    axes.set_xscale("log")
    labels = [f"{report.label(r.case).replace(f' {r.case.mode}', '')}   {report.size(r.case)}" for r in rows]
    axes.set_yticks(range(len(rows)), labels, fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.grid(axis="y", color="#eeeeee", linewidth=0.6)
    axes.set_axisbelow(True)
    for y, row in enumerate(rows):
        text, faster = _verdict(row)
        style = {"fontweight": "bold", "color": "black"} if faster else {"color": "#777777"}
        axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center", **style)


def _verdict(row: Row) -> tuple[str, bool]:
    """What stands at the right of a row, and whether fastrnn is the fastest there."""
    ours = row.entry("fastrnn")
    if ours is not None and ours.median is None:
        return ours.status.upper(), False
    return ("", False) if row.ratio is None else (f"{row.ratio:.2f}x", row.ratio >= 1)
