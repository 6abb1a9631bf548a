"""predict: streaming inference on parquet of any size."""

from __future__ import annotations

import sys
from pathlib import Path

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands.train_instance import thread_count
from metabatch.inference.stream import predict

USAGE = f"""Predict on parquet of any size, in bounded memory.

Usage:
  predict [options] MODEL DATA OUT

MODEL is a run directory, its ensemble folder or a copy of that folder; DATA a parquet file or folder;
OUT a new folder for the parquet parts: id columns, CLASS_score (base) where it is there, CLASS_meta, and CLASS_call
where the model has a threshold for the class.

Options:
  --fill-missing-kmers    Count k-mer columns that DATA lacks as 0.
  --threads N             Threads (default: the CPUs this process may use).
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    out = Path(arguments["OUT"])
    result = predict(
        arguments["MODEL"], arguments["DATA"], out, fill_missing_kmers=arguments["--fill-missing-kmers"],
        threads=thread_count(arguments), force=arguments["--force"],
    )  # fmt: skip
    head = "already predicted, nothing was changed: " if result.already else ""
    return Text(f"{head}{result.rows:,} rows in {result.parts} part(s) in {out}", result)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
