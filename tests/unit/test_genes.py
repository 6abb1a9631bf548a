"""Per gene and per decision, base and meta-model: by hand, and where the base cannot be compared."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, log_loss

from metabatch.analysis.frame import ImpossibleError, study
from metabatch.analysis.genes import compare_genes
from metabatch.analysis.per_gene import per_gene
from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.classification import top_k

CLASSES = ("neither", "donor", "acceptor")


def generated(genes: int = 12, rows: int = 40, seed: int = 0) -> ScoredRows:
    """The meta-model is better in most genes, and worse in the first two."""
    rng = np.random.default_rng(seed)
    n = genes * rows
    gene, label = np.repeat(np.arange(genes), rows), rng.choice(3, n, p=[0.6, 0.2, 0.2])
    truth = np.eye(3)[label]

    def proba(sharp: np.ndarray) -> np.ndarray:
        logits = sharp[:, None] * truth + rng.normal(0, 1, (n, 3))
        return (np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)).astype(np.float32)

    return ScoredRows(
        gene=gene.astype(np.uint32), group=gene // 2, label=label, weight=rng.integers(1, 5, n).astype(float),
        base=proba(np.full(n, 1.5)), meta=proba(np.where(gene < 2, 0.2, 3.5)),
        gene_names=[f"G{i:04d}" for i in range(genes)], of_rows=n, of_genes=genes,
    )  # fmt: skip


def test_a_gene_by_hand() -> None:
    rows = generated()
    here = rows.gene == 3
    label, w = rows.label[here], rows.weight[here]
    found = per_gene(rows, CLASSES).row(3, named=True)
    assert found["gene_id"] == "G0003"
    assert found["rows"] == 40
    right = {m: getattr(rows, m)[here].argmax(axis=1) == label for m in ("base", "meta")}
    assert found["errors_fixed"] == (right["meta"] & ~right["base"]).sum()
    assert found["errors_introduced_weight"] == pytest.approx(w[right["base"] & ~right["meta"]].sum())
    for model in ("base", "meta"):
        proba = getattr(rows, model)[here].astype(np.float64)
        expected = log_loss(label, proba / proba.sum(axis=1, keepdims=True), sample_weight=w, labels=[0, 1, 2])
        assert found[f"{model}_log_loss"] == pytest.approx(expected, rel=1e-5)
        ap = average_precision_score(label == 1, proba[:, 1], sample_weight=w)
        assert found[f"donor_ap_{model}"] == pytest.approx(ap)
        assert found[f"donor_top_k_{model}"] == pytest.approx(top_k(proba[:, 1], label == 1, w))


def test_the_sign_test_counts_groups_since_their_genes_are_not_independent() -> None:
    found = compare_genes(generated(), CLASSES)
    assert (found.facts["better"], found.facts["worse"]) == (10, 2)
    assert (found.facts["groups"], found.facts["groups_better"]) == (6, 5)
    assert found.facts["sign_test_p"] == pytest.approx(binomtest(5, 6).pvalue)
    assert "10 of 12 genes" in found.says[0]
    assert "6 groups" in found.says[0]
    low, high = found.facts["log_loss_gain_ci95"]
    assert low < found.facts["log_loss_gain"] < high
    assert [row[0] for row in found.shown[0].rows[-2:]] != [row[0] for row in found.shown[0].rows[:2]]
    assert {row[0] for row in found.shown[0].rows[5:]} == {"G0000", "G0001"}


def test_decisions_by_class_add_up_to_those_by_gene() -> None:
    rows = generated()
    found = compare_genes(rows, CLASSES)
    table = found.tables["per_gene"]
    for kind in ("fixed", "introduced"):
        assert sum(d[kind] for d in found.facts["decisions"].values()) == table[f"errors_{kind}"].sum()
        total = sum(d[f"{kind}_weight"] for d in found.facts["decisions"].values())
        assert total == pytest.approx(table[f"errors_{kind}_weight"].sum())
    for d in found.facts["decisions"].values():
        assert d["meta_right"] - d["base_right"] == d["fixed"] - d["introduced"]


def test_a_gene_without_a_class_has_null_not_zero() -> None:
    rows = generated()
    rows = replace(rows, label=np.where((rows.gene == 4) & (rows.label == 1), 0, rows.label))
    table = per_gene(rows, CLASSES)
    assert table["donor_ap_meta"].null_count() == 1
    assert table["donor_ap_meta"][4] is None
    assert compare_genes(rows, CLASSES).facts["classes"]["donor"]["genes"] == 11


def test_an_incomplete_base_is_compared_by_ap_and_makes_no_decisions(tmp_path: Path) -> None:
    rows = generated()
    base = rows.base.copy()
    base[:, 0] = np.nan
    part = replace(rows, base=base)
    section = study("genes", "Genes", lambda: compare_genes(part, CLASSES), tmp_path)
    assert section.status == "made", section.why
    assert section.facts["measure"] == "ap_gain"
    assert "decisions" not in section.facts
    assert "neither" not in section.facts["classes"]
    table = pl.read_parquet(tmp_path / "per_gene.parquet")
    for column in ("base_log_loss", "errors_fixed", "errors_introduced", "log_loss_gain", "neither_ap_base"):
        assert table[column].null_count() == table.height, column
    assert table["meta_log_loss"].null_count() == 0
    with pytest.raises(ImpossibleError, match="base score"):
        compare_genes(replace(rows, base=np.full_like(base, np.nan)), CLASSES)


def test_scores_that_are_no_probabilities_have_no_log_loss() -> None:
    rows = generated()
    table = per_gene(replace(rows, base=rows.base * 30 - 10), CLASSES)
    assert table["base_log_loss"].null_count() == table.height
    assert table["errors_fixed"].null_count() == 0
    assert table["donor_ap_base"].to_list() == pytest.approx(per_gene(rows, CLASSES)["donor_ap_base"].to_list())


def test_many_genes_take_seconds_and_one_gene_is_refused() -> None:
    begun = time.process_time()
    table = per_gene(generated(1500, 200), CLASSES)
    assert table.height == 1500
    assert time.process_time() - begun < 20
    with pytest.raises(ImpossibleError, match="one gene"):
        compare_genes(generated(1), CLASSES)
