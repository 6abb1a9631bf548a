"""A child process under watch: its memory is sampled, signals are passed on, and how it ended is told apart."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from metabatch.resources.limits import oom_kills
from metabatch.resources.signals import StopFlag
from metabatch.resources.usage import anonymous_bytes

_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class ChildEnd:
    """How a child ended.

    code : exit status; negative for a signal.
    output : what it wrote to stdout (no more than a pipe holds, 64 KiB).
    peak_bytes : most anonymous memory seen (the kernel's figure, sampled).
    over_budget : it was stopped because it went above the budget.
    out_of_memory : it was killed by the kernel for lack of memory, by the kernel's own count.
    abandoned : it was killed because its work is somebody else's now.
    """

    code: int
    output: bytes
    peak_bytes: int
    over_budget: bool
    out_of_memory: bool
    abandoned: bool


def supervise(command: Sequence[str], budget_bytes: int, stop: StopFlag, is_lost: Callable[[], bool]) -> ChildEnd:
    """Run `command` until it ends; kill it when its anonymous memory exceeds `budget_bytes`.

    A stop signal is passed on as TERM; the child then ends at its next safe moment. When `is_lost` says that the work
    belongs to somebody else, the child is killed.
    """
    kills_before = oom_kills()
    peak, over, told, lost = 0, False, False, False
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        while not _ended(child):
            peak = max(peak, anonymous_bytes(child.pid))
            if peak > budget_bytes and not over:
                over = True
                child.kill()
            if not lost and is_lost():
                lost = True
                child.kill()
            if stop.signal is not None and not told:
                told = True
                child.send_signal(signal.SIGTERM)
        written = child.stdout.read() if child.stdout else b""
    killed = child.returncode == -signal.SIGKILL and not over and not lost
    kills_after = oom_kills()
    # Where no counter can be read, a SIGKILL that is not ours is most likely the kernel's.
    counted = kills_before is None or kills_after is None or kills_after > kills_before
    return ChildEnd(child.returncode, written, peak, over, killed and counted, lost)


def _ended(child: subprocess.Popen[bytes]) -> bool:
    try:
        child.wait(timeout=_SAMPLE_SECONDS)
    except subprocess.TimeoutExpired:
        return False
    return True
