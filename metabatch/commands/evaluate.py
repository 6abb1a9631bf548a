"""evaluate: honest evaluation of the ensemble, with the report."""

from __future__ import annotations

import sys

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._tables import evaluation_text
from metabatch.commands.train_instance import thread_count
from metabatch.evaluation.evaluate import evaluate
from metabatch.rundir.layout import require_run

USAGE = f"""Evaluate the ensemble on genes it did not train on, beside the base model.

Usage:
  evaluate [options] RUN

Options:
  --threads N             Threads (default: the CPUs this process may use).
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    run = require_run(arguments["RUN"])
    result = evaluate(run, threads=thread_count(arguments), force=arguments["--force"])
    head = "already evaluated: nothing was changed\n\n" if result.already else ""
    return Text(head + evaluation_text(result.metrics, result.report), result.metrics)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
