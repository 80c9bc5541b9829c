"""The training loop of the models: Adam, clipping, a learning rate that falls to 0, checkpoints."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from fastrnn import checkpoint, validation
from fastrnn.arrays import Array, copied, describe, fetched, on, to_device, to_host
from fastrnn.models.parts import Parts
from fastrnn.optim import Adam
from fastrnn.optim.clipping import clipped, squares

SMOOTHING = 0.98  # of the training loss that is shown: an average over about the last 50 steps


@dataclasses.dataclass(frozen=True)
class Schedule:
    """How to train.

    Args:
        steps: updates of the parameters; the learning rate falls linearly to 0 over them.
        batch: sequences a step.
        lr: Adam's learning rate at the start.
        clip: greatest global norm of the gradients.
        evaluate_every: steps between two measurements, and between two checkpoints.
        patience: measurements in a row without a better score that are let pass; then the run ends. At the end of such
            a run the parameters with the best score return: what is reported must be measured on other data. None:
            never.

    Raises:
        ValueError, TypeError: a setting out of range or of another type.
    """

    steps: int = 1000
    batch: int = 32
    lr: float = 1e-2
    clip: float = 1.0
    evaluate_every: int = 100
    patience: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "evaluate_every"):
            validation.integer(name, getattr(self, name), 1)
        if self.patience is not None:
            validation.integer("patience", self.patience, 0)
        for name in ("lr", "clip"):
            if validation.real(name, getattr(self, name)) <= 0:
                raise ValueError(f"{name}: expected a number greater than 0, got {getattr(self, name)}")


class Point(NamedTuple):
    """Where a run stands after a step."""

    step: int
    steps: int
    loss: float  # of training, a running average
    score: float | None  # what was measured at this step, less is better; None where nothing was


@dataclasses.dataclass(frozen=True)
class Observer:
    """What to do beside a run.

    Args:
        on_point: called after each step.
        stop: asked after each step; True ends the run early, to be resumed later.
        save_to: where checkpoints go, at each measurement and at the end.
        log_to: where a JSON line for each measurement goes.
    """

    on_point: Callable[[Point], None] = lambda point: None
    stop: Callable[[], bool] = lambda: False
    save_to: str | os.PathLike[str] | None = None
    log_to: str | os.PathLike[str] | None = None


class Snapshot(NamedTuple):
    """A run between two steps, as a checkpoint holds it."""

    description: dict[str, Any]  # in types that JSON has
    tensors: dict[str, Array]  # of NumPy: Adam's moments and the best parameters

    def check(self, params: Mapping[str, Array]) -> None:
        """Raise KeyError, TypeError or ValueError unless this can be a run of a model with these parameters."""
        Schedule(**self.description["schedule"])
        for key in ("data", "step", "loss", "history", "best", "bad"):
            self.description[key]
        kinds = ["adam.m", "adam.v", *(["best"] if any(n.startswith("best.") for n in self.tensors) else [])]
        int(self.tensors["adam.step"])
        for name, array in params.items():
            for kind in kinds:
                kept = self.tensors[f"{kind}.{name}"]
                if kept.shape != array.shape or kept.dtype != array.dtype:
                    raise ValueError(f"{kind}.{name}: expected {describe(array)}, got {describe(kept)}")


class Trainable(Protocol):
    """What a model needs to be trained here."""

    parts: Parts
    run: Snapshot | None

    def loss(self, batch: Any) -> tuple[Any, Callable[[], dict[str, Array]]]:
        """Return the loss of a batch and `backward() -> gradients` by name."""

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a checkpoint."""


class Run:
    """The state of a run between two steps: restored from its snapshot, it goes on with the same bits."""

    def __init__(self, schedule: Schedule, data: str) -> None:
        self.schedule, self.data, self.adam = schedule, data, Adam(schedule.lr)
        self.step, self.average, self.bad = 0, 0.0, 0
        self.best: float | None = None
        self.best_params: dict[str, Array] = {}
        self.history: list[dict[str, Any]] = []

    def complete(self) -> bool:
        """Whether all steps are taken, or patience is at an end."""
        patience = self.schedule.patience
        return self.step >= self.schedule.steps or (patience is not None and self.bad > patience)

    @property
    def loss(self) -> float:
        """Running average of the training loss."""
        return self.average / (1 - SMOOTHING**self.step) if self.step else math.nan

    def take(self, model: Trainable, batch: Any) -> None:
        """Take one step."""
        self.adam.lr = self.schedule.lr * (1 - self.step / self.schedule.steps)
        value, backward = model.loss(batch)
        grads = backward()
        loss, *norms = fetched([value, *squares(grads)])  # once a step a GPU is waited for
        if not math.isfinite(loss):
            raise ValueError(
                f"lr: the loss became {loss} at step {self.step + 1}; expected less than {self.schedule.lr}"
            )
        grads, _ = clipped(grads, norms, self.schedule.clip)
        model.parts.update(self.adam.step(model.parts.params, grads))
        self.step += 1
        self.average = SMOOTHING * self.average + (1 - SMOOTHING) * loss

    def note(self, score: float, params: Mapping[str, Array]) -> None:
        """Note a measurement."""
        self.history.append({"step": self.step, "loss": self.loss, "score": score, "lr": self.adam.lr})
        if self.schedule.patience is None:
            return
        if self.best is None or score < self.best:
            self.best, self.bad = score, 0
            self.best_params = {name: copied(array) for name, array in params.items()}
        else:
            self.bad += 1

    def snapshot(self) -> Snapshot:
        """Return everything that `restored` needs."""
        description = {
            "schedule": dataclasses.asdict(self.schedule), "data": self.data, "step": self.step, "loss": self.average,
            "history": list(self.history), "best": self.best, "bad": self.bad,
        }  # fmt: skip
        tensors = {f"adam.{name}": array for name, array in self.adam.state_dict().items()}
        tensors |= {f"best.{name}": array for name, array in self.best_params.items()}
        return Snapshot(description, {name: to_host(array) for name, array in tensors.items()})

    @classmethod
    def restored(cls, snapshot: Snapshot, data: str, schedule: Schedule, device: str) -> Run:
        """Rebuild the run on the same data; it goes on on `device`, wherever it was before."""
        description, tensors = snapshot
        run = cls(schedule, description["data"])
        if data != run.data:
            raise ValueError(f"data: expected {run.data} as at the start of the run, got {data}")
        run.step, run.average, run.bad = description["step"], description["loss"], description["bad"]
        run.best, run.history = description["best"], list(description["history"])
        moments = {n[5:]: array for n, array in tensors.items() if n.startswith("adam.")}
        step = moments.pop("step")
        run.adam.load_state_dict({"step": step} | {name: to_device(array, device) for name, array in moments.items()})
        run.best_params = {n[5:]: array for n, array in tensors.items() if n.startswith("best.")}
        if run.complete():
            raise ValueError(
                f"steps: expected more than the {run.step} already taken of a run that is not at its end, "
                f"got {run.schedule.steps}"
            )
        return run


def schedule_of(model: Trainable, given: Schedule | None, default: Schedule, resume: bool) -> Schedule:
    """Return the schedule to go by: of a resumed run its own, with the steps of `given` as a new total if there is one.

    Raises:
        ValueError: nothing to resume.
    """
    if not resume:
        return given or default
    if model.run is None:
        raise ValueError("resume: expected a model with a training run, got one without")
    kept = Schedule(**model.run.description["schedule"])
    return kept if given is None else dataclasses.replace(kept, steps=given.steps)


def fit(
    model: Trainable, batch_at: Callable[[int], Any], evaluate: Callable[[], float], schedule: Schedule,
    observer: Observer | None, data: str, *, resume: bool = False,
) -> Point:  # fmt: skip
    """Train from the present parameters, or go on with the run that was stopped or that was loaded.

    Args:
        model: what is trained.
        batch_at: the batch of a step, of nothing but its number: a resumed run then has the bits of an unbroken one.
        evaluate: measures the model; less is better.
        schedule: how to train, as `schedule_of` returns it.
        observer: what to do beside it.
        data: identifies the data, which a resumed run must find again.
        resume: go on instead of beginning.

    Returns:
        Where the run stands.

    Raises:
        ValueError: the loss is no longer finite; to be resumed: other data, or a complete run.
        OSError: a checkpoint or the log cannot be written.
    """
    with on(model.parts.device):
        return _fit(model, batch_at, evaluate, schedule, observer or Observer(), data, resume)


def _fit(
    model: Trainable, batch_at: Callable[[int], Any], evaluate: Callable[[], float], schedule: Schedule,
    watch: Observer, data: str, resume: bool,
) -> Point:  # fmt: skip
    if resume and model.run is not None:
        run = Run.restored(model.run, data, schedule, model.parts.device)
    else:
        run = Run(schedule, data)
    model.run = None  # until the run stands still again: a step that raises must not be resumed
    stopped = False
    while not (run.complete() or stopped):
        run.take(model, batch_at(run.step))
        score = None
        if run.step % run.schedule.evaluate_every == 0 or run.step == run.schedule.steps:
            score = evaluate()
            run.note(score, model.parts.params)
        stopped = watch.stop()
        if run.complete() and run.best_params:
            model.parts.update(run.best_params)
        if stopped or score is not None:
            model.run = run.snapshot()
            _write(model, run, watch)
        watch.on_point(Point(run.step, run.schedule.steps, run.loss, score))
    return Point(run.step, run.schedule.steps, run.loss, run.history[-1]["score"] if run.history else None)


def _write(model: Trainable, run: Run, watch: Observer) -> None:
    if watch.save_to is not None:
        model.save(watch.save_to)
    if watch.log_to is not None:
        write_log(watch.log_to, run.history)


def write_log(path: str | os.PathLike[str], history: Sequence[Mapping[str, Any]]) -> None:
    """Write a line of JSON for each measurement; the file appears whole, or the old one stays.

    Raises:
        OSError: the file cannot be written.
    """
    checkpoint.write_bytes(path, "".join(json.dumps(line) + "\n" for line in history).encode())
