"""train-instance: train one instance of a plan."""

from __future__ import annotations

import os
import sys

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import checkpoint_seconds
from metabatch.errors import UsageError
from metabatch.rundir.layout import parse_instance_index, require_run
from metabatch.training.instance import train_instance
from metabatch.training.job import CHECKPOINT_SECONDS

USAGE = f"""Train one instance, in a child process that is watched: short of memory, it goes on more cheaply.

Usage:
  train-instance [options] RUN [INSTANCE]

INSTANCE is a number of the plan; without it $SLURM_ARRAY_TASK_ID is taken.

Options:
  --threads N             Threads (default: the plan's, else the CPUs this process may use).
  --checkpoint-seconds S  The booster that is growing is kept this often, or less often where that would take more than
                          a hundredth of the time; 0: after every round [default: {CHECKPOINT_SECONDS:g}].
  --dask-scheduler WHERE  Of a distributed plan: use the workers of this Dask scheduler (its address, or its scheduler
                          file); without it, workers are started here.
  --listen ADDRESS        Of a distributed plan: this machine's address at which the workers find each other (default:
                          127.0.0.1, or the one by which the scheduler is reached).
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    run = require_run(arguments["RUN"])
    text = arguments["INSTANCE"] or os.environ.get("SLURM_ARRAY_TASK_ID")
    index = None if text is None else parse_instance_index(text)
    if index is None:
        raise UsageError(
            "no instance is named" if text is None else f"{text!r} is no instance number",
            expected="train-instance RUN INSTANCE, or a Slurm array task ($SLURM_ARRAY_TASK_ID)",
        )
    result = train_instance(run, index, threads=thread_count(arguments), force=arguments["--force"],
                            checkpoint_seconds=checkpoint_seconds(arguments), scheduler=arguments["--dask-scheduler"],
                            listen=arguments["--listen"])  # fmt: skip
    if result.already:
        return Text(f"instance {index} is already done: nothing was changed", result)
    peak, predicted = result.peak_bytes / 2**20, result.predicted_peak_bytes / 2**20
    text = f"instance {index} done in {result.seconds:.0f} s {result.rung}, peak memory {peak:,.0f} MiB"
    return Text(f"{text} (predicted {predicted:,.0f})", result)


def thread_count(arguments: Arguments) -> int | None:
    """--threads as a number."""
    text = arguments["--threads"]
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--threads {text} cannot be used", expected="a whole number from 1")
    return int(text)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
