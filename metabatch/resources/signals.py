"""TERM, USR1 and INT ask a stage to stop: at once, or at the next safe moment where it grows trees or scores rows.

Either way it exits 75.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType

from metabatch.errors import InterruptedRunError

_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopFlag:
    """Set by a signal; checked between rounds and batches."""

    def __init__(self) -> None:
        self.signal: str | None = None

    def check(self) -> None:
        """Raise InterruptedRunError when a signal came."""
        if self.signal is not None:
            raise InterruptedRunError(
                f"stopped by {self.signal}", next_step="run the same command again; finished stages are kept"
            )


@contextlib.contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """For the time of the block the stop signals raise KeyboardInterrupt. Must run in the main thread."""
    with _handled_by(signal.default_int_handler):
        yield


@contextlib.contextmanager
def stop_on_signal() -> Iterator[StopFlag]:
    """For the time of the block the stop signals only set the flag. Must run in the main thread."""
    flag = StopFlag()

    def handler(number: int, _: FrameType | None) -> None:
        flag.signal = signal.Signals(number).name

    with _handled_by(handler):
        yield flag


@contextlib.contextmanager
def _handled_by(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    previous = {s: signal.signal(s, handler) for s in _SIGNALS}
    try:
        yield
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
