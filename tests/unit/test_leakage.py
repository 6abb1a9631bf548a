"""The numbers of the leakage screen are scikit-learn's and SciPy's; it tells leaks from what is made of base scores."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import pearsonr, spearmanr
from sklearn.metrics import average_precision_score, roc_auc_score

from metabatch.analysis.leakage import Screen, leakage_table
from metabatch.analysis.ranking import auc_and_ap, auc_within, correlations, rank

CLASSES = ("neither", "donor", "acceptor")
ROWS, GENES = 12_000, 60


class Table:
    """Rare classes in 60 genes, and base scores of AUC 0.97 (`works`), or of 0.7."""

    def __init__(self, seed: int = 0, *, shift: float = 2.7) -> None:
        self.rng = np.random.default_rng(seed)
        self.screens: dict[bool, Screen] = {}
        self.label = self.rng.choice(3, ROWS, p=[0.95, 0.025, 0.025])
        self.unit = np.arange(ROWS) * GENES // ROWS
        self.base = {
            name: (shift * (self.label == k) + self.rng.normal(size=ROWS)).astype(np.float32)
            for k, name in enumerate(CLASSES)
        }

    def flagged(self, values: np.ndarray, *, base: bool = True) -> dict[str, str]:
        if base not in self.screens:
            self.screens[base] = Screen(self.label, self.unit, CLASSES, self.base if base else {})
        return {r["class"]: r["reason"] for r in self.screens[base].column("x", values) if r["flagged"]}


def noisy(table: Table, values: np.ndarray, part: float) -> np.ndarray:
    """`values` of which a part is taken from rows drawn at random among the other labels."""
    changed = table.rng.random(ROWS) < part
    return np.where(changed, (values + table.rng.integers(1, 3, ROWS)) % 3, values)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2)), min_size=4, max_size=60))
def test_numbers_are_those_of_the_libraries(rows: list[tuple[int, int]]) -> None:
    values, label = np.array([r[0] for r in rows], np.float32), np.array([r[1] for r in rows])
    one_hot = (label[:, None] == np.arange(3)).astype(np.int32)
    ranked = rank(values, np.arange(len(rows)), one_hot)
    auc, ap = auc_and_ap(ranked)
    pearson, spearman = correlations(ranked)
    for k in range(3):
        y = label == k
        if y.all() or not y.any():
            assert np.isnan(auc[k])
            continue
        assert auc[k] == pytest.approx(roc_auc_score(y, values))
        assert ap[k] == pytest.approx(max(average_precision_score(y, values), average_precision_score(y, -values)))
        whole = auc_within(ranked, k, None)
        assert whole is not None
        assert whole.auc == pytest.approx(auc[k])
        if len(set(values)) > 1:
            assert pearson[k] == pytest.approx(pearsonr(values.astype(float), y)[0], abs=1e-9)
            assert spearman[k] == pytest.approx(spearmanr(values, y)[0], abs=1e-9)


def test_auc_within_strata_is_the_weighted_mean_of_theirs() -> None:
    rng = np.random.default_rng(1)
    stratum, label, values = rng.integers(0, 4, 400), rng.integers(0, 2, 400), rng.integers(0, 9, 400)
    label[stratum == 3] = 1  # nothing to compare
    found = auc_within(rank(values, np.arange(400), np.eye(2, dtype=np.int32)[label]), 1, stratum)
    parts = [(roc_auc_score(label[m], values[m]), m.sum(), label[m].sum()) for m in (stratum == s for s in range(3))]
    weights = [n1 * (n - n1) / (n + 1) for _, n, n1 in parts]
    assert found is not None
    assert found.auc == pytest.approx(np.average([p[0] for p in parts], weights=weights))
    assert found.weight == pytest.approx(sum(weights))


def test_the_error_takes_genes_as_independent() -> None:
    """Standard deviation over 300 tables in which a gene's rows share half of their noise."""
    aucs, errors = [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        unit = np.repeat(np.arange(40), 15)
        label = rng.integers(0, 2, 600)
        x = label + rng.normal(size=600) + 2 * rng.normal(size=40)[unit]
        found = auc_within(rank(x, np.arange(600), np.eye(2, dtype=np.int32)[label]), 1, None, unit)
        assert found is not None
        aucs.append(found.auc)
        errors.append(found.error)
    assert np.mean(errors) == pytest.approx(np.std(aucs), rel=0.15)


def test_features_made_from_the_base_scores_are_no_leaks() -> None:
    table = Table()
    donor, acceptor = table.base["donor"], table.base["acceptor"]
    for made in (
        donor, -donor, np.exp(donor), np.round(donor), donor + 0.1 * table.rng.normal(size=ROWS),
        donor - 0.5 * acceptor, np.maximum(donor, acceptor), (donor > 2).astype(np.uint8),
        np.where(donor > 3, donor, 0), np.where(donor > 1, donor, np.nan),
    ):  # fmt: skip
        assert table.flagged(np.asarray(made, np.float32)) == {}


@pytest.mark.parametrize("base", [True, False])
def test_leaks_are_flagged_with_what_tells(*, base: bool) -> None:
    table = Table()
    noise = table.rng.normal(size=ROWS).astype(np.float32)
    site = table.label > 0
    present = table.flagged(np.where(site, noise, np.float32("nan")), base=base)
    assert "present in 100% of its rows" in present["donor" if base else "neither"] or not base
    assert "missing in 100% of its rows and 0% of the others: missingness AUC 1.00" in present["neither"]
    zero = table.flagged(np.where(site, noise, 0), base=base)
    assert "zero-ness AUC 1.00" in zero["neither"]
    code = table.flagged(table.label.astype(np.uint8), base=base)
    assert {"neither", "acceptor"} <= set(code)
    inverse = table.flagged((table.label != 1).astype(np.uint8), base=base)
    assert set(inverse) >= {"donor"}
    only_one = table.flagged(noise + 100 * (table.label == 2), base=base)
    assert set(only_one) == {"acceptor"}


def test_a_label_with_one_in_twenty_changed_is_a_leak_beside_a_base_score() -> None:
    for seed in range(3):
        table = Table(seed)
        found = table.flagged(noisy(table, table.label, 0.05).astype(np.uint8))
        assert "among rows of like base score" in found["acceptor"]
        donor = noisy(table, table.label, 0.05) == 1
        assert "donor" in table.flagged(donor.astype(np.float32))


def test_a_leak_in_part_of_the_genes_is_seen_by_where_it_is_filled() -> None:
    table = Table(shift=1.9)
    noise = table.rng.normal(size=ROWS)
    filled = (table.label > 0) & (table.unit % 4 == 0)
    assert "present are not neither" in table.flagged(np.where(filled, noise, np.nan))["neither"]
    assert "not zero are not neither" in table.flagged(np.where(filled, noise, 0))["neither"]
    donor = (table.label == 1) & (table.unit % 3 == 0)
    assert "present are donor" in table.flagged(np.where(donor, noise, np.nan))["donor"]


def test_without_base_scores_a_strong_feature_is_no_leak() -> None:
    """Shifts of 1.8 and 2.5 standard deviations are AUC 0.90 and 0.96."""
    table, weak = Table(), Table(shift=0.5)
    for shift in (1.8, 2.5):
        strong = shift * (table.label == 1) + table.rng.normal(size=ROWS)
        assert table.flagged(strong, base=False) == {}
        strong = shift * (weak.label == 1) + weak.rng.normal(size=ROWS)
        assert weak.flagged(strong) == {}  # a base score that does not work says no more
    assert "donor" in table.flagged(5 * (table.label == 1) + table.rng.normal(size=ROWS), base=False)


@pytest.mark.parametrize("rows", [6, 19])
def test_few_rows_prove_nothing(rows: int) -> None:
    label = np.zeros(2000, dtype=int)
    label[np.linspace(0, 1999, rows, dtype=int)] = 1
    screen = Screen(label, np.arange(2000) // 20, ("no", "yes"), {})
    assert not any(r["flagged"] for r in screen.column("copy", label.astype(np.float32)))
    one_gene = Screen(np.arange(2000) // 1900, np.arange(2000) // 100, ("no", "yes"), {})
    assert not any(r["flagged"] for r in one_gene.column("copy", (np.arange(2000) // 1900).astype(np.float32)))


def test_noise_is_not_flagged_whatever_its_kind() -> None:
    table = Table(3)
    for trial in range(60):
        rng = np.random.default_rng(trial)
        kinds = (rng.normal(size=ROWS), rng.poisson(0.02, ROWS), np.where(rng.random(ROWS) < 0.99, np.nan, 1.0))
        assert table.flagged(kinds[trial % 3].astype(np.float32), base=trial % 2 == 0) == {}


def test_columns_without_a_value_or_a_difference_are_null_in_the_table() -> None:
    table = Table()
    screen = Screen(table.label, table.unit, CLASSES, table.base)
    found = leakage_table([
        *screen.column("empty", np.full(ROWS, np.nan, np.float32)), *screen.column("same", np.full(ROWS, 7, np.uint8)),
    ])  # fmt: skip
    assert not found["flagged"].any()
    assert found["pearson"].null_count() == 6
    assert found.filter(feature="empty")["auc"].null_count() == 3
    assert found.filter(feature="same")["auc"].to_list() == [0.5] * 3
