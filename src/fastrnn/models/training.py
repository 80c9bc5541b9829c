"""One training run of a character model: what decides its remaining steps, and nothing else."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from fastrnn import validation
from fastrnn.arrays import Array, describe, to_device, to_host
from fastrnn.models.streams import Streams
from fastrnn.optim import Adam

SMOOTHING = 0.98  # of the training loss that is shown: an average over about the last 50 steps


@dataclasses.dataclass(frozen=True)
class Settings:
    """How to train.

    Args:
        steps: updates of the parameters; the learning rate falls linearly to 0 over them.
        batch: B, texts read side by side.
        window: T, characters back-propagated through; the state is carried from window to window.
        lr: Adam's learning rate at the start.
        clip: greatest global norm of the gradients.

    Raises:
        ValueError, TypeError: a setting out of range or of another type.
    """

    steps: int = 1600
    batch: int = 32
    window: int = 64
    lr: float = 6e-3
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "window"):
            validation.integer(name, getattr(self, name), 1)
        for name in ("lr", "clip"):
            if validation.real(name, getattr(self, name)) <= 0:
                raise ValueError(f"{name}: expected a number greater than 0, got {getattr(self, name)}")


class Progress(NamedTuple):
    """Where a run stands after a step; losses in bits per character."""

    step: int
    steps: int
    characters: int  # read by this step
    train_bits: float  # running average
    held_out_bits: float | None  # an estimate on part of the held-out text, at the steps that measure it


@dataclasses.dataclass(frozen=True)
class Watch:
    """What to do while a run goes on.

    Args:
        on_progress: called after each step.
        stop: asked after each step; True ends the run early, to be resumed later.
        report_every: steps between estimates of the held-out loss, and between checkpoints; another after the last.
        save_to: where checkpoints go, the last one after the last step.
        log_to: where a JSON line for each estimate goes; losses in bits per character.

    Raises:
        ValueError, TypeError: report_every is not a positive integer.
    """

    on_progress: Callable[[Progress], None] = lambda progress: None
    stop: Callable[[], bool] = lambda: False
    report_every: int = 100
    save_to: str | os.PathLike[str] | None = None
    log_to: str | os.PathLike[str] | None = None

    def __post_init__(self) -> None:
        validation.integer("report_every", self.report_every, 1)


class Snapshot(NamedTuple):
    """A run between two steps, as a checkpoint holds it."""

    description: dict[str, Any]  # in types that JSON has
    tensors: dict[str, Array]  # of NumPy: Adam's moments and the carried state

    def check(self, params: Mapping[str, Array]) -> None:
        """Raise KeyError, TypeError or ValueError unless this can be a run of a model with these parameters."""
        Settings(**self.description["settings"])
        for key in ("text", "seed", "step", "bits", "streams"):
            self.description[key]
        int(self.tensors["adam.step"])
        for name, array in params.items():
            for moment in (self.tensors[f"adam.m.{name}"], self.tensors[f"adam.v.{name}"]):
                if moment.shape != array.shape or moment.dtype != array.dtype:
                    raise ValueError(f"adam moments of {name}: expected {describe(array)}, got {describe(moment)}")


class Run:
    """The state of a run between two steps: restored from its snapshot, it goes on with the same bits.

    Args:
        settings: how to train.
        ids: [N] int64, the text.
        text: what identifies the text, kept in the checkpoint.
        seed: of the streams' offsets.
    """

    def __init__(self, settings: Settings, ids: Array, text: Mapping[str, str], seed: int) -> None:
        self.settings, self.text, self.seed = settings, dict(text), seed
        self.streams = Streams(ids, settings.batch, settings.window, seed)
        self.adam = Adam(settings.lr)
        self.step = 0
        self.bits = 0.0  # moving average of the loss that starts from 0; `progress` makes up for that
        self.history: list[dict[str, Any]] = []  # a line for each estimate of the held-out loss
        self.state: Any = None  # of the recurrent layer: h [L, B, H] or the pair (h, c)

    def next(self) -> tuple[Array, Array, Any]:
        """Return inputs and targets [T, B] of the next step and the state to start from; set its learning rate."""
        self.adam.lr = self.settings.lr * (1 - self.step / self.settings.steps)
        inputs, targets, fresh = self.streams.next()
        return inputs, targets, None if fresh else self.state

    def done(self, bits: float, state: Any) -> None:
        """Note a finished step, its loss in bits and the state after it."""
        self.step += 1
        self.bits = SMOOTHING * self.bits + (1 - SMOOTHING) * bits
        self.state = state

    def progress(self, held_out_bits: float | None) -> Progress:
        """Say where the run stands, after a step at least."""
        settings = self.settings
        read = self.step * settings.batch * settings.window
        return Progress(self.step, settings.steps, read, self.bits / (1 - SMOOTHING**self.step), held_out_bits)

    def note(self, held_out_bits: float) -> None:
        """Note an estimate of the held-out loss, in the form that the logs of all models have."""
        loss = self.progress(None).train_bits
        self.history.append({"step": self.step, "loss": loss, "score": held_out_bits, "lr": self.adam.lr})

    def snapshot(self) -> Snapshot:
        """Return everything that `restored` needs."""
        parts = self.state if isinstance(self.state, tuple) else () if self.state is None else (self.state,)
        tensors = {f"adam.{name}": to_host(array) for name, array in self.adam.state_dict().items()}
        tensors.update({f"state.{i}": to_host(part).copy() for i, part in enumerate(parts)})
        description = {
            "settings": dataclasses.asdict(self.settings), "text": self.text, "seed": self.seed, "step": self.step,
            "bits": self.bits, "streams": self.streams.state(), "history": list(self.history),
        }  # fmt: skip
        return Snapshot(description, tensors)

    @classmethod
    def restored(cls, snapshot: Snapshot, ids: Array, steps: int | None, device: str) -> Run:
        """Rebuild the run, on `device` wherever it was; `steps` is a new total, None keeps the old one.

        Raises:
            ValueError: the run has taken so many steps already.
        """
        description, tensors = snapshot
        settings = Settings(**description["settings"])
        if steps is not None:
            settings = dataclasses.replace(settings, steps=steps)
        if settings.steps <= description["step"]:
            raise ValueError(f"steps: expected more than the {description['step']} already taken, got {settings.steps}")
        run = cls(settings, ids, description["text"], description["seed"])
        run.step, run.bits, run.history = description["step"], description["bits"], list(description.get("history", []))
        run.streams.restore(description["streams"])
        moments = _named(tensors, "adam.")
        step = moments.pop("step")
        run.adam.load_state_dict({"step": step} | {name: to_device(array, device) for name, array in moments.items()})
        parts = tuple(to_device(array, device) for _, array in sorted(_named(tensors, "state.").items()))
        run.state = parts if len(parts) > 1 else parts[0] if parts else None
        return run


def _named(tensors: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in tensors.items() if name.startswith(prefix)}
