"""Chosen rows come back as the boosters saw them: in order, in full chunks, from any cut of the data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest

from metabatch.analysis.sampling import MatrixRows
from metabatch.data.batches import Piece, Reader, RowCount, whole_files
from metabatch.data.preprocess import Preprocessor
from metabatch.data.roles import classify, resolve_columns
from metabatch.data.schema import union_schema
from metabatch.data.shards import find_parquet
from metabatch.errors import InputError
from metabatch.options import Options
from metabatch.rundir.manifests import Columns, Feature
from metabatch.training.instance_rows import matrix_rows
from metabatch.training.matrix import Rows, read_rows
from tests.conftest import DEMO, small_table, write_table


def described(folder: Path) -> tuple[Preprocessor, Columns, list[str]]:
    """Preprocessing, columns and genes of a data set; k-mer counts of 0 are missing values."""
    files = find_parquet(folder)
    schema = union_schema(files)
    columns = resolve_columns(schema, Options())
    candidates, _ = classify(schema, columns, Options())
    features = [
        Feature(
            name=c.name, dtype=c.dtype, group=c.group, if_absent="zero" if c.group == "kmer" else "null",
            missing="zero-as-missing" if c.group == "kmer" else "native",
        )
        for c in candidates
    ]  # fmt: skip
    genes = pl.concat([pl.read_parquet(f, columns=[columns.group]) for f in files])[columns.group]
    return Preprocessor(features), columns, sorted(genes.unique().to_list())


def pieces_of(folder: Path, genes: list[str]) -> list[Piece]:
    """All row groups, of which these genes are wanted."""
    return [Piece(p.file, p.row_group, pa.array(genes)) for p in whole_files(find_parquet(folder))]


def joined(chunks: list[MatrixRows]) -> pa.Table:
    return pa.concat_tables([c.table for c in chunks]).combine_chunks()


def expected(pieces: list[Piece], prepare: Preprocessor, columns: Columns) -> pa.Table:
    names = [f.name for f in prepare.features]
    tables = [prepare.transform(t, where="test") for t in Reader(pieces, names, columns.group)]
    return pa.concat_tables(tables).combine_chunks()


def rows_of(folder: Path, every_other_gene: bool) -> tuple[list[Piece], Rows, Preprocessor, Columns]:
    prepare, columns, genes = described(folder)
    pieces = whole_files(find_parquet(folder))
    if every_other_gene:
        genes = genes[::2]
        pieces = pieces_of(folder, genes)
    return pieces, read_rows(pieces, genes, columns, RowCount(), 4096), prepare, columns


@pytest.mark.parametrize("every_other_gene", [False, True], ids=["whole row groups", "some genes"])
@pytest.mark.parametrize("chunk", [7, 500, 10**6])
def test_chosen_rows_are_those_of_the_matrix(every_other_gene: bool, chunk: int) -> None:
    pieces, rows, prepare, columns = rows_of(DEMO, every_other_gene)
    rng = np.random.default_rng(1)
    chosen = np.sort(rng.choice(len(rows), 1200, replace=False))
    times, unit = rng.random(len(chosen)) + 1, rng.integers(0, 9, len(rows))
    found = list(
        matrix_rows(pieces, rows, chosen, times, unit, prepare, columns, chunk=chunk, count=RowCount(), where="test")
    )
    sizes = [len(c) for c in found]
    assert all(size == min(chunk, 1200) for size in sizes[:-1])
    assert sum(sizes) == 1200
    table = joined(found)
    assert table.equals(expected(pieces, prepare, columns).take(pa.array(chosen)).combine_chunks())
    assert any(c.null_count for c in table.columns)
    assert np.array_equal(np.concatenate([c.label for c in found]), rows.label[chosen])
    assert np.array_equal(np.concatenate([c.unit for c in found]), unit[chosen])
    weight = np.concatenate([c.weight for c in found])
    assert weight.dtype == np.float64
    assert weight == pytest.approx(rows.weight[chosen].astype(np.float64) * times, rel=1e-12)


def test_chunks_keep_compact_types_and_begin_at_offset_0() -> None:
    pieces, rows, prepare, columns = rows_of(DEMO, every_other_gene=False)
    chosen = np.arange(len(rows))
    chunks = matrix_rows(
        pieces, rows, chosen, np.ones(len(rows)), chosen, prepare, columns, chunk=999, count=RowCount(), where="test"
    )
    for rows_here in chunks:
        for feature, column in zip(prepare.features, rows_here.table.columns, strict=True):
            assert column.type == pa.from_numpy_dtype(np.dtype(feature.dtype))
            assert column.num_chunks == 1
            assert column.chunk(0).offset == 0


@pytest.mark.parametrize("every_other_gene", [False, True], ids=["whole row groups", "some genes"])
def test_row_groups_without_a_chosen_row_are_not_decoded(every_other_gene: bool) -> None:
    pieces, rows, prepare, columns = rows_of(DEMO, every_other_gene)
    chosen = np.array([len(rows) // 2, len(rows) // 2 + 1])
    count = RowCount()
    found = list(
        matrix_rows(
            pieces, rows, chosen, np.ones(2), np.arange(len(rows)), prepare, columns, chunk=10, count=count,
            where="test",
        )
    )  # fmt: skip
    assert joined(found).equals(expected(pieces, prepare, columns).take(pa.array(chosen)).combine_chunks())
    assert 0 < count.read <= 4000  # at most two of the row groups of 2,000 rows


def test_large_row_groups_come_in_pieces(tmp_path: Path) -> None:
    folder = write_table(tmp_path / "d", small_table(genes=60, rows=700), shards=1, row_group=10**6)
    pieces, rows, prepare, columns = rows_of(folder, every_other_gene=False)
    assert len(rows) == 42_000
    chosen = np.arange(3, 42_000, 5)
    found = list(
        matrix_rows(
            pieces, rows, chosen, np.ones(len(chosen)), rows.gene, prepare, columns, chunk=1024, count=RowCount(),
            where="test",
        )
    )  # fmt: skip
    assert joined(found).equals(expected(pieces, prepare, columns).take(pa.array(chosen)).combine_chunks())


def test_rows_that_are_gone_are_an_error() -> None:
    pieces, rows, prepare, columns = rows_of(DEMO, every_other_gene=False)
    chosen = np.arange(len(rows))
    with pytest.raises(InputError, match="the data set gives"):
        list(
            matrix_rows(
                pieces[:-1], rows, chosen, np.ones(len(rows)), chosen, prepare, columns, chunk=5000,
                count=RowCount(), where="test",
            )
        )  # fmt: skip
