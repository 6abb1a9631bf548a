"""submit: the stages of a run as Slurm jobs with dependencies."""

from __future__ import annotations

import shlex
import sys

from metabatch.cluster.submit import Chain, submit
from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import checkpoint_seconds
from metabatch.errors import UsageError
from metabatch.rundir.layout import require_run

USAGE = f"""Submit to Slurm what is not done: the instances as an array, then consolidate, then evaluate.

Usage:
  submit [options] RUN

Every job asks for the memory the plan predicts, more after a kill for memory. Job numbers stand in
RUN/submissions.jsonl, logs in RUN/logs. What is done, running or waiting is not submitted again.

Options:
  --dry-run               Print the sbatch lines and submit nothing.
  --throttle N            At most N tasks of an array at once.
  --sbatch TEXT           Options for every sbatch, in one word: --sbatch "--partition=long --time=8:00:00".
  --checkpoint-seconds S  As for train-instance.
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    run = require_run(arguments["RUN"])
    chain = submit(
        run, throttle=_throttle(arguments["--throttle"]), site=_words(arguments["--sbatch"]), train=_train(arguments),
        force=arguments["--force"], dry_run=arguments["--dry-run"],
    )  # fmt: skip
    return Text(_text(chain), chain)


def _throttle(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isdigit() or int(text) < 1:
        raise UsageError(f"--throttle {text} cannot be used", expected="a whole number from 1")
    return int(text)


def _words(text: str | None) -> list[str]:
    try:
        words = shlex.split(text or "")
    except ValueError as error:
        raise UsageError(f"--sbatch cannot be read: {error}", expected="options as on a command line") from None
    for word in words:
        if word.startswith(("--array", "-a", "--dependency", "-d", "--parsable", "--mem")):
            raise UsageError(f"--sbatch {word}: submit sets this itself")
        if word.startswith(("--clusters", "-M")):
            raise UsageError(f"--sbatch {word}: other clusters cannot be asked about their jobs", expected="this one")
    return words


def _train(arguments: Arguments) -> list[str]:
    """Options for train-instance; wrong ones are refused here, not in the job."""
    text = arguments["--checkpoint-seconds"]
    words = [] if text is None else ["--checkpoint-seconds", f"{checkpoint_seconds(arguments):g}"]
    return [*words, *(o for o in ("--quiet", "--verbose") if arguments[o])]


def _text(chain: Chain) -> str:
    lines = [job.command if chain.dry_run else f"{job.job_id}  {job.command}" for job in chain.jobs]
    if not lines:
        lines = ["nothing to submit"]
    elif not chain.dry_run:
        lines.append(f"bin/status {shlex.quote(chain.run)} tells how far they are")
    return "\n".join([*chain.notes, *lines])


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
