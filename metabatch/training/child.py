"""The process in which an instance is trained; started by `metabatch.training.instance`, never by hand.

Its only argument is a `Job`; what it writes to stdout is a `Report`.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback

import msgspec

from metabatch.errors import MetabatchError
from metabatch.resources.process import follow_parent
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.training.job import Job, Report

_NO_MEMORY = ("bad_alloc", "cannot allocate", "cudaerrormemoryallocation")
_LONGEST = 8_000  # what a pipe holds is plenty; a message that lists ten thousand genes is cut


def main() -> int:
    answer = os.dup(1)
    os.dup2(2, 1)  # libraries that write to stdout must not come into the report
    job = msgspec.json.decode(sys.argv[1], type=Job)
    follow_parent(job.parent)
    follows = job.place is not None and job.place.rank > 0  # whoever leads says how far they are
    logging.basicConfig(
        level=max(job.log_level, logging.WARNING) if follows else job.log_level,
        stream=sys.stderr,
        format="%(asctime)s %(levelname)s %(message)s",
        datefmt="%H:%M:%S",
    )
    with stop_on_signal() as stop:  # from the start: Slurm's TERM comes to every process of the step
        report = attempt_report(job, stop)
    os.write(answer, msgspec.json.encode(report))  # less than a pipe holds: in one piece
    return report.exit_code


def attempt_report(job: Job, stop: StopFlag) -> Report:
    """Do the work and say how it went; only a bug leaves a traceback (on stderr)."""
    try:
        if job.rung is not None and job.rung.workers and job.place is None:
            from metabatch.training.distributed import lead

            return lead(job, stop)
        from metabatch.training.attempt import attempt

        return attempt(job, stop)
    except MetabatchError as error:
        outcome = {75: "interrupted", 5: "abandoned"}.get(error.exit_code, "failed")
        return Report(
            outcome=outcome, exit_code=error.exit_code, message=error.found[:_LONGEST], expected=error.expected,
            where=error.where, next_step=error.next_step,
        )  # fmt: skip
    except MemoryError as error:
        return Report(outcome="out-of-memory", exit_code=4, message=f"the allocator refused: {error}"[:_LONGEST])
    except OSError as error:
        if error.errno == errno.ENOMEM:
            return Report(outcome="out-of-memory", exit_code=4, message=f"the kernel refused: {error}"[:_LONGEST])
        where = None if error.filename is None else str(error.filename)
        return Report(outcome="failed", exit_code=3, message=str(error)[:_LONGEST], where=where, errno=error.errno)
    except Exception as error:  # whatever it is, the parent needs a report; a bug keeps its traceback
        if _is_allocation(error):
            return Report(outcome="out-of-memory", exit_code=4, message=str(error).splitlines()[0][:_LONGEST])
        traceback.print_exc()
        return Report(outcome="failed", exit_code=70, message=f"{type(error).__name__}: {error}"[:_LONGEST])


def _is_allocation(error: Exception) -> bool:
    """XGBoost's own errors are all of one type: what it could not allocate stands in the text."""
    text = str(error).lower()
    return type(error).__name__ == "XGBoostError" and any(said in text for said in _NO_MEMORY)


if __name__ == "__main__":
    sys.exit(main())
