"""plan: decide strategy, holdout, instances and memory; print the table and the sbatch line."""

from __future__ import annotations

import sys
from pathlib import Path

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import convert, options_text
from metabatch.commands._tables import plan_text
from metabatch.rundir.layout import RunDir

USAGE = f"""Plan a run: strategy, holdout genes, instances, memory per instance.

Usage:
  plan [options] DATASET RUN

DATASET is a parquet file or a folder of parquet shards; RUN is a new folder.

{options_text()}
Common:
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    options, explicit = convert(arguments)

    from metabatch.planning.planner import make_plan  # its libraries take seconds: not for a wrong option

    run = RunDir(Path(arguments["RUN"]))
    result = make_plan(Path(arguments["DATASET"]), run, options, explicit, force=arguments["--force"])
    head = "already planned: nothing was changed\n\n" if result.already else ""
    return Text(head + plan_text(run, result.plan), result.plan)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
