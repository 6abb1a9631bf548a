"""Genes given out to processes; what comes back does not depend on how many there are."""

from __future__ import annotations

import logging
import os
import pickle
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from multiprocessing.synchronize import Event
from typing import Any

from metabatch.errors import BudgetError, InterruptedRunError
from metabatch.resources.limits import cpu_count, memory_limits
from metabatch.resources.process import follow_parent
from metabatch.resources.signals import StopFlag

_POLL_SECONDS = 0.5
log = logging.getLogger(__name__)
# What a worker may take: 205 to 214 MiB were measured with 1,160 columns and genes of up to 100,000 nt
# (benchmarks/RESULTS.md, building); a gene of 2.3 Mnt takes 100 MiB more.
WORKER_BYTES = 512 << 20

# Of a worker process: what it was given once, and whether it is to stop.
_given: list[Any] = []
_stop: list[Event] = []


def default_workers() -> int:
    """As many as there are CPUs, but no more than the memory holds beside this process; at least 1."""
    limit, cpus = memory_limits()[0], cpu_count()
    room = max(1, limit.bytes // WORKER_BYTES - 1)
    if room < cpus:
        log.info("%d worker(s) on %d CPUs: at %d MiB each the memory holds no more (%s: %.1f GB)", room, cpus,
                 WORKER_BYTES >> 20, limit.source, limit.bytes / 2**30)  # fmt: skip
    return min(room, cpus)


def each[Item, Given, Found](
    items: Sequence[Item], work: Callable[[Given, Item, Callable[[], None]], Found], given: Given, workers: int,
    stop: StopFlag,
) -> Iterator[tuple[int, Found]]:  # fmt: skip
    """`work(given, item, stop)` of every item, with the item's place, as they come to an end.

    Parameters
    ----------
    work : callable
        Importable by name (or a partial of such): it runs in other processes.
    given : object
        Sent once to each of them.
    workers : int
        1: in this process.
    stop : StopFlag
        Looked at between items, and inside `work` by its third argument.

    Raises
    ------
    BudgetError
        A worker is gone.
    """
    if workers <= 1:
        for place, item in enumerate(items):
            stop.check()
            yield place, work(given, item, stop.check)
        return
    context = get_context("spawn")
    halt = context.Event()
    with ProcessPoolExecutor(
        min(workers, max(len(items), 1)), context, initializer=_begin, initargs=(os.getpid(), pickle.dumps(given), halt)
    ) as pool:
        try:
            waiting: dict[Future[Found], int] = {pool.submit(_do, work, item): i for i, item in enumerate(items)}
            while waiting:
                done, _ = wait(waiting, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
                stop.check()
                for future in done:
                    yield waiting.pop(future), future.result()
        except BrokenProcessPool:
            raise BudgetError(
                "a worker process ended of itself, killed by the kernel for its memory most likely",
                next_step="the same command with fewer --workers: finished shards are kept",
            ) from None
        finally:
            halt.set()
            pool.shutdown(cancel_futures=True)


def _begin(parent: int, given: bytes, halt: Event) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):  # who started us decides
        signal.signal(number, signal.SIG_IGN)
    follow_parent(parent)
    _stop.append(halt)
    _given.append(given)


def _do(work: Callable[[Any, Any, Callable[[], None]], Any], item: Any) -> Any:
    if isinstance(_given[0], bytes):  # opened in a task, so that its errors reach the parent
        _given[0] = pickle.loads(_given[0])
    return work(_given[0], item, _check)


def _check() -> None:
    if _stop[0].is_set():
        raise InterruptedRunError("stopped")
