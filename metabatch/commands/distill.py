"""distill: one model in the place of an ensemble, trained on what the ensemble says of its training genes."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from shlex import quote

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import STUDENT_SECTIONS, checkpoint_seconds, convert, sections_text
from metabatch.commands._stages import given_options, run_stages
from metabatch.commands._tables import plan_text
from metabatch.errors import UsageError
from metabatch.planning.student import GAIN_SHARE, LABEL_SHARE, UNLESS_GIVEN, Student, student_options
from metabatch.rundir.layout import RunDir

USAGE = f"""Train one small model on the probabilities of an ensemble (soft labels): plan, train, consolidate, evaluate.

Usage:
  distill [options] TEACHER RUN

TEACHER is a run directory after `consolidate`; RUN is a new folder, an ordinary run directory afterwards. Every gene is
taught by members of the ensemble that did not train on it, or by its out-of-fold scores. Data set, columns, holdout
genes and left-out features are the teacher's, and so are seed, missing-value policy and training options that are not
given, but that the student's trees are two levels shallower (though not below 3), and that of many members it may have
as many trees as a fifth of all of theirs together. The number of trees of each class is the smallest that costs at most
0.002 AP on a held-out fold.

Options:
  --label-share X         Part of the true label in what the student learns from, 0 to 1; the rest is the ensemble's
                          probability (default: {LABEL_SHARE:g}).
  --gain-share X          The student has the fewest features that carry this part of the gain of the teacher's splits,
                          but at least 100; 1: all of the teacher's features (default: {GAIN_SHARE:g}).
  --plan-only             Only plan, and print the line for a cluster.

{sections_text(STUDENT_SECTIONS, inherited=UNLESS_GIVEN)}
  --checkpoint-seconds S  As for train-instance.

Common:
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    asked, given = convert(arguments)  # refuse wrong options before anything runs
    checkpoint_seconds(arguments)
    if arguments["--plan-only"] and arguments["--checkpoint-seconds"] is not None:
        raise UsageError("--checkpoint-seconds decides nothing here", expected="it without --plan-only")
    teacher, run = arguments["TEACHER"], arguments["RUN"]
    if Path(teacher).resolve() == Path(run).resolve():
        raise UsageError(f"TEACHER and RUN are both {run}", expected="a new folder for the student")
    share, carried = label_share(arguments), gain_share(arguments)
    compare = f"bin/evaluate {quote(run)} --against {quote(teacher)}"
    if not arguments["--plan-only"]:
        words = [
            "--plan-only",
            "--label-share",
            repr(share),
            "--gain-share",
            repr(carried),
            *given_options(arguments, STUDENT_SECTIONS.values()),
            teacher,
            run,
        ]
        return run_stages(arguments, "distill", words, run, f"compare with the teacher: {compare}")

    from metabatch.ensemble.soft_labels import open_teacher, write_soft_labels  # the parent of the stages stays small
    from metabatch.planning.planner import make_plan

    opened = open_teacher(teacher, share, carried)
    student = Student(
        opened.record, opened.plan, opened.genes, opened.excluded,
        partial(write_soft_labels, opened, threads=asked.threads),
    )  # fmt: skip
    options = student_options(opened.plan.options, opened.record.members, asked, given)
    result = make_plan(
        Path(opened.plan.dataset.path), RunDir(Path(run)), options, given, force=arguments["--force"], student=student
    )
    head = "already planned: nothing was changed\n\n" if result.already else ""
    tail = f"\nthen bin/consolidate {quote(run)}, bin/evaluate {quote(run)}; compare with the teacher:\n  {compare}"
    return Text(head + plan_text(RunDir(Path(run)), result.plan) + tail, result.plan)


def label_share(arguments: Arguments) -> float:
    """--label-share as a number."""
    share = _number(arguments["--label-share"], LABEL_SHARE)
    if not 0 <= share < 1:
        raise UsageError(
            f"--label-share {arguments['--label-share']} cannot be used",
            expected="0 or more, and below 1: a student without a teacher is a plan",
        )
    return share


def gain_share(arguments: Arguments) -> float:
    """--gain-share as a number."""
    share = _number(arguments["--gain-share"], GAIN_SHARE)
    if not 0 < share <= 1:
        raise UsageError(
            f"--gain-share {arguments['--gain-share']} cannot be used", expected="more than 0, and 1 at most"
        )
    return share


def _number(text: str | None, default: float) -> float:
    """Not a number where `text` is none."""
    try:
        return default if text is None else float(text)
    except ValueError:
        return float("nan")


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
