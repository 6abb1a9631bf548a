"""The processes that train one model together, each on its own rows; or one alone, to which all this is nothing.

XGBoost adds up the histograms of its workers by its own collective; what we ask for between rounds (the loss of the
held-out rows, their scores at the end) goes the same way. Every worker knows label, weight and fold of all rows (some
bytes each), features of its own only, so all of them come to the same decisions.
"""

from __future__ import annotations

import contextlib
import logging
import socket
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import xgboost as xgb

from metabatch.errors import InputError, InterruptedRunError
from metabatch.training.checkpoints import Blobs, Saved, Slot
from metabatch.training.job import LOOPBACK, Place

log = logging.getLogger(__name__)
# A peer that does not answer for so long is taken for lost: longer than any worker may be behind the others.
ANSWER_SECONDS = 1800
_NOTHING: Mapping[str, np.ndarray] = MappingProxyType({})


@dataclass
class Team:
    """Who trains together.

    place : None for a process alone.
    rows : which of all rows are this worker's own.
    """

    place: Place | None = None
    rows: slice = field(default_factory=lambda: slice(None))

    @property
    def size(self) -> int:
        """How many there are."""
        return 1 if self.place is None else self.place.size

    @property
    def leads(self) -> bool:
        """Whether this worker keeps checkpoints, writes progress, and finishes the instance."""
        return self.place is None or self.place.rank == 0

    @contextlib.contextmanager
    def connected(self) -> Iterator[None]:
        """For the time of the block in touch with the others; the matrix was made before.

        Raises
        ------
        InterruptedRunError
            One of the others is gone.
        InputError
            They cannot be reached.
        """
        if self.place is None:
            yield
            return
        place, met = self.place, False
        try:
            with xgb.collective.CommunicatorContext(
                dmlc_communicator="rabit", dmlc_tracker_uri=place.tracker, dmlc_tracker_port=place.port,
                dmlc_task_id=f"{place.rank:06d}", dmlc_timeout=ANSWER_SECONDS,
            ):  # fmt: skip
                met = True
                if place.tracker == LOOPBACK:
                    _listen_on_loopback_only()
                yield
        except xgb.core.XGBoostError as error:
            if not met:
                raise InputError(
                    f"worker {place.rank} cannot reach the others",
                    expected=f"all of them to reach {place.tracker}:{place.port}, and one another on any port",
                    where=_first_lines(error),
                    next_step="--listen ADDRESS (in a Slurm job METABATCH_INTERFACE) of a network that all of them are "
                    "in, or look after the firewall",
                ) from error
            if "collective" not in str(error):
                raise
            raise InterruptedRunError(
                "a worker of the team is gone", expected=f"{place.size} of them to the end", where=_first_lines(error)
            ) from error

    def sums(self, *values: float) -> list[float]:
        """The sum over all workers of each value."""
        if self.place is None:
            return list(values)
        return [float(v) for v in xgb.collective.allreduce(np.array(values, dtype=np.float64), xgb.collective.Op.SUM)]

    def joined(self, own: np.ndarray, wanted: np.ndarray) -> np.ndarray:
        """Float32 of the `wanted` rows (bool, shape (n,): of all rows), of which each worker has its `own`."""
        if self.place is None:
            return own
        whole = np.zeros(int(np.count_nonzero(wanted)), dtype=np.float32)
        start = int(np.count_nonzero(wanted[: self.rows.start]))
        whole[start : start + len(own)] = own
        return np.asarray(xgb.collective.allreduce(whole, xgb.collective.Op.SUM))

    def gathered(self, value: float) -> list[float]:
        """One value of every worker, by rank."""
        if self.place is None:
            return [value]
        return self.sums(*(value if rank == self.place.rank else 0.0 for rank in range(self.place.size)))

    def slot(self, slot: Slot) -> Slot | TeamSlot:
        """A checkpoint for all: the leader's, which the others are told."""
        return slot if self.place is None else TeamSlot(slot, self)


class TeamSlot:
    """A checkpoint that the leader reads and writes; as `metabatch.training.checkpoints.Slot`."""

    def __init__(self, slot: Slot, team: Team) -> None:
        self._slot, self._team = slot, team

    def read(self) -> Saved | None:
        """The leader's."""
        kept = (self._slot.read(),) if self._team.leads else None
        (saved,) = xgb.collective.broadcast(kept, 0)  # an object, not None
        found: Saved | None = saved
        return found

    def keep_growing(
        self, model: Callable[[], Blobs], facts: dict[str, Any],
        arrays: Callable[[], Mapping[str, np.ndarray]] | None = None,
    ) -> None:  # fmt: skip
        """By the leader; the others do nothing."""
        if self._team.leads:
            self._slot.keep_growing(model, facts, arrays)

    def keep_finished(
        self, facts: dict[str, Any], *, model: bytes | bytearray | None = None,
        arrays: Mapping[str, np.ndarray] = _NOTHING,
    ) -> None:  # fmt: skip
        """By the leader; the others do nothing."""
        if self._team.leads:
            self._slot.keep_finished(facts, model=model, arrays=arrays)


def _listen_on_loopback_only() -> None:
    """XGBoost's workers listen on all interfaces and have no option for it: hold this process's sockets to loopback."""
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError), socket.socket(fileno=int(entry.name)) as found:
            try:
                listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                if listens and found.family in (socket.AF_INET, socket.AF_INET6):
                    found.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
            except PermissionError:  # Linux before 5.7 keeps this to root
                log.warning(
                    "XGBoost listens on a port of every interface: this kernel does not let it be held to loopback"
                )
            finally:
                found.detach()  # it is XGBoost's


def _first_lines(error: Exception) -> str:
    lines = [line.strip("- ") for line in str(error).splitlines() if line.strip() and "[bt]" not in line]
    return "; ".join(line for line in lines[1:4] if not line.startswith("Stack"))
