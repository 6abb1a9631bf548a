"""What a Dask worker does for a distributed attempt: it watches over a process that trains a share of the rows.

The process is the one that trains any instance (`metabatch.training.child`), so that its memory, its threads and its
end are its own: it can be killed at once, whatever XGBoost waits for, and two runs on one worker never meet.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import msgspec

from metabatch.resources.limits import cpu_limits, memory_limits
from metabatch.resources.signals import StopFlag
from metabatch.resources.supervise import supervise
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lock import claim_watch
from metabatch.rundir.scratch import remove_dead_folders
from metabatch.training.job import STOP, Job, report_of


def run_share(text: str) -> str:
    """Train the share that a `Job` (as JSON) describes; its `Report`, as JSON.

    It ends early when the orders of whoever leads say so, or when the claim on the instance is lost.
    """
    job = msgspec.json.decode(text, type=Job)
    if job.place is None:
        raise ValueError("a share without a place")
    memory = memory_limits()[0]
    limit = min(job.limit_bytes, memory.bytes)
    job = msgspec.structs.replace(
        job, parent=os.getpid(), threads=job.threads or max(1, cpu_limits()[0].count), limit_bytes=limit,
        limit_source=memory.source if limit < job.limit_bytes else job.limit_source,
    )  # fmt: skip
    instance = RunDir(Path(job.run)).instance(job.index)
    stop, is_lost = StopFlag(), claim_watch(instance.root, job.token)

    def is_over() -> bool:
        lost = is_lost()
        try:
            orders = instance.orders.read_text()
        except OSError:  # none, or not to be read just now
            orders = ""
        if orders.startswith(job.token):
            if not orders.endswith(STOP):
                return True
            if job.place is not None and job.place.rank == 0:  # the others end with it
                stop.signal = STOP
        return lost

    command = [sys.executable, "-m", "metabatch.training.child", msgspec.json.encode(job).decode()]
    end = supervise(command, limit, stop, is_over)
    remove_dead_folders()  # its pages, if it was killed
    return msgspec.json.encode(report_of(end)).decode()
