"""The layers of a model under one roof: parameters by name, and the file that holds them."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, TypeVar

from fastrnn import checkpoint, validation
from fastrnn.arrays import Array

M = TypeVar("M")


class Parts:
    """Layers by name; a parameter's name is `part.parameter`.

    Args:
        layers: part -> a recurrent layer, a layer of `fastrnn.nn`, or Dropout.
    """

    def __init__(self, **layers: Any) -> None:
        self._layers = layers

    @property
    def params(self) -> dict[str, Array]:
        """All parameters by name, read-only: `embedding.weight`, `rnn.weight_ih_l0`, `head.bias` ..."""
        return {
            f"{part}.{name}": array
            for part, layer in self._layers.items()
            for name, array in getattr(layer, "params", {}).items()
        }

    def update(self, params: Mapping[str, Array]) -> None:
        """Replace the named parameters by copies of these arrays, all or none.

        Raises:
            ValueError: a name that the model does not have.
            ShapeError, TypeError: an array that does not fit.
        """
        present = self.params
        for name, array in params.items():
            if name not in present:
                raise ValueError(f"params: expected names among {sorted(present)}, got {name!r}")
            validation.beside(name, array, present[name].shape, like=present[name])
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
    tensors = model.parts.params | ({} if model.run is None else model.run.tensors)
    checkpoint.write(path, tensors, description)


def load(path: str | os.PathLike[str], kind: type[M]) -> M:
    """Read a model of this class that `save` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it is damaged, foreign, or another model's.
    """
    from fastrnn.models.fitting import Snapshot

    tensors, description = checkpoint.read(path)
    name = kind.__name__
    if description.get("class") != name:
        raise ValueError(f"{path}: expected a checkpoint of a {name}, got one of {description.get('class')!r}")
    try:
        model: Any = kind(**description["arguments"])
        model.parts.update({n: tensors.pop(n) for n in model.parts.params})
        model.parts.calls = description["calls"]
        model.facts = model.facts | description["facts"]
        if description["run"] is not None:
            model.run = Snapshot(description["run"], tensors)
            model.run.check(model.parts.params)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path}: expected a checkpoint of a {name}, got a damaged one ({error!r})") from error
    return model  # type: ignore[no-any-return]
