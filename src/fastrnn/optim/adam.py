"""Adam and AdamW."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, at, copied, describe
from fastrnn.optim.checks import check, module


class Adam:
    """Adam with bias correction.

        m = beta1 m + (1 - beta1) g                 v = beta2 v + (1 - beta2) g^2
        w = w - lr / (1 - beta1^t) * m / (sqrt(v / (1 - beta2^t)) + eps)

    Args:
        lr: learning rate; an attribute that a schedule may set between steps.
        betas: (beta1, beta2), decay of the first and the second moment, in [0, 1).
        eps: added to the root of the second moment.

    Raises:
        ValueError, TypeError: an argument out of range; not a number.

    Source: Kingma and Ba, "Adam: a method for stochastic optimization" (2015), in the order of torch.optim.Adam.
    """

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        if not isinstance(betas, (tuple, list)) or len(betas) != 2:
            raise TypeError(f"betas: expected a pair of numbers, got {describe(betas)}")
        beta1, beta2 = (validation.probability("betas", beta) for beta in betas)
        self.lr, self.eps = validation.real("lr", lr, 0), validation.real("eps", eps, 0)
        self.betas, self.weight_decay = (beta1, beta2), 0.0
        self._t = 0
        self._m: dict[str, Array] = {}
        self._v: dict[str, Array] = {}

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
        self._t += 1
        beta1, beta2 = self.betas
        size, root = self.lr / (1 - beta1**self._t), math.sqrt(1 - beta2**self._t)
        updated = {}
        for name, w in params.items():
            with at(w):
                updated[name] = self._updated(name, w, grads[name], size, root)
        return updated

    def _updated(self, name: str, w: Array, g: Array, size: float, root: float) -> Array:
        xp, (beta1, beta2) = module(w), self.betas
        if name not in self._m:
            self._m[name], self._v[name] = xp.zeros_like(w), xp.zeros_like(w)
        m, v = self._m[name], self._v[name]
        d = g * (1 - beta1)
        m *= beta1
        m += d
        xp.multiply(g, g, out=d)
        d *= 1 - beta2
        v *= beta2
        v += d
        xp.sqrt(v, out=d)
        d /= root
        d += self.eps
        xp.divide(m, d, out=d)
        d *= -size
        d += w if not self.weight_decay else w * (1 - self.lr * self.weight_decay)
        return d

    def state_dict(self) -> dict[str, Array]:
        """Return copies of `step` (int64 scalar array), `m.<name>` and `v.<name>`, ready for a safetensors file."""
        state: dict[str, Array] = {"step": np.array(self._t, np.int64)}
        for kind, moments in (("m", self._m), ("v", self._v)):
            state.update({f"{kind}.{name}": copied(array) for name, array in moments.items()})
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over what `state_dict` returned, on the device of the parameters; lr, betas and eps are no part of it.

        Raises:
            ValueError: the names are not those of a `state_dict`; nothing has changed then.
        """
        m = {name[2:]: copied(array) for name, array in state.items() if name.startswith("m.")}
        v = {name[2:]: copied(array) for name, array in state.items() if name.startswith("v.")}
        if "step" not in state or m.keys() != v.keys() or len(state) != 1 + 2 * len(m):
            raise ValueError(f"state: expected step, m.<name> and v.<name> in pairs, got {sorted(state)}")
        self._t, self._m, self._v = int(state["step"]), m, v


class AdamW(Adam):
    """Adam with decoupled weight decay: `w = (1 - lr weight_decay) w` first, then Adam's step.

    Args:
        lr: learning rate; an attribute that a schedule may set between steps.
        betas: (beta1, beta2), decay of the first and the second moment, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: at least 0.

    Raises:
        ValueError, TypeError: an argument out of range; not a number.

    Source: Loshchilov and Hutter, "Decoupled weight decay regularization" (2019), as torch.optim.AdamW.
    """

    def __init__(
        self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(lr, betas, eps)
        self.weight_decay = validation.real("weight_decay", weight_decay, 0)
