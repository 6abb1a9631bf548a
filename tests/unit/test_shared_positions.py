"""Positions of several genes are the same whatever part of a locus is held at once, and not more is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from metabatch.data import duplicates
from metabatch.data.duplicates import SharedPositions, shared_positions
from metabatch.data.index import build_index, pieces_for
from metabatch.data.roles import resolve_columns
from metabatch.data.schema import union_schema
from metabatch.options import Options


def locus(genes: int, rows: int, seed: int = 0) -> pl.DataFrame:
    """Genes that overlap in a row, on two strands; most positions of each stand close together at its begin."""
    rng = np.random.default_rng(seed)
    parts = []
    for number in range(genes):
        far = rng.choice(np.arange(400, 2_000), rows // 4, replace=False)
        at = np.sort(np.concatenate([np.arange(rows - len(far)), far])) + 1_000 * number
        label = rng.choice(["neither", "donor", "acceptor"], rows, p=[0.9, 0.05, 0.05])
        name, strand = f"G{number:02d}", "+-"[number % 3 == 0]
        parts.append(pl.DataFrame({"gene_id": name, "chrom": "c1", "strand": strand, "locus_id": f"L{number // 4}",
                                   "position": at, "splice_type": label, "x": 1.0}))  # fmt: skip
    apart = parts[0].with_columns(gene_id=pl.lit("H"), chrom=pl.lit("c2"))
    return pl.concat([*parts, apart])


def found_in(file: Path) -> SharedPositions:
    columns = resolve_columns(union_schema([file]), Options())
    groups = [tuple([100] * 100)]
    index = build_index([file], groups, columns)
    found = shared_positions(
        index.genes, index.spans, lambda genes: pieces_for(index.segments, genes, [file]), columns, "strand"
    )
    assert found is not None
    return found


def test_windows_of_a_large_locus_find_what_all_of_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frame = locus(25, 400)
    file = tmp_path / "table.parquet"
    frame[:10_000].write_parquet(file, row_group_size=100)
    whole = found_in(file)
    places = frame[:10_000].group_by("chrom", "position", "strand").agg(
        pl.col("gene_id").unique().alias("genes"), pl.col("splice_type", "locus_id").n_unique()
    ).filter(pl.col("genes").list.len() > 1)  # fmt: skip
    assert whole.positions == places.height > 100
    assert whole.differing == places.filter(pl.col("splice_type") > 1).height > 0
    assert whole.torn == places.filter(pl.col("locus_id") > 1).height > 0
    assert whole.genes == places["genes"].explode().n_unique()
    held = []
    joined = duplicates._window

    def watched(*words: object, halve: bool) -> pl.DataFrame | None:
        rows = joined(*words, halve=halve)  # type: ignore[arg-type]
        held.append(0 if rows is None else rows.height)
        return rows

    monkeypatch.setattr(duplicates, "_window", watched)
    monkeypatch.setattr(duplicates, "_SHARED_ROWS", 150)
    assert asdict(found_in(file)) == asdict(whole)
    assert len(held) > 30
    assert max(held) <= 2 * 150
