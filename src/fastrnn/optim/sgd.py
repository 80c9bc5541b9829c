"""Stochastic gradient descent."""

from __future__ import annotations

from collections.abc import Mapping

from fastrnn import validation
from fastrnn.arrays import Array, at, copied
from fastrnn.optim.checks import check


class SGD:
    """Gradient descent, with momentum if wanted.

        m = momentum m + g      w = w - lr m            with nesterov:  w = w - lr (g + momentum m)

    Args:
        lr: learning rate; an attribute that a schedule may set between steps.
        momentum: share of the former step that goes on, in [0, 1).
        nesterov: look ahead along the momentum; it needs one greater than 0.

    Raises:
        ValueError, TypeError: an argument out of range; of another type.

    Source: Sutskever et al., "On the importance of initialization and momentum in deep learning" (2013), in the form
    of torch.optim.SGD.
    """

    def __init__(self, lr: float = 1e-2, momentum: float = 0.0, nesterov: bool = False) -> None:
        self.lr, self.momentum = validation.real("lr", lr, 0), validation.probability("momentum", momentum)
        self.nesterov = validation.boolean("nesterov", nesterov)
        if nesterov and momentum == 0:
            raise ValueError("nesterov: expected False without momentum, got True")
        self._m: dict[str, Array] = {}

    def step(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> dict[str, Array]:
        """Return the updated parameters; `params` and `grads` are left as they are.

        Args:
            params: name -> array, the same names and shapes at every step.
            grads: name -> array of the same shape, dtype and device, for every name of params.

        Raises:
            ValueError: other names than before, or a name on one side only.
            ShapeError, TypeError: an array that does not fit its parameter.
        """
        check(params, grads, self._m)
        updated = {}
        for name, w in params.items():
            g = grads[name]
            with at(w):
                if self.momentum:
                    m = self._m[name] * self.momentum + g if name in self._m else g.copy()
                    self._m[name], g = m, g + m * self.momentum if self.nesterov else m
                updated[name] = w - g * self.lr
        return updated

    def state_dict(self) -> dict[str, Array]:
        """Return copies of the momentum, `m.<name>`, ready for a safetensors file; empty without momentum."""
        return {f"m.{name}": copied(array) for name, array in self._m.items()}

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over what `state_dict` returned, on the device of the parameters; the arguments are no part of it.

        Raises:
            ValueError: the names are not those of a `state_dict`; nothing has changed then.
        """
        if wrong := [name for name in state if not name.startswith("m.")]:
            raise ValueError(f"state: expected m.<name>, got {wrong}")
        self._m = {name[2:]: copied(array) for name, array in state.items()}
