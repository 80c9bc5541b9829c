"""A learning rate that falls when progress stops."""

from __future__ import annotations

import math
from typing import Any

from fastrnn import validation


class ReduceLROnPlateau:
    """Multiply the learning rate by `factor` after more than `patience` steps in a row without a better value.

    A value is better than the best so far if it is below (for "max", above) it by more than `threshold`, relative
    (`threshold_mode="rel"`) or absolute ("abs").

    Args:
        mode: "min" or "max", which values are better.
        factor: in (0, 1).
        patience: steps without a better value that are let pass.
        threshold: at least 0.
        threshold_mode: "rel": best (1 - threshold), for "max" best (1 + threshold); "abs": best -+ threshold.
        cooldown: steps after a reduction in which none is counted as bad.
        min_lr: the learning rate does not fall below it.
        eps: a reduction by no more than this is not made.

    Raises:
        ValueError, TypeError: an argument out of range; of another type.

    Source: torch.optim.lr_scheduler.ReduceLROnPlateau, whose sequence of learning rates it has.
    """

    def __init__(
        self, mode: str = "min", factor: float = 0.1, patience: int = 10, threshold: float = 1e-4,
        threshold_mode: str = "rel", cooldown: int = 0, min_lr: float = 0.0, eps: float = 1e-8,
    ) -> None:  # fmt: skip
        validation.choice("mode", mode, ("min", "max"))
        validation.choice("threshold_mode", threshold_mode, ("rel", "abs"))
        self._sign = 1.0 if mode == "min" else -1.0
        self._relative = threshold_mode == "rel"
        self.factor = validation.real("factor", factor)
        if not 0 < self.factor < 1:
            raise ValueError(f"factor: expected 0 < factor < 1, got {factor}")
        self.patience = validation.integer("patience", patience, 0)
        self.cooldown = validation.integer("cooldown", cooldown, 0)
        self.threshold = validation.real("threshold", threshold, 0)
        self.min_lr, self.eps = validation.real("min_lr", min_lr, 0), validation.real("eps", eps, 0)
        self.best, self._bad, self._cooling = self._sign * math.inf, 0, 0

    def step(self, value: float, lr: float) -> float:
        """Note the value of a step, such as the loss on held-out data, and return the learning rate to go on with."""
        if self._better(value):
            self.best, self._bad = value, 0
        else:
            self._bad += 1
        if self._cooling:
            self._cooling -= 1
            self._bad = 0
        if self._bad > self.patience:
            self._bad, self._cooling = 0, self.cooldown
            reduced = max(lr * self.factor, self.min_lr)
            return reduced if lr - reduced > self.eps else lr
        return lr

    def state_dict(self) -> dict[str, Any]:
        """Return what decides the next steps, in types that JSON has; `best` is None before the first step."""
        best = None if math.isinf(self.best) else self.best
        return {"best": best, "bad": self._bad, "cooling": self._cooling}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` returned; the arguments are not part of it."""
        best = self._sign * math.inf if state["best"] is None else float(state["best"])
        self.best, self._bad, self._cooling = best, int(state["bad"]), int(state["cooling"])

    def _better(self, value: float) -> bool:
        sign, best = self._sign, self.best
        bound = best * (1 - sign * self.threshold) if self._relative else best - sign * self.threshold
        return sign * value < sign * bound
