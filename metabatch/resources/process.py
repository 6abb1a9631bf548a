"""Which process is at work, said so that another one can tell whether it is gone."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
from pathlib import Path

import msgspec
import psutil

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class Identity(msgspec.Struct, frozen=True):
    """A process of a host and PID namespace (containers of one host have their own), and its start, s since 1970."""

    host: str
    namespace: int
    pid: int
    start: int

    def __str__(self) -> str:
        return f"{self.host}-{self.namespace}-{self.pid}-{self.start}"


def this_process() -> Identity:
    return Identity(socket.gethostname(), _namespace(), os.getpid(), int(psutil.Process().create_time()))


def is_gone(process: Identity) -> bool:
    """Whether it has surely ended; False where that cannot be seen from here (another host or PID namespace)."""
    if (process.host, process.namespace) != (socket.gethostname(), _namespace()):
        return False
    try:
        found = psutil.Process(process.pid)
        return found.status() == psutil.STATUS_ZOMBIE or abs(int(found.create_time()) - process.start) > 1
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def _namespace() -> int:
    try:
        return Path("/proc/self/ns/pid").stat().st_ino
    except OSError:
        return 0


def signal_on_death_of(parent: int, sent: signal.Signals) -> None:
    """Called by a child: have the kernel send `sent` to it when `parent` dies, however it does."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, sent, 0, 0, 0)
    if os.getppid() != parent:  # it died before we could ask
        raise SystemExit(1)


def follow_parent(parent: int) -> None:
    """Called by a child: die when `parent` dies, however it does, and be the one the kernel kills for memory."""
    signal_on_death_of(parent, signal.SIGKILL)
    with contextlib.suppress(OSError):  # some containers do not allow it; then the kernel chooses by size: us as well
        Path("/proc/self/oom_score_adj").write_text("900")
