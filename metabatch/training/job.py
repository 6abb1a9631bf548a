"""What the supervising process and its child say to each other."""

from __future__ import annotations

import msgspec

from metabatch.training.ladder import Rung

# A growing booster is kept this often (and seldom enough not to slow the training, see checkpoints.py).
CHECKPOINT_SECONDS = 30.0


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """One attempt to make. `parent`: process id of the supervisor; `token`: names its claim on the instance."""

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
