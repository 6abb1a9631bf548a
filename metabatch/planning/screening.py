"""The leakage screen of `plan`: whole training genes drawn over all shards, every candidate judged."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from metabatch.analysis.leakage import LEAST_ROWS, Screen, leakage_table
from metabatch.analysis.sampling import evenly, quotas
from metabatch.data.batches import Reader, RowCount, as_text, as_values
from metabatch.data.index import class_column, pieces_for
from metabatch.data.partition import seeded_rank
from metabatch.data.roles import Candidate
from metabatch.errors import InputError
from metabatch.options import Options
from metabatch.resources.progress import Progress
from metabatch.rundir.manifests import Columns, ExcludedColumn

log = logging.getLogger(__name__)
# Rows judged, and cells held of them (float32 at most). Genes of more rows than that (all positions of the genome) are
# read, up to so many rows, until every class has its genes, and thinned.
MOST_ROWS, MOST_CELLS, MOST_READ, ENOUGH_GENES = 30_000, 36_000_000, 1_000_000, 20
_NAMED = 20


@dataclass(frozen=True)
class Screened:
    """What the screen found, and the candidates and excluded columns after it.

    table : leakage.parquet (see `metabatch.analysis.leakage.leakage_table`); None where nobody asked.
    infinite : column -> infinite values (or beyond float32) in the rows looked at, where there are any.
    """

    table: pl.DataFrame | None
    candidates: list[Candidate]
    excluded: list[ExcludedColumn]
    warnings: list[str]
    infinite: dict[str, int] = field(default_factory=dict)


@dataclass
class _Drawn:
    """Rows as they are read: class and gene of each, every column in parts (one a table read), infinite values."""

    label: list[np.ndarray] = field(default_factory=list)
    gene: list[np.ndarray] = field(default_factory=list)
    columns: dict[str, list[np.ndarray]] = field(default_factory=dict)
    infinite: dict[str, int] = field(default_factory=dict)

    def column(self, name: str) -> np.ndarray:
        return np.concatenate(self.columns[name])


def screen_leaks(
    training: pl.DataFrame, segments: pl.DataFrame, files: Sequence[Path], candidates: Sequence[Candidate],
    excluded: Sequence[ExcludedColumn], columns: Columns, options: Options,
) -> Screened:  # fmt: skip
    """Judge every candidate on a sample of training genes; leave the leaks out when the options say so.

    Parameters
    ----------
    training : polars.DataFrame
        Genes that are not held out, as in `metabatch.data.index.GeneIndex`.
    segments : polars.DataFrame
        As there.

    Raises
    ------
    InputError
        No feature is left.
    """
    if "leakage" not in options.analyses:
        return Screened(None, list(candidates), list(excluded), [])
    drawn = _read(training, segments, files, candidates, columns, options)
    label = np.concatenate(drawn.label)
    screen = Screen(
        label, np.concatenate(drawn.gene), columns.classes, {c: drawn.column(s) for c, s in columns.scores.items()}
    )
    rows: list[dict[str, Any]] = []
    with Progress("leakage screen", len(candidates), "features") as progress:
        for candidate in candidates:
            found = screen.column(candidate.name, drawn.column(candidate.name))
            rows += [_excused(row, columns, options) for row in found]
            del drawn.columns[candidate.name]
            progress.advance(1)
    table = leakage_table(rows)
    warnings = [
        f"leakage screen: {count} row(s) of class {name} among the {len(label):,} looked at: too few to judge by"
        for name, count in zip(columns.classes, np.bincount(label, minlength=len(columns.classes)), strict=True)
        if count < LEAST_ROWS
    ]
    return replace(_decide(table, candidates, excluded, warnings, options), infinite=drawn.infinite)


def draw_genes(training: pl.DataFrame, classes: int, seed: int) -> pl.DataFrame:
    """Whole genes in seeded order, those that bring a class its first, second, … gene first, up to `MOST_ROWS`.

    Every class that occurs has a gene; while fewer than `ENOUGH_GENES` have it, up to `MOST_READ` rows are taken.
    """
    shuffled = training[seeded_rank(training["gene_id"].to_list(), seed).argsort()]
    having = [pl.col(class_column(k)) > 0 for k in range(classes)]
    nth = pl.min_horizontal(pl.when(has).then(has.cum_sum()) for has in having)
    ordered = (
        shuffled.with_columns(nth=nth).sort("nth", maintain_order=True).with_columns(read=pl.col("rows").cum_sum())
    )
    first, early = pl.col("nth") == 1, pl.col("nth") <= ENOUGH_GENES
    chosen = ordered.filter(first | (pl.col("read") <= MOST_ROWS) | (early & (pl.col("read") <= MOST_READ)))
    return chosen.drop("nth", "read").sort("gene_id")


def _read(
    training: pl.DataFrame, segments: pl.DataFrame, files: Sequence[Path], candidates: Sequence[Candidate],
    columns: Columns, options: Options,
) -> _Drawn:  # fmt: skip
    """Read the drawn genes; of a class with too many rows evenly chosen ones are kept."""
    genes = draw_genes(training, len(columns.classes), options.seed)
    names = genes["gene_id"].to_list()
    kmers = {c.name for c in candidates if c.group == "kmer"}
    wanted = list(dict.fromkeys([*(c.name for c in candidates), *columns.scores.values()]))
    have = np.array([int(genes[class_column(k)].sum()) for k in range(len(columns.classes))])
    quota = quotas(have, max(LEAST_ROWS, min(MOST_ROWS, MOST_CELLS // len(wanted))))
    seen = np.zeros(len(have), dtype=np.int64)
    drawn, count = _Drawn(columns={name: [] for name in wanted}), RowCount()
    for table in Reader(pieces_for(segments, names, files), [columns.label, *wanted], columns.group, count=count):
        label = _codes(table.column(columns.label), columns.classes)
        kept = np.ones(len(label), dtype=bool)
        for k in np.flatnonzero(quota < have):
            mine = np.flatnonzero(label == k)
            kept[mine] = evenly(int(seen[k]), len(mine), int(quota[k]), int(have[k]))
            seen[k] += len(mine)
        part = table if kept.all() else table.filter(pa.array(kept))
        drawn.label.append(label[kept])
        drawn.gene.append(_codes(part.column(columns.group), names))
        for name in wanted:
            if name in part.column_names:
                values, infinite = _values(part.column(name))
                drawn.columns[name].append(values)
                if infinite:
                    drawn.infinite[name] = drawn.infinite.get(name, 0) + infinite
            else:
                blank = np.uint8(0) if name in kmers else np.float32("nan")
                drawn.columns[name].append(np.broadcast_to(blank, part.num_rows))
        del table, part  # before the next one is decoded
    log.info("leakage screen: %s rows of %d genes read for %s asked, %s judged", f"{count.read:,}", len(names),
             f"{count.asked:,}", f"{sum(map(len, drawn.label)):,}")  # fmt: skip
    return drawn


def _codes(column: pa.ChunkedArray, names: Sequence[str]) -> np.ndarray:
    text = pl.Series(pl.from_arrow(as_text(column)))
    return text.replace_strict(list(names), list(range(len(names))), return_dtype=pl.UInt32).to_numpy()


def _values(column: pa.ChunkedArray) -> tuple[np.ndarray, int]:
    """A copy of the numbers, 32 bits at most, NaN where missing or infinite (`plan` refuses those); how many are."""
    values = as_values(column)
    if values.dtype.kind != "f":
        return values, 0
    infinite = np.isinf(values)
    values[infinite] = np.nan
    return values, int(infinite.sum())


def _excused(row: dict[str, Any], columns: Columns, options: Options) -> dict[str, Any]:
    """Base scores are meant to tell the class, and what was allowed by name is not asked about again."""
    if row["feature"] in columns.scores.values():
        return row | {"flagged": False, "reason": "base score"}
    if row["feature"] in options.allow_features:
        return row | {
            "flagged": False,
            "reason": ": ".join(filter(None, ("allowed by --allow-features", row["reason"]))),
        }
    return row


def flagged(table: pl.DataFrame) -> dict[str, str]:
    """Feature -> class and reason of each that may give the label away, in the order of leakage.parquet."""
    said = pl.format("{}: {}", "class", "reason").str.join("; ")
    return dict(table.filter("flagged").group_by("feature", maintain_order=True).agg(said).iter_rows())


def _decide(
    table: pl.DataFrame, candidates: Sequence[Candidate], excluded: Sequence[ExcludedColumn], warnings: list[str],
    options: Options,
) -> Screened:  # fmt: skip
    leaks = flagged(table)
    if not leaks:
        return Screened(table, list(candidates), list(excluded), warnings)
    named = ", ".join(list(leaks)[:_NAMED]) + (", …" if len(leaks) > _NAMED else "")
    if not options.auto_exclude_leaky:
        warnings.append(
            f"{len(leaks)} feature(s) may give the label away and are trained on: {named} (leakage.parquet)"
        )
        return Screened(table, list(candidates), list(excluded), warnings)
    kept = [c for c in candidates if c.name not in leaks]
    if not kept:
        raise InputError(
            f"every feature gives the label away: {named}",
            expected="a feature that does not",
            next_step="keep those that are legitimate with --allow-features, or leave out --auto-exclude-leaky",
        )
    warnings.append(f"{len(leaks)} feature(s) give the label away and are left out: {named} (leakage.parquet)")
    gone = [ExcludedColumn(name=name, reason=f"leak: {reason}") for name, reason in leaks.items()]
    return Screened(table, kept, [*excluded, *gone], warnings)
