"""evaluate: honest evaluation of the ensemble, with the report; or several runs side by side."""

from __future__ import annotations

import sys

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, name_list, run_command
from metabatch.commands._tables import against_text, evaluation_text
from metabatch.commands.train_instance import thread_count
from metabatch.errors import UsageError
from metabatch.rundir.layout import RunDir, require_run

USAGE = f"""Evaluate the ensemble on genes it did not train on, beside the base model; or beside other runs.

Usage:
  evaluate [options] RUN

Options:
  --against RUNS          Compare with these runs of the same data set, evaluated already, separated by commas, on the
                          genes that all of them scored: AP, calibration, cost, in RUN/against.
  --threads N             Threads (default: the CPUs this process may use).
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    run = require_run(arguments["RUN"])
    others = _others(arguments["--against"])
    threads = thread_count(arguments)

    from metabatch.evaluation.against import check_others  # its libraries take seconds: not for a wrong option
    from metabatch.evaluation.evaluate import evaluate

    if others:
        check_others(run, others)  # what cannot be compared is said before a long evaluation
    result = evaluate(run, threads=threads, force=arguments["--force"])
    if others:
        head = "" if result.already else f"evaluated first: {result.report}\n\n"
        return _against(run, others, head, force=arguments["--force"])
    head = "already evaluated: nothing was changed\n\n" if result.already else ""
    return Text(head + evaluation_text(result.metrics, result.report), result.metrics)


def _others(text: str | None) -> list[RunDir]:
    if text is None:
        return []
    paths = list(name_list(text))
    if not paths:
        raise UsageError(f"--against {text} names no run", expected="run directories, separated by commas")
    return [require_run(path) for path in paths]


def _against(run: RunDir, others: list[RunDir], head: str, *, force: bool) -> Text:
    from metabatch.evaluation.against import against
    from metabatch.evaluation.against_report import cells, compared_on, hows, tables

    result = against(run, others, force=force)
    found = result.comparison
    shown = [(t.title, t.columns, cells(t)) for t in tables(found)]
    head += "already compared: nothing was changed\n\n" if result.already else ""
    lines = [compared_on(found), *hows(found), *(f"note: {n}" for n in found["notes"])]
    return Text(head + against_text(lines, shown, found["recommendation"]["text"], result.report), found)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
