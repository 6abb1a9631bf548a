"""Boosters on a subset of the one matrix's features are those of a table without the others; and what they tell."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pytest
import xgboost as xgb

from metabatch.analysis.ablation import VARIANTS, Variant, ablation, feature_groups
from metabatch.analysis.frame import ImpossibleError, study
from metabatch.data.schema import is_kmer
from metabatch.options import Options
from metabatch.rundir.manifests import Booster, Feature
from metabatch.training.ablation import grow, grow_variants
from metabatch.training.boosters import booster_params
from metabatch.training.gradients import Gradients
from metabatch.training.matrix import Rows
from tests.conftest import DEMO

CLASSES = ("neither", "donor", "acceptor")
SCORES = {"donor": "donor_score", "acceptor": "acceptor_score"}
NAMES = [
    *("donor_score", "acceptor_score", "donor_score_m1", "donor_score_p10", "donor_score_x1"),
    *("3mer_AAA", "3mer_CCC", "3mer_GGG"),
    *(f"context{i}" for i in range(9)),
]
ROWS = 3_000


def feature(name: str) -> Feature:
    group = "kmer" if is_kmer(name) else "score" if name in SCORES.values() else "context"
    return Feature(name=name, dtype="float32", missing="native", if_absent="null", group=group)


class Table:
    """Rows with labels that depend on a score, its neighbour, a k-mer and a context feature."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.values = rng.normal(size=(ROWS, len(NAMES))).astype(np.float32)
        self.values[rng.random(self.values.shape) < 0.1] = np.nan
        known = np.nan_to_num(self.values)
        signal = 2 * known[:, 0] + known[:, 3] + 0.7 * known[:, 5] + 0.7 * known[:, 9] + rng.normal(0, 0.5, ROWS)
        self.label = np.digitize(signal, [-2.5, 2.5]).astype(np.uint8)
        gene = np.repeat(np.arange(30), ROWS // 30)
        self.weight = rng.integers(1, 4, ROWS).astype(np.float32)
        self.rows = Rows(gene, self.label, self.weight, [f"G{i:02d}" for i in range(30)], [(ROWS,)])
        self.fold = (gene % 3).astype(np.int16)

    def matrix(self, chosen: np.ndarray | slice = slice(None)) -> xgb.QuantileDMatrix:
        names = [NAMES[i] for i in np.arange(len(NAMES))[chosen]]
        values = np.ascontiguousarray(self.values[:, chosen])
        return xgb.QuantileDMatrix(values, max_bin=64, nthread=2, feature_names=names)


def plan(**options: Any) -> Any:
    columns = SimpleNamespace(scores=SCORES, classes=CLASSES)
    settings = Booster(base_score=0.5, min_child_weight=1.0, because="test")
    return SimpleNamespace(
        options=Options(max_bin=64, max_depth=4, **options), booster=settings, columns=columns, seed=1
    )


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


class _Once(xgb.DataIter):
    def __init__(self, parts: list[np.ndarray], names: list[str], prefix: Path) -> None:
        self._parts, self._names, self._at = parts, names, 0
        super().__init__(cache_prefix=str(prefix), on_host=False)

    def reset(self) -> None:
        self._at = 0

    def next(self, input_data: Any) -> bool:
        if self._at == len(self._parts):
            return False
        part = self._parts[self._at]
        input_data(data=part, label=np.zeros(len(part), np.float32), feature_names=self._names)
        self._at += 1
        return True


@pytest.fixture(params=["in memory", "external"])
def matrix(request: pytest.FixtureRequest, table: Table, tmp_path: Path) -> Iterator[xgb.DMatrix]:
    if request.param == "in memory":
        yield table.matrix()
        return
    source = _Once(np.array_split(table.values, 3), NAMES, tmp_path / "pages")
    yield xgb.ExtMemQuantileDMatrix(source, max_bin=64, nthread=2, ref=table.matrix())


def trained(matrix: xgb.DMatrix, gradients: Gradients, rounds: int) -> xgb.Booster:
    booster = xgb.Booster(gradients.params, [matrix])
    for done in range(rounds):
        gradients.grow(booster, matrix, done)
    return booster


def trees(booster: xgb.Booster) -> list[str]:
    return booster.get_dump(with_stats=True, dump_format="json")


@pytest.mark.parametrize("variant", list(VARIANTS))
def test_a_variant_grows_the_trees_of_a_table_without_the_other_features(
    table: Table, matrix: xgb.DMatrix, variant: str
) -> None:
    groups = feature_groups([feature(n) for n in NAMES], SCORES)
    allowed = np.isin(groups, VARIANTS[variant])
    params = booster_params(plan(subsample=1.0).options, plan().booster, 2, 5)
    positive = (table.label == 1).astype(np.float32)
    booster = grow(matrix, Gradients(params, positive, table.weight), allowed, 30, lambda: None)
    reduced = table.matrix(allowed)
    alone = trained(reduced, Gradients(params | {"colsample_bytree": 1.0}, positive, table.weight), 30)
    assert trees(booster) == trees(alone)  # by feature names
    assert set(booster.get_score()) <= {n for n, may in zip(NAMES, allowed, strict=True) if may}
    assert np.array_equal(booster.predict(matrix), alone.predict(reduced))


@pytest.mark.parametrize("total", [7, 168, 1_167, 5_000])
def test_exactly_the_allowed_features_are_drawn_whatever_their_number(total: int) -> None:
    """Many features of weight 0 and many trees: with weights of 1 one of them is drawn once in a while."""
    rng = np.random.default_rng(total)
    values = rng.normal(size=(60, total)).astype(np.float32)
    values[:, -1] = values[:, 0] > 0  # what is left out is the best feature of all
    matrix = xgb.QuantileDMatrix(values, label=values[:, -1], max_bin=8, nthread=1)
    params = {"max_depth": 2, "nthread": 1, "objective": "binary:logistic", "tree_method": "hist", "max_bin": 8,
              "base_score": 0.5, "seed": 0, "subsample": 1.0}  # fmt: skip
    gradients = Gradients(params, values[:, -1], None)
    for count in {1, total // 3, total // 2, total - 1}:
        allowed = np.arange(total) < count
        booster = grow(matrix, gradients, allowed, 30, lambda: None)
        alone = xgb.QuantileDMatrix(np.ascontiguousarray(values[:, :count]), max_bin=8, nthread=1)
        expected = trained(alone, gradients, 30)
        assert np.array_equal(booster.predict(matrix), expected.predict(alone))


def test_growing_variants_leaves_no_trace_on_later_training(table: Table, matrix: xgb.DMatrix) -> None:
    options = plan(subsample=0.8, colsample_bytree=0.7)
    params = booster_params(options.options, options.booster, 2, 9)

    def train() -> bytes:
        gradients = Gradients(params, table.label == 2, table.weight)
        return bytes(trained(matrix, gradients, 10).save_raw("ubj"))

    before = train()
    features = [feature(n) for n in NAMES]
    grow_variants(matrix, table.rows, table.fold, 1, options, features, 2, 100, lambda: None)
    assert train() == before

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grow_variants(matrix, table.rows, table.fold, 1, options, features, 2, 100, stop)
    assert train() == before


def grown(table: Table, trained_rounds: int = 4_000) -> list[Variant]:
    features = [feature(n) for n in NAMES]
    return grow_variants(table.matrix(), table.rows, table.fold, 1, plan(), features, 2, trained_rounds, lambda: None)


def test_rounds_are_bounded_by_the_cost_of_the_training(table: Table) -> None:
    seen: list[int] = []
    features = [feature(n) for n in NAMES]

    def grow_within(trained_rounds: int) -> int:
        seen.clear()
        variants = grow_variants(
            table.matrix(), table.rows, table.fold, 0, plan(), features, 2, trained_rounds, lambda: seen.append(1)
        )
        assert {v.learning_rate for v in variants} == {0.3}
        assert len(seen) == variants[0].rounds * len(CLASSES) * len(VARIANTS)
        return variants[0].rounds

    assert grow_within(100) == 10
    assert grow_within(5_000) == 13  # 0.05 * 5,000 / (6 variants x 3 classes)
    assert len(seen) <= 0.05 * 5_000
    assert [v.rounds for v in grown(table, 40_000)] == [100] * 6


def test_variants_without_features_of_their_own_are_not_grown(table: Table) -> None:
    chosen = np.array([not is_kmer(n) for n in NAMES])
    features = [f for f in map(feature, NAMES) if f.group != "kmer"]
    matrix = table.matrix(chosen)
    variants = {v.name: v for v in
                grow_variants(matrix, table.rows, table.fold, 1, plan(), features, 2, 0, lambda: None)}  # fmt: skip
    assert variants["no-kmers"].same_as == "full"
    assert variants["context-only"].same_as == "no-scores"
    assert variants["kmers-only"].features == 0
    assert [v.name for v in variants.values() if v.scores is None] == ["kmers-only", "no-kmers", "context-only"]
    found = compared(table, list(variants.values()))
    assert "no-kmers: same features as full" in found.shown[0].note
    assert "kmers-only: no such features" in found.shown[0].note


def test_what_comes_from_the_scores_counts_as_scores() -> None:
    groups = dict(zip(NAMES, feature_groups([feature(n) for n in NAMES], SCORES), strict=True))
    assert [n for n, g in groups.items() if g == "score"] == NAMES[:5]
    assert groups["context0"] == "context"
    assert groups["3mer_AAA"] == "kmer"
    assert set(feature_groups([feature(n) for n in NAMES if n not in SCORES.values()], {})) == {"kmer", "context"}


def compared(table: Table, variants: list[Variant]) -> Any:
    here = table.fold == 1
    return ablation(variants, table.label[here], table.weight[here], table.rows.gene[here], CLASSES,
                    rounds=variants[0].rounds, on="fold 1", seed=4)  # fmt: skip


def test_what_is_taken_away_is_missed_as_far_as_it_mattered(table: Table, tmp_path: Path) -> None:
    variants = grown(table)
    found = compared(table, variants)
    facts = found.facts["classes"]["acceptor"]
    for name in ("no-scores", "kmers-only", "context-only"):
        assert facts[name]["ap_high"] < -0.1, name
        assert facts[name]["log_loss_low"] > 0, name
        assert facts[name]["ap_low"] < facts[name]["ap_change"] < facts[name]["ap_high"]
    assert facts["scores-only"]["ap_change"] > facts["kmers-only"]["ap_change"]
    assert facts["full"]["ap_change"] is None
    assert any("without scores acceptor AP falls by" in text for text in found.says)
    assert found.tables["ablation"].height == 3 * len(VARIANTS)
    section = study("ablation", "Ablation", lambda: compared(table, variants), tmp_path)
    assert section.status == "made", section.why
    assert pl.read_parquet(tmp_path / "ablation.parquet").equals(found.tables["ablation"])
    assert len(section.pictures) == 3
    assert "rounds at learning rate 0.3" in section.shown[0].note
    again = compared(table, variants)
    assert msgspec.json.encode(again.facts) == msgspec.json.encode(found.facts)


def test_impossible_where_nothing_can_be_compared(table: Table) -> None:
    variants = grown(table, 0)
    here = table.fold == 1
    label, weight, gene = table.label[here], table.weight[here], table.rows.gene[here]
    for one, two, three in (
        (label, weight, np.zeros_like(gene)),
        (np.zeros_like(label), weight, gene),
    ):
        with pytest.raises(ImpossibleError):
            ablation(variants, one, two, three, CLASSES, rounds=10, on="", seed=0)
    with pytest.raises(ImpossibleError, match="one group"):
        ablation(variants[:1], label, weight, gene, CLASSES, rounds=10, on="", seed=0)
    found = ablation(variants, np.minimum(label, 1), weight, gene, CLASSES, rounds=10, on="", seed=0)
    assert found.facts["left_out"] == ["acceptor"]


def test_the_demos_scores_are_told_from_its_context() -> None:
    names = pl.read_parquet_schema(next(iter(sorted(DEMO.glob("*.parquet")))))
    scores = {c: f"{c}_score" for c in CLASSES}
    features = [
        Feature(name=n, dtype="float32", missing="native", if_absent="null",
                group="kmer" if is_kmer(n) else "score" if n in scores.values() else "context")
        for n in names
    ]  # fmt: skip
    groups = feature_groups(features, scores)
    assert sum(g == "score" for g in groups) == 65  # three scores, two of them at twenty neighbours, 22 derived
    assert json.dumps(sorted(set(groups))) == '["context", "kmer", "score"]'
