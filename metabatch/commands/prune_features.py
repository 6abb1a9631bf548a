"""prune-features: a data set without the features that say nothing of their own."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from metabatch import __version__
from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import convert, names_of, options_text
from metabatch.commands._tables import table
from metabatch.errors import UsageError
from metabatch.options import validate
from metabatch.pruning.request import PruneRequest, check_request

if TYPE_CHECKING:
    from metabatch.pruning.prune import PruneResult  # its libraries take a second

_DEFAULT = PruneRequest()
_MOST_LINES = 25
USAGE = f"""Write a data set without features that are constant, or say what another one says.

Usage:
  prune-features [options] DATASET OUT

DATASET is a parquet file or a folder of shards, OUT a new folder apart from it: the same shards without the dropped
columns, pruned_features.json with the reason of each, gene_manifest and dataset.json where the folder has them. Ids,
labels, weights, loci, places and base scores are never dropped. Interrupted, the same command goes on with the shards
it had finished.

Options:
  --keep LIST                 Columns that are never dropped: names separated by commas, or a file with one name a line.
  --max-correlation X         Of two features correlated by more than this one goes, the other being a base score or
                              kept by name, else having fewer missing cells, else standing earlier; 1: none does
                              [default: {_DEFAULT.max_correlation}].
  --correlation NAME          pearson, spearman, or either of them [default: {_DEFAULT.correlation}].
  --near-constant FRACTION    A feature goes when at least this part of all rows has one value; 1: only constant ones
                              [default: {_DEFAULT.near_constant}].
  --sample-rows-per-shard N   Rows (of whole genes) of every shard by which correlation is judged; constant and
                              duplicate features are looked at in every row (default: 20,000 over all shards, at most
                              500,000 or 128 MB).
  --max-corr-cols N           Most features compared by correlation; of more, those that vary most
                              [default: {_DEFAULT.max_corr_cols}].
  --seed N                    Seed of the sample (default: 42).

{options_text("Data")}
Common:
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    options, _ = convert(arguments)
    request = request_of(arguments)
    check_request(request)
    validate(options)

    from metabatch.pruning.prune import prune_features

    out = Path(arguments["OUT"])
    result = prune_features(arguments["DATASET"], out, request, options, force=arguments["--force"])
    return Text(result_text(result, out), result)


def request_of(arguments: Arguments) -> PruneRequest:
    """The options as `PruneRequest`."""
    given: dict[str, Any] = {}
    for field, kind in (
        ("max_correlation", float), ("correlation", str), ("near_constant", float), ("max_corr_cols", int),
        ("sample_rows_per_shard", int),
    ):  # fmt: skip
        text = arguments[f"--{field.replace('_', '-')}"]
        if text is not None:
            try:
                given[field] = kind(text)
            except ValueError:
                raise UsageError(
                    f"--{field.replace('_', '-')} {text} cannot be used",
                    expected="a number" if kind is float else "a whole number",
                ) from None
    if arguments["--keep"] is not None:
        given["keep"] = tuple(dict.fromkeys(names_of("keep", arguments["--keep"])))
    return PruneRequest(**given)


def result_text(result: PruneResult, out: Path) -> str:
    record = result.record
    reasons = Counter(p.reason for p in record.pruned)
    counts = ", ".join(f"{n} {reason}" for reason, n in sorted(reasons.items())) or "nothing to drop"
    kept = f", {result.kept_parts} of them kept from an interrupted attempt" if result.kept_parts else ""
    lines = [
        ("already pruned, nothing was changed: " if result.already else "")
        + f"{record.columns - len(record.pruned):,} of {record.columns:,} columns are in {out} ({counts}); "
        f"{record.rows:,} rows in {result.shards} shard(s){kept}",
        f"correlation is judged by {record.sample.rows:,} rows of {record.sample.genes:,} genes from "
        f"{record.sample.shards} shard(s), everything else by all rows"
        if record.request.max_correlation < 1
        else "correlation was not looked at (--max-correlation 1), everything else in all rows",
    ]
    if result.already and record.metabatch_version != __version__:
        lines.append(f"they were made by metabatch {record.metabatch_version}, this is {__version__}: --force makes "
                     "them again")  # fmt: skip
    if record.pruned:
        lines += ["", table(["feature", "", ""], [[p.feature, p.reason, p.said] for p in record.pruned[:_MOST_LINES]])]
    if len(record.pruned) > _MOST_LINES:
        lines.append(f"… and {len(record.pruned) - _MOST_LINES:,} more in {out / 'pruned_features.json'}")
    return "\n".join([*lines, *(f"note: {n}" for n in record.notes)])


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
