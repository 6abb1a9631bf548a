"""Thresholds: the scan by hand and against scikit-learn, honest figures, and rows of several files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import f1_score, precision_score, recall_score

from metabatch.analysis.frame import ImpossibleError, study
from metabatch.analysis.scored import ScoredRows, best_thresholds, load_scored
from metabatch.analysis.thresholds import scan_thresholds
from metabatch.metrics.thresholds import OperatingPoints, at_threshold
from metabatch.rundir.manifests import Columns

CLASSES = ("neither", "donor", "acceptor")


def scored(label: np.ndarray, meta: np.ndarray, *, base: np.ndarray | None = None, gene: np.ndarray | None = None,
           weight: np.ndarray | None = None) -> ScoredRows:  # fmt: skip
    gene = np.arange(len(label)) // 50 if gene is None else gene
    return ScoredRows(
        gene=gene, group=gene, label=label, weight=np.ones(len(label)) if weight is None else weight,
        base=np.full(meta.shape, np.nan) if base is None else base, meta=meta,
        gene_names=[f"G{i:03d}" for i in range(int(gene.max()) + 1)], of_rows=len(label),
        of_genes=int(gene.max()) + 1,
    )  # fmt: skip


def generated(n: int = 2000, seed: int = 0) -> ScoredRows:
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=[0.9, 0.06, 0.04])
    logits = 2.0 * (label[:, None] == np.arange(3)) + rng.normal(0, 1, (n, 3)) + np.array([2, 0, 0])
    meta = (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)
    return scored(label, meta, base=rng.random((n, 3)))


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10_000))
def test_every_point_equals_scikit_learn_and_none_beats_the_best(seed: int) -> None:
    rng = np.random.default_rng(seed)
    score, positive, weight = rng.integers(0, 8, 40) / 8, rng.random(40) < 0.4, rng.random(40) + 0.1
    points = OperatingPoints.of(score, positive, weight)
    if points is None:
        assert positive.all() or not positive.any()
        return
    assert list(points.threshold) == sorted(set(score), reverse=True)
    for i, threshold in enumerate(points.threshold):
        called = score >= threshold
        assert points.called_rows[i] == called.sum()
        for metric, values in ((precision_score, points.precision), (recall_score, points.recall),
                               (f1_score, points.f1)):  # fmt: skip
            assert values[i] == pytest.approx(metric(positive, called, sample_weight=weight), abs=1e-12)
        assert at_threshold(score, positive, weight, threshold)["f1"] == pytest.approx(points.f1[i])
    assert points.f1[points.best()] == points.f1.max()


def test_the_wanted_precision_is_reached_with_the_most_recall_or_null() -> None:
    score = np.array([0.9, 0.8, 0.7, 0.6, 0.5])
    positive = np.array([False, True, True, False, True])
    points = OperatingPoints.of(score, positive, np.ones(5))
    assert points is not None
    assert points.threshold[points.at_precision(0.6)] == 0.5
    assert points.threshold[points.at_precision(0.65)] == 0.7
    assert points.at_precision(0.8) is None
    assert points.threshold[points.at_recall(0.6)] == 0.7


def test_weights_move_the_threshold_as_repeated_rows_would() -> None:
    rows = generated(400)
    times = np.random.default_rng(1).integers(1, 5, 400)
    weighted = scored(rows.label, rows.meta, weight=times.astype(float))
    again = np.repeat(np.arange(400), times)
    repeated = scored(rows.label[again], rows.meta[again], gene=rows.gene[again])
    assert best_thresholds(weighted, CLASSES) == best_thresholds(repeated, CLASSES)


def test_the_recommended_threshold_gives_the_f1_that_is_said_and_is_the_best_of_the_table() -> None:
    rows = generated()
    found = scan_thresholds(rows, CLASSES)
    for code, name in enumerate(CLASSES):
        facts = found.facts["classes"][name]
        assert facts["threshold"] == best_thresholds(rows, CLASSES)[name]
        called = rows.meta[:, code] >= np.float32(facts["threshold"])
        assert f1_score(rows.label == code, called) == pytest.approx(facts["f1"])
        table = found.tables["thresholds"].filter(pl.col("class") == name)
        assert table.height <= 402
        assert table["f1"].max() <= facts["f1"] + 1e-12
        assert facts["f1_ci95"][0] < facts["f1"] < facts["f1_ci95"][1]
    assert found.facts["classes"]["donor"]["base"]["f1"] < found.facts["classes"]["donor"]["f1"]


def test_a_score_that_says_nothing_has_an_honest_f1_below_the_one_picked_on_the_same_rows() -> None:
    rng = np.random.default_rng(3)
    n = 600
    label = (rng.random(n) < 0.05).astype(int)
    meta = rng.random((n, 2)).astype(np.float32)
    facts = scan_thresholds(scored(label, meta), ("no", "yes")).facts["classes"]["yes"]
    assert facts["f1_honest"] < facts["f1"]
    assert scan_thresholds(scored(label, meta), ("no", "yes")).facts["classes"]["yes"] == facts


def test_an_absent_class_is_named_and_a_table_of_one_class_is_impossible() -> None:
    rows = generated(300)
    label = np.where(rows.label == 2, 0, rows.label)
    found = scan_thresholds(scored(label, rows.meta), CLASSES)
    assert best_thresholds(scored(label, rows.meta), CLASSES)["acceptor"] is None
    assert found.facts["absent"] == ["acceptor"]
    assert "acceptor" in found.says[-1]
    with pytest.raises(ImpossibleError):
        scan_thresholds(scored(np.zeros(300, int), rows.meta), CLASSES)


def test_one_group_gives_no_honest_figure_rather_than_a_wrong_one(tmp_path: Path) -> None:
    rows = generated(300)
    one = scored(rows.label, rows.meta, gene=np.zeros(300, int))
    section = study("thresholds", "Thresholds", lambda: scan_thresholds(one, CLASSES), tmp_path)
    assert section.status == "made", section.why
    assert section.facts["classes"]["donor"]["f1_honest"] is None
    assert len(section.pictures) == 3


def test_a_rare_class_with_scores_of_exactly_0_and_1_is_drawn(tmp_path: Path) -> None:
    label = np.zeros(3000, int)
    label[::200] = 1
    score = np.where(label == 1, 1.0, np.random.default_rng(0).random(3000) ** 8)
    score[5:50] = 0.0
    rows = scored(label, np.stack([1 - score, score], axis=1).astype(np.float32))
    section = study("thresholds", "Thresholds", lambda: scan_thresholds(rows, ("no", "yes")), tmp_path)
    assert section.status == "made", section.why
    assert section.facts["classes"]["yes"]["threshold"] == 1.0
    numbers = pl.read_csv(tmp_path / "figures" / "thresholds-yes.csv")
    assert 0 < numbers["drawn_at"].min() < numbers["drawn_at"].max() < 1


def write_oof(path: Path, genes: dict[str, float]) -> Path:
    """Four rows a gene; the donor score tells from which file a row came."""
    parts = [
        pl.DataFrame({"gene_id": [g] * 4, "label": ["neither", "donor", "acceptor", "neither"], "weight": [1.0] * 4,
                      "position": [1, 2, 3, 4], "fold": [0] * 4,
                      **{f"{c}_{k}": [value] * 4 for c in CLASSES for k in ("score", "raw", "meta")}})
        for g, value in genes.items()
    ]  # fmt: skip
    pl.concat(parts).write_parquet(path)
    return path


def columns() -> Columns:
    return Columns(
        group="gene_id", label="label", classes=CLASSES, scores={c: f"{c}_score" for c in CLASSES}, split=None,
        weight=None, ids=(), chrom=None, row_key=(), carried={},
    )  # fmt: skip


def test_a_gene_of_two_instances_is_read_from_the_one_where_it_is_core(tmp_path: Path) -> None:
    first = write_oof(tmp_path / "0.parquet", {"A": 0.1, "B": 0.1, "C": 0.1})
    second = write_oof(tmp_path / "1.parquet", {"B": 0.2, "C": 0.2, "D": 0.2})
    groups = {g: g for g in "ABCD"}
    rows = load_scored({first: ["A", "C"], second: ["B", "D"]}, columns(), groups)
    assert rows.gene_names == ["A", "B", "C", "D"]
    assert len(rows) == rows.of_rows == 16
    found = {rows.gene_names[g]: m for g, m in zip(rows.gene, rows.meta[:, 1].round(3).tolist(), strict=True)}
    assert found == pytest.approx({"A": 0.1, "B": 0.2, "C": 0.1, "D": 0.2})
    drawn = load_scored({first: ["A", "C"], second: ["B", "D"]}, columns(), groups, most=8, only_scores=True)
    assert len(drawn) == 8
    assert len(drawn.gene_names) == 2
    assert "drawn" in drawn.described()
    assert drawn.raw is drawn.fold is drawn.position is None
    for gene, value in zip(drawn.gene, drawn.meta[:, 1], strict=True):
        assert value == pytest.approx(0.1 if drawn.gene_names[gene] in "AC" else 0.2)


def test_every_load_gives_each_row_its_own_strand_label_and_fold(tmp_path: Path) -> None:
    """polars 2.1.0 gives wrong values now and then for when/then inside a parquet scan."""
    rng = np.random.default_rng(0)
    n = 12_000
    gene = np.sort(rng.integers(0, 27, n))
    score = rng.random(n).astype(np.float32)
    frame = pl.DataFrame({
        "gene_id": [f"ENSG{g:011d}" for g in gene], "position": rng.permutation(n).astype(np.int64),
        "strand": np.where(gene % 2 == 0, "+", "-"), "label": np.array(CLASSES)[rng.integers(0, 3, n)],
        "weight": rng.random(n), "fold": rng.integers(0, 3, n).astype(np.int16),
        **{f"{c}_{k}": score for c in CLASSES for k in ("score", "raw", "meta")},
    })  # fmt: skip
    frame.write_parquet(tmp_path / "oof.parquet", row_group_size=1000)
    names = sorted(set(frame["gene_id"]))
    for wanted in (tmp_path / "oof.parquet", {tmp_path / "oof.parquet": names}):
        for _ in range(20):
            rows = load_scored(wanted, columns(), {g: g for g in names})
            assert np.array_equal(rows.strand, np.where(gene % 2 == 0, 1, -1))
            assert [CLASSES[i] for i in rows.label] == frame["label"].to_list()
            assert np.array_equal(rows.fold, frame["fold"])
            assert np.array_equal(rows.position, frame["position"])
