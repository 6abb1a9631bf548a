"""Pruning: correlations are those of the libraries, whatever the blocks; samples are whole genes of every shard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.stats import spearmanr

from metabatch.analysis.sampling import evenly
from metabatch.data.index import GeneIndex
from metabatch.data.roles import Candidate
from metabatch.data.shards import cell_bytes
from metabatch.options import Options
from metabatch.planning.leaks import reachable
from metabatch.pruning import columns as pruning_columns
from metabatch.pruning import correlation as pruning_correlation
from metabatch.pruning import rewrite as pruning_rewrite
from metabatch.pruning import sample as pruning_sample
from metabatch.pruning.columns import BLOCK_BYTES, blocks, look_at
from metabatch.pruning.confirm import Seen, equal_in_sample, most_frequent
from metabatch.pruning.correlation import Block, correlate, redundant, standardised
from metabatch.pruning.decide import suspect_share
from metabatch.pruning.request import PruneRequest
from metabatch.pruning.rewrite import rewrite
from metabatch.pruning.sample import draw_genes, draw_sample, row_bytes
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag
from tests.conftest import DEMO

ROWS = 600


def some_columns(count: int, *, gaps: bool, seed: int = 0) -> dict[str, np.ndarray]:
    """Columns of a few hidden ones and noise, so that many pairs are correlated; counts, scores, large offsets."""
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(ROWS, 5))
    found: dict[str, np.ndarray] = {}
    for i in range(count):
        values = hidden[:, i % 5] * (-1) ** i + rng.choice([0.01, 0.1, 0.5, 2]) * rng.normal(size=ROWS)
        if i % 4 == 1:
            found[f"x{i}"] = np.clip(np.round(2 * values + 5), 0, 255).astype(np.uint8)
            continue
        column = (np.exp(values) if i % 4 == 2 else values + 1e4 * (i % 4 == 3)).astype(np.float32)
        if gaps and i % 3 == 0:
            column[rng.random(ROWS) < 0.3] = np.nan
        found[f"x{i}"] = column
    return found


@pytest.mark.parametrize("gaps", [False, True])
def test_pearson_is_that_of_pandas_over_the_rows_where_both_are_there(*, gaps: bool) -> None:
    columns = some_columns(24, gaps=gaps)
    block = standardised(list(columns.values()), "pearson")
    r, differ = correlate(block, block)
    np.testing.assert_allclose(r, pd.DataFrame(columns, dtype=np.float64).corr(), atol=2e-5)
    gone = np.stack([np.isnan(c) for c in columns.values()])
    np.testing.assert_allclose(differ, (gone[:, None] != gone[None]).mean(axis=2), atol=1e-6)
    assert (differ.max() > 0) == gaps


def test_spearman_is_that_of_scipy() -> None:
    columns = some_columns(12, gaps=False)
    block = standardised(list(columns.values()), "spearman")
    expected = spearmanr(np.stack(list(columns.values()), axis=1)).statistic
    np.testing.assert_allclose(correlate(block, block)[0], expected, atol=2e-5)


def test_a_column_that_is_constant_where_the_other_is_there_has_no_correlation() -> None:
    a = np.where(np.arange(ROWS) < 100, np.nan, 1.5).astype(np.float32)
    a[:100:2] = np.arange(50)
    b = np.where(np.arange(ROWS) < 100, np.nan, np.arange(ROWS)).astype(np.float32)
    assert correlate(standardised([a], "pearson"), standardised([b], "pearson"))[0] == 0


@pytest.mark.parametrize("correlation", ["pearson", "spearman", "either"])
@pytest.mark.parametrize("gaps", [False, True])
def test_what_goes_is_like_something_that_stays_and_nothing_that_stays_is(
    correlation: str, *, gaps: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    columns, names = some_columns(90, gaps=gaps), [f"x{i}" for i in range(90)]
    kinds = ("pearson", "spearman") if correlation == "either" else (correlation,)
    everything = {k: np.abs(correlate(*[standardised(list(columns.values()), k)] * 2)[0]) for k in kinds}  # type: ignore[arg-type]
    strength = pd.DataFrame(np.max(list(everything.values()), axis=0), index=names, columns=names)
    differ = pd.DataFrame(
        correlate(*[standardised(list(columns.values()), "pearson")] * 2)[1], index=names, columns=names
    )
    found, blocks_made = {}, list[int]()

    def counted(columns: Sequence[np.ndarray], kind: Any) -> Block:
        blocks_made.append(len(columns))
        return standardised(columns, kind)

    monkeypatch.setattr(pruning_correlation, "standardised", counted)
    for most, size in ((16, 24 << 20), (512, 24 << 20), (512, 4 * ROWS)):  # the last: a column a block
        monkeypatch.setattr(pruning_correlation, "_BLOCK_COLUMNS", most)
        monkeypatch.setattr(pruning_correlation, "_BLOCK_BYTES", size)
        blocks_made.clear()
        found[most, size] = redundant(
            names, columns, correlation=correlation, above=0.9, most_differing=0.05, protected={"x20"}, stop=StopFlag()
        )  # type: ignore[arg-type]
    assert max(blocks_made) == 1
    said = [[(f.feature, f.against, f.kind) for f in x] for x in found.values()]
    assert said[0] == said[1] == said[2]
    gone = {feature: against for feature, against, _ in said[0]}
    kept = [n for n in names if n not in gone]
    assert 10 < len(gone) < 80
    assert "x20" in kept
    for feature, against in gone.items():
        assert against in kept
        assert names.index(against) < names.index(feature)
        assert strength.loc[feature, against] > 0.9
    for number, later in enumerate(kept):
        for earlier in kept[:number]:
            alike = strength.loc[later, earlier] > 0.9 and differ.loc[later, earlier] <= 0.05
            assert not alike or later == "x20", (earlier, later)


def test_a_column_missing_elsewhere_does_not_say_the_same() -> None:
    values = np.random.default_rng(1).normal(size=ROWS).astype(np.float32)
    holes = values.copy()
    holes[:30] = np.nan
    columns = {"a": values, "b": holes, "c": holes * 2}
    words = {"correlation": "pearson", "above": 0.98, "protected": (), "stop": StopFlag()}
    strict = redundant(["a", "b", "c"], columns, most_differing=0.01, **words)  # type: ignore[arg-type]
    assert [(f.feature, f.against) for f in strict] == [("c", "b")]
    loose = redundant(["a", "b", "c"], columns, most_differing=0.06, **words)  # type: ignore[arg-type]
    assert [(f.feature, f.against) for f in loose] == [("b", "a"), ("c", "a")]


def test_equal_columns_are_equal_whatever_their_type_and_negative_zeros() -> None:
    columns = {
        "a": np.array([0, 1, 2, 0], np.uint8),
        "b": np.array([-0.0, 1, 2, 0], np.float32),
        "c": np.array([np.nan, 1, 2, 0], np.float32),
        "d": np.array([0, 1, 2, 1], np.uint8),
    }
    assert equal_in_sample(columns) == [["a", "b"]]
    parts = {n: Seen(0.0) for n in columns}
    for name, column in columns.items():
        for start in (slice(0, 1), slice(1, 4)) if name == "b" else (slice(0, 4),):
            parts[name].look(column[start])
    digests = {n: s.digest.digest() for n, s in parts.items()}
    assert digests["a"] == digests["b"]
    assert len(set(digests.values())) == 3
    assert {n: s.same for n, s in parts.items()} == {"a": 2, "b": 2, "c": 1, "d": 1}
    assert most_frequent(columns["a"]) == (0.0, 0.5)
    value, share = most_frequent(np.array([np.nan, np.nan, 1], np.float32))
    assert np.isnan(value)
    assert share == pytest.approx(2 / 3)


def index_of(genes: dict[str, list[tuple[int, int]]], rows: int = 40) -> GeneIndex:
    """Genes -> the (shard, row group) they lie in, so many rows in each."""
    segments = pl.DataFrame(
        [(g, s, r, rows) for g, places in genes.items() for s, r in places],
        schema={"gene_id": pl.String, "shard": pl.Int32, "row_group": pl.Int32, "rows": pl.Int64}, orient="row",
    )  # fmt: skip
    table = segments.group_by("gene_id").agg(pl.col("rows").sum()).sort("gene_id")
    return GeneIndex(table, segments, pl.DataFrame(), (), (), ())


def test_genes_are_drawn_from_every_shard_whole_and_whatever_the_shards_are_called() -> None:
    genes = {f"G{i:03d}": [(i % 4, i // 8), *([((i + 1) % 4, 9)] if i == 5 else [])] for i in range(80)}
    drawn = draw_genes(index_of(genes), 100, seed=3)
    assert drawn["rows"].sum() >= 400
    assert set(drawn["shard"]) == {0, 1, 2, 3}
    whole = {g: 40 * len(p) for g, p in genes.items()}
    assert all(rows == whole[gene] for gene, rows in drawn.select("gene_id", "rows").iter_rows())
    renamed = {g: [(3 - s, r) for s, r in places] for g, places in genes.items() if g != "G005"}
    without = draw_genes(index_of({g: p for g, p in genes.items() if g != "G005"}), 100, seed=3)
    assert draw_genes(index_of(renamed), 100, seed=3)["gene_id"].to_list() == without["gene_id"].to_list()
    assert draw_genes(index_of(genes), 1, seed=3).height == 4
    assert draw_genes(index_of(genes), 100, seed=4)["gene_id"].to_list() != drawn["gene_id"].to_list()


def test_a_sample_row_counts_what_gaps_make_of_integers(tmp_path: Path) -> None:
    rows = 50
    whole, gaps = np.arange(rows, dtype=np.uint8), pa.array([None, *range(1, rows)], pa.uint8())
    tables = [
        {"whole": whole, "gaps": whole, "score": whole.astype(np.float32), "2mer_AA": whole, "note": whole},
        {"whole": whole, "gaps": gaps, "score": whole.astype(np.float32), "empty": pa.nulls(rows)},
    ]
    files = []
    for number, columns in enumerate(tables):
        files.append(tmp_path / f"{number}.parquet")
        pq.write_table(pa.table(columns), files[-1], row_group_size=20)
    found = [
        Candidate("whole", "uint8", "context", ()), Candidate("gaps", "uint8", "context", ()),
        Candidate("score", "float32", "score", ()), Candidate("2mer_AA", "uint8", "kmer", ("1.parquet",)),
        Candidate("note", "uint8", "context", ("1.parquet",)),
    ]  # fmt: skip
    assert row_bytes(files, found) == 1 + 4 + 4 + 1 + 4
    pq.write_table(pa.table(tables[0]), files[0], write_statistics=False)
    assert row_bytes(files, found) == 4 + 4 + 4 + 4 + 4


def test_a_sample_has_at_most_so_many_rows_whatever_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    table = look_at(str(DEMO), Options(), ())
    for name, rows in (("MOST_ROWS", 1_000), ("SAMPLE_BYTES", 1_000 * row_bytes(table.files, table.features))):
        with monkeypatch.context() as patch:
            patch.setattr(pruning_sample, name, rows)
            drawn = draw_sample(table, PruneRequest(sample_rows_per_shard=10**9), 42, StopFlag())
        assert drawn.drawn.rows == 1_000
        assert {len(column) for column in drawn.values.values()} == {1_000}
        assert sum(column.nbytes for column in drawn.values.values()) <= 1_000 * row_bytes(table.files, table.features)
        assert "250 were taken" in drawn.notes[0]


def test_of_rows_that_come_in_parts_evenly_spread_ones_are_kept() -> None:
    for sizes in ((100,), (1, 60, 39), (50, 0, 50)):
        begins = np.cumsum([0, *sizes[:-1]]).tolist()
        kept = np.concatenate([evenly(first, n, 7, 100) for first, n in zip(begins, sizes, strict=True)])
        assert kept.sum() == 7
        assert set(np.diff(np.flatnonzero(kept))) <= {14, 15}
    assert evenly(0, 5, 5, 5).all()


def test_what_may_be_near_constant_is_suspected_below_the_share_asked_for() -> None:
    assert suspect_share(1) == 1
    for share in (0.9999, 0.99, 0.95, 0.6, 0.5):
        assert 0 < suspect_share(share) <= share - 0.01


def test_a_look_for_leaks_reads_a_bounded_number_of_rows_from_all_shards() -> None:
    genes = {f"G{i:03d}": [(i % 4, i // 8)] for i in range(80)}
    groups = [[80] * 10 for _ in range(4)]
    found = reachable(index_of(genes), groups, 800, seed=1)
    places = {p for g in found["gene_id"] for p in genes[g]}
    assert sum(groups[s][r] for s, r in places) <= 800
    assert len(places) == 10
    assert {s for s, _ in places} == {0, 1, 2, 3}
    assert found.height == 20
    assert reachable(index_of(genes), groups, 10**9, seed=1).height == 80
    spread = {g: [(s, r) for s in range(4) for r in range(10)] for g in list(genes)[:5]}
    assert reachable(index_of(spread), groups, 800, seed=1).is_empty()


def test_blocks_hold_every_column_once_and_fit() -> None:
    schema = pa.schema([(f"x{i}", pa.float32()) for i in range(700)] + [("t", pa.string()), ("k", pa.uint16())])
    cells = cell_bytes(schema)
    for rows in (100, 32_768, 10_000_000):
        cut = blocks(cells, [*schema.names, "absent"], rows)
        assert [n for names in cut for n in names] == schema.names
        if rows == 32_768:
            assert max(rows * sum(cells[n] for n in names) for names in cut[:-1]) <= BLOCK_BYTES
            assert len(cut) == 2
    assert len(blocks(cells, schema.names, 100)) == 1


@pytest.mark.parametrize("rows", [900, 40_000], ids=["a usual row group", "a row group of many rows"])
def test_a_row_group_by_way_of_the_disk_is_the_same(rows: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    gene = np.array([f"G{i // 7}" for i in range(rows)])
    table = pa.table(
        {
            "gene_id": pa.array(gene).dictionary_encode(),
            "name": pa.array(np.where(np.arange(rows) % 5 == 0, None, gene)),
            **{f"x{i}": rng.random(rows, dtype=np.float32) for i in range(6)},
            "gone": pa.array([1] * rows),
            "gaps": pa.array(np.where(np.arange(rows) % 3 == 0, None, np.arange(rows)), pa.int32()),
            "nothing": pa.nulls(rows),
            "lists": pa.array([[1, 2], None, []] * (rows // 3) + [[3]] * (rows % 3)),
        }
    )
    pq.write_table(table, tmp_path / "in.parquet", row_group_size=rows)
    monkeypatch.setattr(pruning_rewrite, "GROUP_BYTES", 60_000)
    monkeypatch.setattr(pruning_rewrite, "_STEP", 100)
    monkeypatch.setattr(pruning_columns, "BLOCK_BYTES", 30_000)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with Progress("test", rows, "rows") as progress:
        written = rewrite(
            tmp_path / "in.parquet", tmp_path / "out.parquet", scratch, {"gone"}, set(), {}, progress, StopFlag()
        )
    assert written == rows
    assert not list(scratch.iterdir())
    out = pq.ParquetFile(tmp_path / "out.parquet")
    expected = table.drop_columns("gone")
    assert out.schema_arrow.equals(expected.schema)
    groups = [out.metadata.row_group(i).num_rows for i in range(out.num_row_groups)]
    assert len(set(groups[:-1])) == 1
    assert groups[0] % 100 == 0
    assert groups[0] < rows
    assert {out.metadata.row_group(0).column(i).compression for i in range(5)} == {"ZSTD"}
    assert pl.from_arrow(out.read().drop_columns("nothing")).equals(pl.from_arrow(expected.drop_columns("nothing")))
