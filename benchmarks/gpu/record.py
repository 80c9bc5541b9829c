"""Rows of one section in one JSON file, written after every row, so that a run cut short goes on where it stopped."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

CUT_SHORT = "the process ended during this row"
SHORTEST_LEFT = 5.0  # seconds: with less left, no further row is begun


class DeviceLostError(RuntimeError):
    """The device answers nothing any more in this process; another one may go on."""


class Record:
    """The rows of a section, by name; a row has a `result` or an `error`, and what it was measured on and when.

    Args:
        path: the file, read if it is there.
        facts: device, versions and commit of this process; kept once for all rows that share them.
        seconds: after which no further row is begun.
        again: whether rows that failed are tried once more.
        alive: raises when the device has been lost.
    """

    def __init__(
        self, path: Path, facts: dict[str, Any], seconds: float, *, again: bool = False,
        alive: Callable[[], object] = lambda: None, clock: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        self.path, self._clock, self._again, self._alive = path, clock, again, alive
        self._end = clock() + seconds
        content = read(path)
        self.rows: dict[str, dict[str, Any]] = content["rows"]
        self._facts: list[dict[str, Any]] = content["facts"]
        if facts not in self._facts:
            self._facts.append(facts)
        self._of_this_run = self._facts.index(facts)
        self._tried: set[str] = set()
        self.left_out = 0

    def run(self, name: str, measure: Callable[[], dict[str, Any]]) -> None:
        """Measure a row that is not there yet."""
        row = self.rows.get(name)
        wanted = row is None or ("error" in row and self._again and name not in self._tried)
        if not wanted:
            return
        if self._clock() > self._end - SHORTEST_LEFT:
            self.left_out += 1
            return
        self._tried.add(name)
        self._write(name, {"error": CUT_SHORT})  # what remains if this process does not come back
        try:
            outcome: dict[str, Any] = {"result": measure()}
        except Exception as error:  # whatever went wrong belongs to this row alone
            outcome = {"error": _first_line(error)}
        self._write(name, outcome)
        if "error" in outcome:
            try:
                self._alive()
            except Exception as error:
                raise DeviceLostError(f"after {name}: {_first_line(error)}") from error

    def _write(self, name: str, outcome: dict[str, Any]) -> None:
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.rows[name] = {**outcome, "facts": self._of_this_run, "date": date}
        temporary = self.path.with_suffix(".part")
        temporary.write_text(json.dumps({"facts": self._facts, "rows": self.rows}, indent=1), encoding="utf-8")
        temporary.replace(self.path)


def read(path: Path) -> dict[str, Any]:
    """The content of a section's file; empty where there is none.

    Raises:
        ValueError: something else is in the file, which is then left alone.
    """
    if not path.exists():
        return {"facts": [], "rows": {}}
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: expected the JSON of an earlier run, got {error}") from error
    if not isinstance(content, dict) or not {"facts", "rows"} <= content.keys():
        raise ValueError(f"{path}: expected facts and rows of an earlier run")
    return content


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:300]}"
