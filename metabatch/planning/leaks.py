"""The leakage screen for `inspect-dataset`: on genes that can be read without going through all of the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import msgspec
import polars as pl

from metabatch.data.index import GeneIndex
from metabatch.data.partition import seeded_rank
from metabatch.data.roles import Candidate
from metabatch.options import Options
from metabatch.planning.problems import Problem, named
from metabatch.planning.screening import draw_genes, flagged, screen_leaks
from metabatch.rundir.manifests import Columns

# Cells decoded at most, some seconds of reading: 1.7 million rows of 1,167 features.
MOST_DECODED = 2_000_000_000
# So many genes in a row whose row groups do not fit any more: the others will not either.
_TRIED = 50
_SHOWN = 25


class Leaks(msgspec.Struct, frozen=True, kw_only=True):
    """What the screen found. genes : drawn; flagged : feature -> class and reason; skipped : why it was not made."""

    genes: int = 0
    features: int = 0
    flagged: dict[str, str] = {}
    skipped: str | None = None


def look_for_leaks(
    index: GeneIndex, files: Sequence[Path], row_groups: Sequence[Sequence[int]], candidates: Sequence[Candidate],
    columns: Columns, options: Options,
) -> tuple[Leaks, list[Problem]]:  # fmt: skip
    """Screen every candidate on whole genes from a bounded number of row groups."""
    near = reachable(index, row_groups, MOST_DECODED // len(candidates), options.seed)
    if near.is_empty():
        why = (
            f"the rows of a gene lie in more than {MOST_DECODED // len(candidates):,} rows of row groups: a sample of "
            "genes takes all of the table"
        )
        problem = Problem(
            severity="warning", what="no look was taken for features that give the label away", where=why,
            next_step="write the table sorted by gene, in row groups of at most 32,000 rows; `plan` looks all the same",
        )  # fmt: skip
        return Leaks(skipped=why), [problem]
    screened = screen_leaks(near, index.segments, files, candidates, [], columns, options)
    if screened.table is None:
        raise ValueError("the screen was not asked for")
    leaks = flagged(screened.table)
    found = _infinite(screened.infinite)
    found += [
        Problem(
            severity="warning", what=f"{name} may give the label away", where=reason,
            next_step=f"--exclude-features {name}, or plan with --auto-exclude-leaky; --allow-features {name} if it is "
            "legitimate",
        )
        for name, reason in list(leaks.items())[:_SHOWN]
    ]  # fmt: skip
    if len(leaks) > _SHOWN:
        found.append(
            Problem(
                severity="warning", what=f"{len(leaks) - _SHOWN:,} more features may give the label away",
                where=", ".join(list(leaks)[_SHOWN : 2 * _SHOWN]), next_step="see them all with --json",
            )
        )  # fmt: skip
    found += [
        Problem(
            severity="note", what=said, where="the sample of the leakage screen", next_step="nothing, or more genes"
        )
        for said in screened.warnings[: -1 if leaks else None]  # the last one sums up what was flagged
    ]
    drawn = draw_genes(near, len(columns.classes), options.seed)
    return Leaks(genes=drawn.height, features=len(candidates), flagged=leaks), found


def _infinite(columns: Mapping[str, int]) -> list[Problem]:
    """Infinite values in the rows looked at; of many columns one problem names those that are left."""
    found = [
        Problem(
            severity="error", what=f"column {name} holds {count:,} infinite value(s), or numbers beyond float32",
            where="the sample of the leakage screen", next_step="write null or NaN for missing; `plan` refuses "
            f"infinite values, unless --exclude-features {name}",
        )
        for name, count in list(columns.items())[:_SHOWN]
    ]  # fmt: skip
    if len(columns) > _SHOWN:
        found.append(
            Problem(
                severity="error", what=f"{len(columns) - _SHOWN:,} more columns hold infinite values",
                where=named(list(columns)[_SHOWN:]), next_step="write null or NaN for missing",
            )
        )  # fmt: skip
    return found


def reachable(index: GeneIndex, row_groups: Sequence[Sequence[int]], most_rows: int, seed: int) -> pl.DataFrame:
    """The genes (as in `GeneIndex.genes`) that lie wholly in some row groups of together at most `most_rows` rows.

    The row groups are those of genes in seeded order, every shard's first gene first: the same whatever the files are
    called, with shards in an order by content.
    """
    homes = index.segments.group_by("gene_id").agg(
        pl.struct("shard", "row_group").alias("places"), pl.col("shard").min()
    )
    homes = homes.sort("gene_id")
    shuffled = homes[seeded_rank(homes["gene_id"].to_list(), seed).argsort()]
    ordered = shuffled.with_columns(nth=pl.int_range(pl.len()).over("shard")).sort("nth", maintain_order=True)
    chosen, rows, missed = set[tuple[int, int]](), 0, 0
    for places in ordered["places"]:
        new = {(p["shard"], p["row_group"]) for p in places} - chosen
        more = sum(row_groups[shard][group] for shard, group in new)
        missed = missed + 1 if rows + more > most_rows else 0
        if not missed:
            chosen |= new
            rows += more
        elif missed > _TRIED:
            break
    held = pl.DataFrame(
        list(chosen), schema={"shard": index.segments.schema["shard"], "row_group": index.segments.schema["row_group"]},
        orient="row",
    )  # fmt: skip
    torn = index.segments.join(held, on=["shard", "row_group"], how="anti")["gene_id"].unique()
    return index.genes.filter(~pl.col("gene_id").is_in(torn.implode()))
