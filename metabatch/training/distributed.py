"""The process that leads a distributed attempt: workers are claimed, started on their shares, and watched to the end.

It reads no data. The workers are Dask's: of a scheduler that is there already, or made here for the time of the
attempt. One of them leads the others in training (rank 0) and publishes the instance. When a worker is lost the others
are ended, and the attempt with them: the same command goes on from the last checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import dask
import msgspec
from distributed import Client, Future, LocalCluster, Lock
from distributed.comm import CommClosedError
from distributed.scheduler import KilledWorker
from distributed.utils import get_ip
from xgboost.core import XGBoostError
from xgboost.tracker import RabitTracker

from metabatch.errors import InputError, InterruptedRunError
from metabatch.resources.limits import cpu_limits
from metabatch.resources.signals import StopFlag
from metabatch.rundir.layout import InstanceDir, RunDir
from metabatch.rundir.publish import write_bytes
from metabatch.rundir.scratch import private_folder
from metabatch.training.job import END, LOOPBACK, STOP, Job, Place, Report
from metabatch.training.remote import run_share

log = logging.getLogger(__name__)
# Workers that a scheduler does not have yet are waited for; those that others use, without end.
JOINING_SECONDS = 120.0
REACHING_SECONDS = 15.0
# A worker is lost when its connection breaks, or when the scheduler has not heard of it for so long.
SILENT_SECONDS = 60
# After one worker ended badly the others get so long to say how, and then to be gone.
GRACE_SECONDS, GONE_SECONDS = 10.0, 15.0
_LOOK_SECONDS = 0.5
_SAY_SECONDS = 30.0
_LOST = "lost"


def lead(job: Job, stop: StopFlag) -> Report:
    """Have the workers train the instance of `job`; the report of the one that leads, or of what went wrong.

    Raises
    ------
    InputError
        The scheduler cannot be reached, or has too few workers; or `--listen` is no address of this machine.
    InterruptedRunError
        `stop` was set while workers were waited for, or the scheduler is gone.
    """
    if job.rung is None or not job.rung.workers:
        raise ValueError("a rung without workers")
    logging.getLogger("distributed").setLevel(logging.WARNING)
    try:
        return _lead(job, job.rung.workers, stop)
    except (CommClosedError, TimeoutError) as error:
        raise InterruptedRunError(
            f"the Dask scheduler is gone: {error}", next_step="run the same command again, when there is one"
        ) from None


def _lead(job: Job, size: int, stop: StopFlag) -> Report:
    instance = RunDir(Path(job.run)).instance(job.index)
    if job.listen is not None:
        _check_address(job.listen)
    with _connection(job, size) as client, _claimed(client, size, stop) as addresses:
        listen = _listening(job, client)
        if job.scheduler is None and not job.threads:  # workers made here share the CPUs
            job = msgspec.structs.replace(job, threads=max(1, cpu_limits()[0].count // size))
        tracker = RabitTracker(n_workers=size, host_ip=listen, sortby="task")
        try:
            tracker.start()
            port = int(tracker.worker_args()["dmlc_tracker_port"])
            log.info("%d workers (%s), in touch through %s:%d", size, ", ".join(addresses), listen, port)
            futures = {}
            for rank, address in enumerate(addresses):
                own = msgspec.structs.replace(job, place=Place(rank=rank, size=size, tracker=listen, port=port))
                text = msgspec.json.encode(own).decode()
                key = f"metabatch-{job.token}-{rank}"
                futures[rank] = client.submit(run_share, text, key=key, workers=[address], pure=False, retries=0)
            return _outcome(_watched(client, futures, addresses, instance, job, stop), stop)
        finally:
            instance.orders.unlink(missing_ok=True)
            with contextlib.suppress(XGBoostError):  # when its workers did not say good-bye
                tracker.free()


@contextlib.contextmanager
def _connection(job: Job, size: int) -> Iterator[Client]:
    """A client of the scheduler that was named, or of one made here, with its workers."""
    with contextlib.ExitStack() as stack:
        if job.scheduler is None:
            folder = stack.enter_context(private_folder("dask"))
            stack.enter_context(dask.config.set({
                "distributed.scheduler.worker-ttl": f"{SILENT_SECONDS} s", "distributed.worker.use-file-locking": False,
            }))  # fmt: skip
            cluster = stack.enter_context(
                LocalCluster(
                    n_workers=size, threads_per_worker=1, processes=True, host=job.listen or LOOPBACK, memory_limit=0,
                    dashboard_address=None, worker_dashboard_address=None, local_directory=str(folder),
                    silence_logs=logging.ERROR,
                )
            )  # fmt: skip
            yield stack.enter_context(Client(cluster, set_as_default=False))
            return
        where = job.scheduler
        try:
            if "://" not in where and Path(where).is_file():
                client = Client(scheduler_file=where, set_as_default=False, timeout=REACHING_SECONDS)
            else:
                client = Client(where, set_as_default=False, timeout=REACHING_SECONDS)
        except (OSError, ValueError, TypeError) as error:
            raise InputError(
                f"the Dask scheduler cannot be reached: {error}",
                expected="the address of a scheduler (tcp://…, tls://…), or its scheduler file",
                where=where,
                next_step="start it, or leave out --dask-scheduler: workers are then started here",
            ) from None
        yield stack.enter_context(client)


@contextlib.contextmanager
def _claimed(client: Client, size: int, stop: StopFlag) -> Iterator[list[str]]:
    """The addresses of `size` workers that nobody else trains on, for the time of the block."""
    begun = said = time.monotonic()
    choosing, locks = _lock(client, "metabatch-claims"), dict[str, Lock]()
    while True:
        stop.check()
        known = sorted(_workers(client))
        mine: list[str] = []
        # One chooses at a time: two halves of a cluster would wait for ever.
        if choosing.acquire(timeout=REACHING_SECONDS):
            for address in known:
                if address not in locks:  # each one made asks the scheduler now and then, as long as this process lives
                    locks[address] = _lock(client, f"metabatch-{address}")
                if len(mine) < size and locks[address].acquire(timeout=0):
                    mine.append(address)
            if len(mine) < size:
                _release(locks, mine)
                mine.clear()
            choosing.release()
        if mine:
            break
        now = time.monotonic()
        if len(known) >= size:
            begun = now
        elif now - begun > JOINING_SECONDS:
            raise InputError(
                f"the Dask scheduler has {len(known)} worker(s)", expected=f"{size}, as planned (--workers)",
                where=_address(client), next_step="start more workers, or plan again with fewer",
            )  # fmt: skip
        if now - said > _SAY_SECONDS:
            said = now
            log.info("waiting for %d workers: the scheduler has %d, some of them in use", size, len(known))
        time.sleep(_LOOK_SECONDS)
    try:
        yield mine
    finally:
        _release(locks, mine)


def _lock(client: Client, name: str) -> Lock:
    return Lock(name, scheduler_rpc=client.scheduler, loop=client.loop)


def _release(locks: Mapping[str, Lock], addresses: list[str]) -> None:
    for address in addresses:
        with contextlib.suppress(OSError):  # the scheduler is gone, and its locks with it
            locks[address].release()


def _check_address(listen: str) -> None:
    """Refuse what is no address of this machine."""
    try:
        with socket.create_server((listen, 0), family=socket.AF_INET6 if ":" in listen else socket.AF_INET):
            pass
    except OSError as error:
        raise InputError(
            f"nothing can listen on {listen}: {error.strerror or error}", expected="an address of this machine",
            where="--listen", next_step="another one, or leave it out",
        ) from None  # fmt: skip


def _listening(job: Job, client: Client) -> str:
    """Where the workers find each other: as asked for, else where this machine reaches the scheduler from."""
    asked = job.listen or urlsplit(_address(client)).hostname or LOOPBACK
    if asked in (LOOPBACK, "localhost", "::1"):
        return LOOPBACK
    return job.listen or str(get_ip(asked))


def _address(client: Client) -> str:
    return "" if client.scheduler is None else str(client.scheduler.address)


def _watched(
    client: Client, futures: Mapping[int, Future[str]], addresses: list[str], instance: InstanceDir, job: Job,
    stop: StopFlag,
) -> dict[int, Report]:  # fmt: skip
    """The report of every worker; those that are lost have one that says so."""
    reports: dict[int, Report] = {}
    told, ended, since = False, False, 0.0
    while pending := [rank for rank in futures if rank not in reports]:
        time.sleep(_LOOK_SECONDS)
        alive = _alive(client)
        for rank in pending:
            if futures[rank].done() or addresses[rank] not in alive:
                reports[rank] = _report(futures[rank], rank, addresses[rank])
        if stop.signal is not None and not told:
            told = True
            _order(instance, job, STOP)
        if any(report.outcome != "done" for report in reports.values()):
            since = since or time.monotonic()
            waited = time.monotonic() - since
            if waited > GRACE_SECONDS and not ended:
                ended = True
                _order(instance, job, END)
            if waited > GRACE_SECONDS + GONE_SECONDS:
                break
    return reports


def _order(instance: InstanceDir, job: Job, word: str) -> None:
    write_bytes(instance.orders, f"{job.token} {word}".encode())


def _workers(client: Client) -> set[str]:
    """Workers that the scheduler knows.

    Not by `Client.scheduler_info`: now and then it returns what the client itself asked for every two seconds, without
    any worker (distributed 2026).
    """
    if client.scheduler is None:
        return set()
    return set(client.sync(client.scheduler.identity, n_workers=-1, callback_timeout=SILENT_SECONDS)["workers"])


def _alive(client: Client) -> set[str]:
    """`_workers`; none when the scheduler cannot be asked any more."""
    try:
        return _workers(client)
    except OSError:
        return set()


def _report(future: Future[str], rank: int, address: str) -> Report:
    if future.status == "finished":
        with contextlib.suppress(TimeoutError):  # whoever has it went away
            return msgspec.json.decode(future.result(timeout=REACHING_SECONDS), type=Report)
    error = future.exception(timeout=REACHING_SECONDS) if future.status == "error" else None
    if error is not None and not isinstance(error, (KilledWorker, CommClosedError)):
        said = " ".join(str(error).split())
        return Report(
            outcome="failed", exit_code=3, message=f"worker {rank} cannot do its part: {said}", where=address,
            expected="a scheduler and workers that have this checkout, the run and the data under the same paths",
        )  # fmt: skip
    return Report(
        outcome=_LOST, exit_code=75, message=f"worker {rank} ({address}) was lost",
        next_step="run the same command again: it goes on from the last checkpoint",
    )  # fmt: skip


def _outcome(reports: Mapping[int, Report], stop: StopFlag) -> Report:
    """What the attempt came to: done with its leader; else the report that explains the others."""
    leader = reports.get(0)
    # Where one is lost the others cannot reach it, and say so.
    order = ("out-of-memory", "over-budget", _LOST, "failed", "killed", "abandoned", "interrupted", "done")
    report = min(reports.values(), key=lambda report: order.index(report.outcome))
    if leader is not None and (leader.outcome == "done" or stop.signal is not None):
        report = leader
    return msgspec.structs.replace(report, outcome="killed") if report.outcome == _LOST else report
