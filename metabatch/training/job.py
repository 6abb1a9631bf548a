"""What the supervising process and its child say to each other."""

from __future__ import annotations

import signal

import msgspec

from metabatch.resources.supervise import ChildEnd
from metabatch.training.ladder import Rung

# A growing booster is kept this often (and seldom enough not to slow the training, see checkpoints.py).
CHECKPOINT_SECONDS = 30.0
LOOPBACK = "127.0.0.1"
# What workers are told: to stop at the next safe moment, or to end at once.
STOP, END = "stop", "end"
# Signals that somebody sends, against those of a crash.
_SENT = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1}


class Place(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's place in its team. `tracker`, `port`: where XGBoost's workers find each other."""

    rank: int
    size: int
    tracker: str
    port: int


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to make. `parent`: process id of the supervisor; `token`: names its claim on the instance.

    place : of a worker of a distributed attempt.
    scheduler, listen : for whoever leads the workers: their Dask scheduler (None: make workers here), and the address
        where the workers find each other (None: chosen by the scheduler's).
    """

    run: str
    index: int
    rung: Rung | None
    threads: int
    parent: int
    token: str
    checkpoint_seconds: float
    predicted_peak_bytes: int
    limit_bytes: int
    limit_source: str
    log_level: int
    place: Place | None = None
    scheduler: str | None = None
    listen: str | None = None


class Report(msgspec.Struct, frozen=True, kw_only=True):
    """How an attempt ended; the parts of an error as in `metabatch.errors`, `errno` for one of the file system."""

    outcome: str
    exit_code: int
    message: str | None = None
    expected: str | None = None
    where: str | None = None
    next_step: str | None = None
    errno: int | None = None
    seconds: float = 0.0
    measured_peak_bytes: int = 0


def report_of(end: ChildEnd) -> Report:
    """What a child says of itself, or, when it had no time to, what its end says."""
    if end.over_budget:
        return Report(outcome="over-budget", exit_code=4, message=f"reached {_gb(end.peak_bytes)} and was stopped")
    if end.out_of_memory:
        return Report(
            outcome="out-of-memory", exit_code=4, message=f"killed by the kernel's OOM killer at {_gb(end.peak_bytes)}"
        )
    try:
        return msgspec.json.decode(end.output, type=Report)
    except msgspec.MsgspecError:
        if -end.code in _SENT:
            message = f"the training process was killed by signal {-end.code}, not for memory"
            return Report(outcome="killed", exit_code=75, message=message, next_step="run the same command again")
        if end.code < 0:  # a fault of its own: to run it again would end the same way
            message = f"the training process crashed (signal {-end.code}, {signal.strsignal(-end.code)})"
            return Report(outcome="failed", exit_code=70, message=message)
        return Report(outcome="failed", exit_code=70, message=f"the training process ended with status {end.code}")


def _gb(amount: int) -> str:
    return f"{amount / 2**30:.2f} GB"
