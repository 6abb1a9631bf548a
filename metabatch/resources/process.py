"""Which process is at work, said so that another one can tell whether it is gone."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

import msgspec
import psutil

_TEXT = re.compile(r"(?P<host>.+)-(?P<namespace>\d+)-(?P<pid>\d+)-(?P<start>\d+)")


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


def parse_identity(text: str) -> Identity | None:
    """What ``str(Identity)`` wrote; None for other text."""
    match = _TEXT.fullmatch(text)
    if match is None:
        return None
    return Identity(match["host"], int(match["namespace"]), int(match["pid"]), int(match["start"]))


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
