"""inspect-dataset: what is in a data set, what is wrong with it, and what it would cost."""

from __future__ import annotations

import sys

from metabatch.commands._cli import EXIT_CODES, REPORTING, Arguments, Text, run_command
from metabatch.commands._options import convert, options_text
from metabatch.commands._tables import inspection_text
from metabatch.planning.inspect import inspect_dataset

USAGE = f"""Tell what is in a data set and what is wrong with it, from footers, narrow columns and a sample of genes.

Usage:
  inspect-dataset [options] DATASET

DATASET is a parquet file or a folder of parquet shards. The last section lists problems: what, where, and what next.
The exit code is 0 for every data set that can be read, whatever its problems; --json has them as `problems`.

Options:
  --no-leakage            Do not look for features that give the label away: of the features only gene_length is read.

{options_text("Data")}
Common:
{REPORTING}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    options, _ = convert(arguments)
    found = inspect_dataset(arguments["DATASET"], options, leakage=not arguments["--no-leakage"])
    return Text(inspection_text(found), found)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
