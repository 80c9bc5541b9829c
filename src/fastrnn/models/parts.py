"""The layers of a model under one roof: parameters by name, and the file that holds them."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Mapping
from typing import Any, Concatenate, ParamSpec, TypeVar

from fastrnn import checkpoint, validation
from fastrnn.arrays import Array, on, to_host

M = TypeVar("M")
P = ParamSpec("P")
R = TypeVar("R")


def on_its_device(method: Callable[Concatenate[Any, P], R]) -> Callable[Concatenate[Any, P], R]:
    """Make the device of a model the current one while a method runs: between its layers CuPy allocates there too."""

    @functools.wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with on(self.parts.device):
            return method(self, *args, **kwargs)

    return call


class Parts:
    """Layers by name; a parameter's name is `part.parameter`.

    Args:
        layers: part -> a recurrent layer, a layer of `fastrnn.nn`, or Dropout.
    """

    def __init__(self, **layers: Any) -> None:
        self._layers = layers
        self.device = "cpu"

    def to(self, device: str) -> None:
        """Move every layer to a device, all or, where there is no such device, none.

        Raises:
            ValueError: no device's name. ImportError: CuPy is missing. RuntimeError: there is no such GPU.
        """
        self.device = validation.device(device)
        for layer in self._layers.values():
            layer.to(self.device)

    @property
    def params(self) -> dict[str, Array]:
        """All parameters by name, read-only: `embedding.weight`, `rnn.weight_ih_l0`, `head.bias` ..."""
        return {
            f"{part}.{name}": array
            for part, layer in self._layers.items()
            for name, array in getattr(layer, "params", {}).items()
        }

    def on_host(self) -> dict[str, Array]:
        """Return copies of all parameters by name, as NumPy arrays."""
        with on(self.device):
            return {name: to_host(array) for name, array in self.params.items()}

    def update(self, params: Mapping[str, Array]) -> None:
        """Replace the named parameters by copies of these arrays, of NumPy or of the model's device, all or none.

        Raises:
            ValueError: a name that the model does not have.
            ShapeError, TypeError: an array that does not fit.
        """
        present = self.params
        for name, array in params.items():
            if name not in present:
                raise ValueError(f"params: expected names among {sorted(present)}, got {name!r}")
            validation.beside(name, array, present[name].shape, like=present[name], host=True)
        for part, layer in self._layers.items():
            named = {n.removeprefix(f"{part}."): a for n, a in params.items() if n.startswith(f"{part}.")}
            if named:
                layer.update(named)

    @staticmethod
    def gradients(**grads: Mapping[str, Array]) -> dict[str, Array]:
        """Return the gradients of several parts by the names of `params`."""
        return {f"{part}.{name}": array for part, named in grads.items() for name, array in named.items()}

    @property
    def calls(self) -> dict[str, int]:
        """Training calls of each part that draws masks, which decide the next ones."""
        return {part: layer.calls for part, layer in self._layers.items() if hasattr(layer, "calls")}

    @calls.setter
    def calls(self, calls: Mapping[str, int]) -> None:
        for part in self.calls:
            self._layers[part].calls = validation.integer(f"calls of {part}", calls[part], 0)


def save(path: str | os.PathLike[str], model: Any) -> None:
    """Write a model and its training run, if there is one, atomically to a safetensors file.

    Args:
        path: of the file.
        model: with `parts`, `arguments` (of its constructor), `facts` (what it learnt beside its parameters), in types
            that JSON has, and `run` (a `fitting.Snapshot` or None).

    Raises:
        OSError: the file cannot be written.
    """
    description = {
        "class": type(model).__name__, "arguments": model.arguments, "facts": model.facts, "calls": model.parts.calls,
        "run": None if model.run is None else model.run.description,
    }  # fmt: skip
    tensors = model.parts.on_host() | ({} if model.run is None else model.run.tensors)
    checkpoint.write(path, tensors, description)


def load(path: str | os.PathLike[str], kind: type[M], device: str) -> M:
    """Read a model of this class that `save` wrote, wherever it was, onto a device.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, foreign, or another model's; no device's name.
        ImportError, RuntimeError: CuPy or the GPU is missing.
    """
    validation.device(device)  # before the file, which may be large
    from fastrnn.models.fitting import Snapshot

    tensors, description = checkpoint.read(path)
    name = kind.__name__
    wanted = f"a checkpoint of {'an' if name[0] in 'AEIOU' else 'a'} {name}"
    if description.get("class") != name:
        raise ValueError(f"{path}: expected {wanted}, got one of {description.get('class')!r}")
    try:
        model: Any = kind(**description["arguments"])
        model.parts.update({n: tensors.pop(n) for n in model.parts.params})
        model.parts.calls = description["calls"]
        model.facts = model.facts | description["facts"]
        if description["run"] is not None:
            model.run = Snapshot(description["run"], tensors)
            model.run.check(model.parts.params)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected {wanted}, got a damaged one ({error!r})") from error
    return model.to(device)  # type: ignore[no-any-return]
