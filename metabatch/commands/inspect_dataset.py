"""inspect-dataset: what is in a data set and what it would cost."""

from __future__ import annotations

import sys

from metabatch.commands._cli import EXIT_CODES, REPORTING, Arguments, Text, run_command
from metabatch.commands._options import convert, options_text
from metabatch.commands._tables import inspection_text
from metabatch.planning.inspect import inspect_dataset

USAGE = f"""Tell what is in a data set, from its footers and narrow columns only.

Usage:
  inspect-dataset [options] DATASET

DATASET is a parquet file or a folder of parquet shards.

{options_text("Data")}
Common:
{REPORTING}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    options, _ = convert(arguments)
    found = inspect_dataset(arguments["DATASET"], options)
    return Text(inspection_text(found), found)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
