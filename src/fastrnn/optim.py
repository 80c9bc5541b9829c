"""Optimisers: dictionaries of arrays in, a dictionary of new arrays out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import ModuleType

import numpy as np

from fastrnn import validation
from fastrnn.arrays import Array, array_module, describe


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
        self.betas = beta1, beta2
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
        self._check(params, grads)
        self._t += 1
        beta1, beta2 = self.betas
        size, root = self.lr / (1 - beta1**self._t), math.sqrt(1 - beta2**self._t)
        updated = {}
        for name, w in params.items():
            xp, g = _module(w), grads[name]
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
            d += w
            updated[name] = d
        return updated

    def state_dict(self) -> dict[str, Array]:
        """Return copies of `step` (int64 scalar array), `m.<name>` and `v.<name>`, ready for a safetensors file."""
        state: dict[str, Array] = {"step": np.array(self._t, np.int64)}
        for kind, moments in (("m", self._m), ("v", self._v)):
            state.update({f"{kind}.{name}": array.copy() for name, array in moments.items()})
        return state

    def load_state_dict(self, state: Mapping[str, Array]) -> None:
        """Take over what `state_dict` returned; lr, betas and eps are not part of it.

        Raises:
            ValueError: the names are not those of a `state_dict`; nothing has changed then.
        """
        m = {name[2:]: array.copy() for name, array in state.items() if name.startswith("m.")}
        v = {name[2:]: array.copy() for name, array in state.items() if name.startswith("v.")}
        if "step" not in state or m.keys() != v.keys() or len(state) != 1 + 2 * len(m):
            raise ValueError(f"state: expected step, m.<name> and v.<name> in pairs, got {sorted(state)}")
        self._t, self._m, self._v = int(state["step"]), m, v

    def _check(self, params: Mapping[str, Array], grads: Mapping[str, Array]) -> None:
        """Raise before anything is written: a step is taken whole or not at all."""
        if params.keys() != grads.keys():
            raise ValueError(f"grads: expected the names {sorted(params)}, got {sorted(grads)}")
        if self._m and params.keys() != self._m.keys():
            raise ValueError(f"params: expected the names {sorted(self._m)} as before, got {sorted(params)}")
        for name, w in params.items():
            validation.beside(f"grads[{name!r}]", grads[name], w.shape, like=w)
            if name in self._m:
                validation.beside(f"params[{name!r}]", w, self._m[name].shape, like=self._m[name])


def clip_by_global_norm(grads: Mapping[str, Array], theta: float) -> tuple[dict[str, Array], float]:
    """Scale all gradients together to the norm `theta` if theirs is greater: `g = theta g / ||g||`.

    Args:
        grads: name -> array; left as they are.
        theta: the greatest norm to let pass, > 0.

    Returns:
        The gradients (the same arrays where nothing was clipped) and ||g|| over all of them before clipping,
        summed in float64.

    Raises:
        ValueError: theta is not positive, or a gradient is not finite (scaling it would spread the NaN to all).

    Source: Pascanu et al., "On the difficulty of training recurrent neural networks" (2013).
    """
    if not theta > 0:
        raise ValueError(f"theta: expected a number greater than 0, got {theta!r}")
    squares = {name: float(_module(g).square(g, dtype=np.float64).sum()) for name, g in grads.items()}
    for name, square in squares.items():
        if not math.isfinite(square):
            raise ValueError(
                f"grads[{name!r}]: expected a finite norm, got NaN, infinity or values too large to square"
            )
    norm = math.sqrt(math.fsum(squares.values()))
    if norm <= theta:
        return dict(grads), norm
    return {name: g * g.dtype.type(theta / norm) for name, g in grads.items()}, norm


def _module(array: Array) -> ModuleType:
    xp = array_module(array)
    if xp is None:
        raise TypeError(f"params, grads: expected numpy or cupy arrays, got {describe(array)}")
    return xp
