"""run-all: plan, every instance, consolidate, evaluate, one after the other on this machine."""

from __future__ import annotations

import sys
from pathlib import Path

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import SECTIONS, checkpoint_seconds, convert, options_text
from metabatch.commands._stages import given_options, run_stages
from metabatch.errors import InputError

DEMO_DATA = Path(__file__).resolve().parents[2] / "examples" / "hg19-demo"
DEMO_RUN = "demo-run"
# 37 genes in 26 loci: a tenth would be 3 genes, and the difference luck.
DEMO_OPTIONS = {"--holdout-fraction": "0.35"}

USAGE = f"""Plan, train every instance, consolidate and evaluate, each in a process of its own.

Usage:
  run-all [options] --demo [RUN]
  run-all [options] DATASET RUN

With --demo the shipped real data is used, and RUN is {DEMO_RUN} unless given.

Options:
  --demo                  Run on the shipped data (37 human genes).

{options_text()}
  --checkpoint-seconds S  As for train-instance.

Common:
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    convert(arguments)  # refuse wrong options before anything runs
    checkpoint_seconds(arguments)
    demo = arguments["--demo"]
    dataset = str(DEMO_DATA) if demo else arguments["DATASET"]
    run = arguments["RUN"] or DEMO_RUN
    if demo and not DEMO_DATA.is_dir():
        raise InputError(f"the demo data is not at {DEMO_DATA}")
    planning = given_options(arguments, SECTIONS.values(), DEMO_OPTIONS if demo else {})
    return run_stages(arguments, "plan", [*planning, dataset, run], run)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
