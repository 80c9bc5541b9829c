"""One picture of a recorded run: every contestant's time in every row, the floor, and the ratio to the best peer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fastrnn.bench import report
from fastrnn.bench.results import Record, Row

STYLES = {"fastrnn": ("#d62728", "o"), "torch": ("#1f77b4", "s"), "onnxruntime": ("#2ca02c", "D")}
OTHER = ("#9a9a9a", "^")


def draw(record: Record, path: Path) -> None:
    """Write the plot as an image, its format by the file's ending: a panel a mode and number of threads."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [
        (mode, threads, rows)
        for threads in dict.fromkeys(row.threads for row in record.rows)
        for mode in ("infer", "train")
        if (rows := [r for r in record.rows if r.threads == threads and r.case.mode == mode])
    ]
    tallest = max((len(rows) for _, _, rows in panels), default=1)
    figure = Figure(figsize=(7.5 * len(panels) + 0.5, 0.27 * tallest + 2.2), layout="constrained")
    FigureCanvasAgg(figure)
    for axes, (mode, threads, rows) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        _panel(axes, rows, report.columns(record))
        axes.set_title(f"{mode}, {threads} thread{'s' * (threads > 1)}", fontsize=11)
    handles = {label: h for a in figure.axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False)
    figure.suptitle(f"{record.machine['processor']}, {record.settings['dtype']}, {record.date[:10]}", fontsize=11)
    figure.savefig(path, dpi=130)


def _panel(axes: Any, rows: list[Row], names: list[str]) -> None:
    """Times on a logarithmic axis, a line a row; at the right how many times faster than the best peer."""
    heights = range(len(rows))
    for name in names:
        color, marker = STYLES.get(name, OTHER)
        entries = [(y, e) for y, row in enumerate(rows) if (e := row.entry(name)) is not None and e.median is not None]
        times = [1e3 * (e.median or 0) for _, e in entries]
        size = 34 if name == "fastrnn" else 20
        order = 3 if name == "fastrnn" else 2
        axes.scatter(times, [y for y, _ in entries], s=size, c=color, marker=marker, label=name, zorder=order)
    axes.scatter([1e3 * r.floor for r in rows], heights, s=90, c="black", marker="|", label="floor", zorder=1)
    axes.set_xscale("log")
    axes.set_xlabel("milliseconds (median)")
    axes.set_yticks(heights, [f"{report.label(r.case)}  {report.size(r.case)}" for r in rows], fontsize=8)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    for y, row in enumerate(rows):
        faster = row.ratio is not None and row.ratio >= 1
        text = "WRONG" if (e := row.entry("fastrnn")) and e.status == "wrong" else report.ratio(row.ratio) + "x"
        color = "#d62728" if faster else "#444444"
        axes.annotate(text, (1.01, y), xycoords=("axes fraction", "data"), fontsize=8, va="center", color=color)
