"""The progress of a training run on standard error, and Ctrl-C between two of its steps."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

if TYPE_CHECKING:
    from fastrnn.models import training
    from fastrnn.models.corpus import Corpus


class Bar:
    """Shows steps, characters per second, losses and the time left.

    A bar on a terminal, and a line at every report, on a terminal or not.

    Args:
        corpus: named in the first line.
        quiet: show nothing but what must be said.
    """

    def __init__(self, corpus: Corpus, quiet: bool) -> None:
        self._console, self._quiet = Console(stderr=True, highlight=False), quiet
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}"),
            TextColumn("{task.fields[losses]}"), TimeRemainingColumn(), console=self._console,
            disable=quiet or not self._console.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task("compiling", total=None, speed="", losses="")
        self._held_out = ""
        self._first: tuple[float, int] | None = None  # when the first step was done, and the characters read by then
        self.rate = 0.0  # characters per second since the first step, which compiles
        self.seconds = 0.0  # from the beginning to the end of the training
        self._began = time.perf_counter()
        if not quiet:
            self.say(f"{corpus.name}: {len(corpus.train):,} characters to train on, {len(corpus.held_out):,} held out")

    def __enter__(self) -> Bar:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self.seconds = time.perf_counter() - self._began

    def say(self, message: str) -> None:
        """Print a line above the bar."""
        self._console.print(message, markup=False, soft_wrap=True)

    def advance(self, progress: training.Progress) -> None:
        """Show a step that was taken."""
        now = time.perf_counter()
        if self._first is None:
            self._first = now, progress.characters
        elif now > self._first[0]:
            self.rate = (progress.characters - self._first[1]) / (now - self._first[0])
        losses = f"train {progress.train_bits:.3f}"
        speed = f"{self.rate:,.0f} characters/s"
        if progress.held_out_bits is not None:
            self._held_out = f" held-out {progress.held_out_bits:.3f}"
            if not self._quiet:
                self.say(f"step {progress.step:>5}: {losses}{self._held_out} bits per character, {speed}")
        self._bar.update(
            self._task, description="training", completed=progress.step, total=progress.steps, speed=speed,
            losses=f"{losses}{self._held_out} bits/character",
        )  # fmt: skip


def each(names: Collection[str]) -> Iterator[str]:
    """Yield names of what is done one after the other; on a terminal a bar shows which, how many, and the time left."""
    console = Console(stderr=True)
    bar = Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), console=console,
        disable=not console.is_terminal, transient=True,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=len(names))
        for name in names:
            bar.update(task, description=name)
            yield name
            bar.advance(task)


@contextmanager
def interruptible(say: Callable[[str], None]) -> Iterator[Callable[[], bool]]:
    """Yield a function that tells whether Ctrl-C was pressed; the second time it raises KeyboardInterrupt at once."""
    pressed = False

    def note(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        if pressed:
            raise KeyboardInterrupt
        pressed = True
        say("finishing this step; press Ctrl-C again to stop without a checkpoint")

    previous = signal.signal(signal.SIGINT, note)
    try:
        yield lambda: pressed
    finally:
        signal.signal(signal.SIGINT, previous)
