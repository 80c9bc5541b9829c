"""The short table that comes last: how many rows each section has, what went wrong, and the ratios to cuDNN."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from benchmarks.gpu.record import read

MODES = ("infer", "train")
MOST_ERRORS = 5  # shown of each section; the file has them all


def text(folder: Path, sections: Iterable[str]) -> str:
    """What the files of the sections say."""
    return "\n".join(line for section in sections for line in _section(section, read(folder / f"{section}.json")))


def _section(section: str, content: Mapping[str, Any]) -> Iterator[str]:
    rows = content["rows"]
    right = {name: row["result"] for name, row in rows.items() if "result" in row}
    yield f"{section}: {len(right)} of {len(rows)} rows" if rows else f"{section}: not run"
    for facts in content["facts"]:
        yield f"  {facts.get('device')}, driver {facts.get('driver')}, commit {facts.get('commit')}"
    for name, result in right.items():
        if "us" in result:
            yield f"  {name:30} {result['us']:8.2f} us a barrier"
    for name, group in groups(right).items():
        yield f"  {name:30} cuDNN's time over fastrnn's: " + ", ".join(_ratios(group))
    for name, result in right.items():
        if any(chosen["others"] for chosen in result.get("plans", {}).values()):
            yield f"  {name:40} " + ", ".join(_planned(result))
    if section == "cudnn":
        for name, result in right.items():
            yield f"  {name:50} " + ", ".join(f"{mode} {t['ms']:.3f} ms" for mode, t in result["times"].items())
    errors = [(name, row["error"]) for name, row in rows.items() if "error" in row]
    for name, error in errors[:MOST_ERRORS]:
        yield f"  failed: {name}: {error}"
    if len(errors) > MOST_ERRORS:
        yield f"  and {len(errors) - MOST_ERRORS} more that failed"


def groups(results: Mapping[str, Any]) -> dict[str, list[Mapping[str, Any]]]:
    """The times of rows that compare, by the row's name up to its sizes: "deepbench training lstm-float32"."""
    found: dict[str, list[Mapping[str, Any]]] = {}
    for name, result in results.items():
        if "cudnn infer" in result.get("times", {}):
            found.setdefault(name.partition("-T")[0], []).append(result["times"])
    return found


def ratio(times: Mapping[str, Any], mode: str) -> float:
    """cuDNN's time over fastrnn's: above 1, fastrnn is faster."""
    return float(times[f"cudnn {mode}"]["ms"] / times[f"fastrnn {mode}"]["ms"])


def _planned(result: Mapping[str, Any]) -> Iterator[str]:
    """Of a row that several plans serve: the time of the one taken, the model's share of it, and the others' times."""
    for mode, chosen in result["plans"].items():
        took = result["times"][f"fastrnn {mode}"]["ms"]
        others = [f", {plan} {result['times'][f'fastrnn by {plan} {mode}']['ms']:.3f} ms" for plan in chosen["others"]]
        share = chosen["model_ms"] / took
        yield f"{mode} {chosen['plan']} {took:.3f} ms ({share:.0%} by the model)" + "".join(others)


def _ratios(group: list[Mapping[str, Any]]) -> Iterator[str]:
    for mode in MODES:
        logs = [math.log(ratio(times, mode)) for times in group]
        yield f"{mode} {math.exp(sum(logs) / len(logs)):.2f} ({math.exp(min(logs)):.2f} to {math.exp(max(logs)):.2f})"
