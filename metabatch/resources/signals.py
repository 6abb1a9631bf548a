"""TERM, USR1 and INT ask a stage to stop at the next safe moment; it then exits 75."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
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
def stop_on_signal() -> Iterator[StopFlag]:
    """Catch the stop signals for the time of the block. Must run in the main thread."""
    flag = StopFlag()

    def handler(number: int, _: FrameType | None) -> None:
        flag.signal = signal.Signals(number).name

    previous = {s: signal.signal(s, handler) for s in _SIGNALS}
    try:
        yield flag
    finally:
        for number, old in previous.items():
            signal.signal(number, old)
