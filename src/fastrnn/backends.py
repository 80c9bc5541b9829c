"""Which loop runs a call: by default the compiled one of the array's device; another only when asked for by name."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import ModuleType
from typing import cast

from fastrnn.recurrence import Backend

MODULES = {"reference": "fastrnn.reference", "cpu": "fastrnn.cpu", "cuda": "fastrnn.cuda.backend"}
_imported: dict[str, ModuleType] = {}
_chosen: ContextVar[str | None] = ContextVar("fastrnn_backend", default=None)
asked = _chosen.get  # the backend that `use_backend` asks for here, None outside


@contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every call inside the `with` block on the named backend.

    A backward pass uses the backend of its forward pass. The choice holds for the current thread or task.

    Args:
        name: "reference", the plain loop on the arrays' own library; "cpu" and "cuda", the compiled ones.

    Raises:
        ValueError: no backend has this name.
    """
    if name not in MODULES:
        raise ValueError(f"backend: expected one of {', '.join(map(repr, MODULES))}, got {name!r}")
    token = _chosen.set(name)
    try:
        yield
    finally:
        _chosen.reset(token)


def current(device: str = "cpu") -> str:
    """Return the name of the backend for a call made now by a layer on `device`.

    Raises:
        TypeError: the backend that was asked for runs on another kind of device.
    """
    own, chosen = device.partition(":")[0], _chosen.get()
    if chosen not in (None, "reference", own):
        raise TypeError(f"backend: expected 'reference' or {own!r} for a layer on {device}, got {chosen!r}")
    return chosen or own


def module(name: str) -> Backend:
    """Return the backend's module, importing it on first use."""
    found = _imported.get(name)
    if found is None or sys.modules.get(MODULES[name]) is not found:  # 0.2 us; importing what is there takes 2
        found = _imported[name] = importlib.import_module(MODULES[name])
    return cast(Backend, found)
