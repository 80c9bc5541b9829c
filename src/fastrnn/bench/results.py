"""A recorded run: plain data that goes to JSON and back unchanged; the report and the plot are made from it alone."""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastrnn.bench.cases import Case

FORMAT = 1
STATUSES = ("right", "wrong", "failed", "absent", "refuses")


@dataclass(frozen=True)
class Entry:
    """One contestant in one row.

    status: "right"; "wrong" (its results are, so it has no times); "failed" (raised); "absent" (not installed);
    "refuses" (does not do this kind of case). note: what exactly. array, error: the worst array and its relative error.
    samples: seconds per call, one a turn, each the mean of `calls` calls. median, low, high: of the samples, low and
    high being the quartiles.
    """

    contestant: str
    role: str
    padded: bool
    status: str
    note: str = ""
    array: str = ""
    error: float | None = None
    calls: int = 0
    samples: tuple[float, ...] = ()
    median: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """One case at one number of threads. flops, traffic: floor in seconds: see fastrnn.roofline."""

    case: Case
    threads: int
    flops: int
    traffic: int
    floor: float
    entries: tuple[Entry, ...]

    def entry(self, contestant: str) -> Entry | None:
        """The contestant's entry, or None if it did not take part."""
        return next((e for e in self.entries if e.contestant == contestant), None)

    def best_peer(self, padded: bool = False) -> Entry | None:
        """The fastest peer with right results that does the same job (or, if `padded`, the one without lengths)."""
        peers = [e for e in self.entries if e.role == "peer" and e.padded == padded and e.median is not None]
        return min(peers, key=lambda e: e.median or math.inf, default=None)

    @property
    def ratio(self) -> float | None:
        """Time of the best peer over fastrnn's: above 1, fastrnn is faster."""
        ours, peer = self.entry("fastrnn"), self.best_peer()
        if ours is None or ours.median is None or peer is None or peer.median is None:
            return None
        return peer.median / ours.median

    @property
    def module_ratio(self) -> float | None:
        """Time of fastrnn's PyTorch module over its layer's."""
        ours, module = self.entry("fastrnn"), next((e for e in self.entries if e.role == "module"), None)
        if ours is None or ours.median is None or module is None or module.median is None:
            return None
        return module.median / ours.median


@dataclass(frozen=True)
class Peaks:
    """Measured peaks at one number of threads: FLOP/s of fused multiply-adds, bytes/s read from main memory."""

    threads: int
    flops: float
    memory: float


@dataclass(frozen=True)
class Record:
    """A whole run: what was measured, on what, with what.

    machine: processor, SIMD features, cores, system, load averages before the run, and `others`: the share of all
        processors' time that other processes used during the run, or None. versions: of the packages.
    commit: of the source tree, "" if there is none; "+" marks uncommitted changes. settings: of the run.
    """

    date: str
    seconds: float
    machine: dict[str, Any]
    versions: dict[str, str]
    commit: str
    settings: dict[str, Any]
    peaks: tuple[Peaks, ...]
    rows: tuple[Row, ...]
    format: int = field(default=FORMAT)

    @property
    def broken(self) -> list[str]:
        """What was wrong or failed, one line each."""
        return [
            f"{row.case.name}, {row.threads} thread(s): {entry.contestant} {entry.status.upper()}: {entry.note}"
            for row in self.rows
            for entry in row.entries
            if entry.status in ("wrong", "failed")
        ]

    def geometric_mean(self, threads: int, mode: str, kind: str | None = None, of: str = "ratio") -> float | None:
        """Geometric mean of the ratios of a mode, of all kinds of case or of one; None where there is no ratio.

        of: which property of a row.
        """
        ratios = [
            getattr(row, of)
            for row in self.rows
            if row.threads == threads and row.case.mode == mode and kind in (None, row.case.kind)
        ]
        return geometric_mean(r for r in ratios if r is not None)


def geometric_mean(values: Iterable[float]) -> float | None:
    """Geometric mean; None of nothing."""
    logs = [math.log(v) for v in values]
    return math.exp(sum(logs) / len(logs)) if logs else None


def to_json(record: Record) -> str:
    """Return the record as JSON text."""
    return json.dumps(asdict(record), indent=1, allow_nan=False)


def from_json(text: str) -> Record:
    """Return the record that `to_json` wrote.

    Raises:
        ValueError: the text is not such a record, or of another format version.
    """
    try:
        data = json.loads(text)
        if data["format"] != FORMAT:
            raise ValueError(f"format: expected {FORMAT}, got {data['format']!r}")
        rows = tuple(_row(row) for row in data["rows"])
        return Record(**{**data, "peaks": tuple(Peaks(**p) for p in data["peaks"]), "rows": rows})
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"record: expected what `fastrnn bench --json` writes, got {error!r}") from None


def _row(data: dict[str, Any]) -> Row:
    entries = tuple(Entry(**{**e, "samples": tuple(e["samples"])}) for e in data["entries"])
    return Row(**{**data, "case": Case(**data["case"]), "entries": entries})


def write_text(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        os.chmod(temporary, path.stat().st_mode if path.exists() else 0o644)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
