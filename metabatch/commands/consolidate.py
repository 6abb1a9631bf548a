"""consolidate: validate all instances and build the bundle."""

from __future__ import annotations

import sys

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.ensemble.consolidate import consolidate
from metabatch.rundir.layout import require_run

USAGE = f"""Check every instance and make one model of them: RUN/ensemble.

Usage:
  consolidate [options] RUN

Options:
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    run = require_run(arguments["RUN"])
    result = consolidate(run, force=arguments["--force"])
    head = "already consolidated, nothing was changed: " if result.already else ""
    return Text(f"{head}{result.members} member(s), {result.genes:,} genes, in {run.ensemble}", result)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
