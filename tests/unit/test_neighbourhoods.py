"""Scores around true sites: known profiles come back, in transcript direction, from the rows that are there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from metabatch.analysis.frame import ImpossibleError, study
from metabatch.analysis.neighbourhoods import neighbourhoods
from metabatch.analysis.scored import ScoredRows

CLASSES = ("neither", "donor", "acceptor")
LENGTH, SITE = 101, 50


def generated(genes: int = 8) -> ScoredRows:
    """Every gene: positions 1000..1100, a donor at 1050; meta 0.8 there, 0.2 next downstream, else 0.01."""
    n = genes * LENGTH
    gene = np.repeat(np.arange(genes), LENGTH)
    at = np.tile(np.arange(LENGTH), genes)
    strand = np.where(gene % 2 == 0, 1, -1)
    label = np.where(at == SITE, 1, 0)
    donor = np.where(at == SITE, 0.8, np.where((at - SITE) * strand == 1, 0.2, 0.01))
    meta = np.stack([1 - donor, donor, np.zeros(n)], axis=1)
    base = np.stack([np.full(n, 0.5), np.where(at == SITE, 0.4, 0.1), np.full(n, 0.3)], axis=1)
    return ScoredRows(
        gene=gene.astype(np.uint32), group=gene, label=label, weight=np.ones(n), base=base, meta=meta,
        gene_names=[f"G{i}" for i in range(genes)], of_rows=n, of_genes=genes, position=at + 1000, strand=strand,
    )  # fmt: skip


def take(rows: ScoredRows, kept: np.ndarray) -> ScoredRows:
    arrays = {k: getattr(rows, k)[kept] for k in ("gene", "group", "label", "weight", "base", "meta", "position",
                                                   "strand")}  # fmt: skip
    return replace(rows, **arrays)


def profile(rows: ScoredRows, model: str = "meta", **options: int) -> dict[int, dict[str, float]]:
    table = neighbourhoods(rows, CLASSES, **options).tables["neighbourhoods"]
    own = table.filter((pl.col("class") == "donor") & (pl.col("score") == "donor") & (pl.col("model") == model))
    return {r["offset"]: r for r in own.iter_rows(named=True)}


def test_downstream_is_downstream_on_both_strands() -> None:
    found = profile(generated(), window=3)
    assert {o: round(r["mean"], 9) for o, r in found.items()} == {-3: 0.01, -2: 0.01, -1: 0.01, 0: 0.8, 1: 0.2, 2: 0.01,
                                                                  3: 0.01}  # fmt: skip
    assert all(r["n"] == 8 for r in found.values())
    assert found[1]["low"] == pytest.approx(0.2)
    assert profile(generated(), "base", window=3)[0]["mean"] == pytest.approx(0.4)


def test_positions_that_the_table_lacks_are_counted_out_not_filled() -> None:
    rows = generated()
    assert rows.position is not None
    assert rows.strand is not None
    gone = (rows.position - 1050) * rows.strand == 2
    some = ((rows.position - 1050) * rows.strand == 1) & (rows.gene < 6)
    found = profile(take(rows, ~gone & ~some), window=3)
    assert found[2]["n"] == 0
    assert found[2]["mean"] is None
    assert found[1]["n"] == 2
    assert found[1]["mean"] == pytest.approx(0.2)


def test_a_position_of_several_transcripts_counts_once_with_its_mean() -> None:
    rows = generated()
    twice = take(rows, np.concatenate([np.arange(len(rows)), np.arange(len(rows))]))
    twice.meta[len(rows) :, 1] = 0.0
    found = profile(twice, window=3)
    assert found[0]["n"] == 8
    assert found[0]["mean"] == pytest.approx(0.4)
    assert found[1]["mean"] == pytest.approx(0.1)


def test_neighbours_of_another_gene_are_not_neighbours() -> None:
    rows = generated(4)
    rows = take(rows, (rows.gene % 2 == 1) | (rows.position == 1050))
    assert profile(rows, window=3)[-1]["n"] == 2


def test_neighbours_count_for_the_positions_they_stand_for() -> None:
    rows = generated()
    assert rows.position is not None
    assert rows.strand is not None
    near = (rows.position - 1050) * rows.strand == 1
    rows.weight[near & (rows.gene < 4)] = 3.0
    rows.meta[near & (rows.gene < 4), 1] = 0.6
    assert profile(rows, window=3)[1]["mean"] == pytest.approx((3 * 0.6 + 0.2) / 4)


def test_sites_are_drawn_the_same_for_a_seed() -> None:
    rows = generated(30)
    rows.meta[:, 1] *= 1 + np.asarray(rows.gene) / 100
    first, again, other = (profile(rows, sample=5, seed=s) for s in (1, 1, 2))
    assert first == again
    assert first[0]["n"] == 5
    assert first[0]["mean"] != other[0]["mean"]


def test_the_report_section_says_what_was_found(tmp_path: Path) -> None:
    section = study("neighbourhoods", "Neighbourhoods", lambda: neighbourhoods(generated(), CLASSES), tmp_path)
    assert section.status == "made", section.why
    assert "At 8 true donor sites the meta-model gives 0.800 (base 0.400)" in section.says[0]
    assert section.facts["classes"]["donor"]["meta"]["beside"] == pytest.approx((19 * 0.01 + 0.2) / 20)
    assert section.facts["background"] == "neither"
    assert [p.name for p in section.pictures] == ["neighbourhoods-donor"]
    assert section.flags == ()
    blurred = generated()
    blurred.meta[:, 1] = np.maximum(blurred.meta[:, 1], 0.5)
    assert "blurs" in neighbourhoods(blurred, CLASSES).flags[0]


def test_without_a_base_only_the_meta_model_is_drawn() -> None:
    rows = replace(generated(), base=np.full((8 * LENGTH, 3), np.nan))
    found = neighbourhoods(rows, CLASSES)
    assert found.facts["classes"]["donor"]["base"] is None
    assert found.tables["neighbourhoods"]["model"].unique().to_list() == ["meta"]


def test_no_positions_or_no_sites_are_impossible() -> None:
    rows = generated()
    with pytest.raises(ImpossibleError, match="position"):
        neighbourhoods(replace(rows, position=None, strand=None), CLASSES)
    with pytest.raises(ImpossibleError, match="no sites"):
        neighbourhoods(replace(rows, label=np.zeros_like(rows.label)), CLASSES)
