"""Members made one distribution: the plain mean, silent members, the learned rules and what they are fitted on."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import msgspec
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.metrics import log_loss as sk_log_loss

from metabatch.ensemble.choosing import FOLDS, HonestRows, choose, learnable
from metabatch.ensemble.combining import equal, fit_rule, log_loss, macro_ap
from metabatch.ensemble.routing import GeneLevels
from metabatch.errors import InputError
from metabatch.models.pooling import pool
from metabatch.options import COMBINATIONS
from metabatch.rundir.bundle import Combination
from tests.conftest import ROOT

CLASSES = ("neither", "donor", "acceptor")


def members(n: int, noise: tuple[float, ...], seed: int = 0, silent: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Members that see the truth through noise of their own; label. With `silent` each row is unknown to one member."""
    rng = np.random.default_rng(seed)
    label = rng.choice(3, n, p=[0.7, 0.15, 0.15])
    truth = 2.5 * np.eye(3)[label]
    z = np.stack([truth + rng.normal(0, s, (n, 3)) for s in noise])
    proba = np.exp(z) / np.exp(z).sum(axis=2, keepdims=True)
    if silent:
        proba[np.arange(n) % len(noise), np.arange(n)] = np.nan
    return proba, label


def honest(proba: np.ndarray, label: np.ndarray, rows_a_gene: int = 50) -> HonestRows:
    n = len(label)
    gene = np.arange(n) // rows_a_gene
    return HonestRows(
        proba=proba, base=np.full((n, 3), np.nan), label=label, weight=np.ones(n), gene=gene, group=gene,
        gene_names=[f"G{i}" for i in range(gene.max() + 1)], of_rows=n, of_genes=int(gene.max() + 1),
        levels={"gene_length": np.arange(gene.max() + 1, dtype=np.float32) * 37 % 101},
    )  # fmt: skip


def test_the_mean_of_all_is_the_mean_to_the_last_bit() -> None:
    proba, _ = members(200, (1.0, 1.5, 2.0))
    assert np.array_equal(pool(proba, equal(3)), (proba[0] + proba[1] + proba[2]) / 3)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_whoever_speaks_the_result_is_a_distribution_and_silent_members_do_not_matter(
    count: int, seed: int, stacked: bool
) -> None:
    rng = np.random.default_rng(seed)
    proba = rng.dirichlet(np.ones(3), (count, 40))
    silent = rng.random((count, 40)) < 0.4
    rule = Combination(
        method="stacking" if stacked else "convex", weights=tuple(rng.random(count) * (rng.random(count) < 0.7)),
        coefficients=tuple(map(tuple, rng.normal(size=(3, 3 * count)))) if stacked else (),
        intercept=(0.1, -0.2, 0.3) if stacked else (),
    )  # fmt: skip
    heard = np.where(silent[:, :, None], np.nan, proba)
    found = pool(heard, rule)
    nobody = silent.all(axis=0)
    assert np.isnan(found[nobody]).all()
    assert np.allclose(found[~nobody].sum(axis=1), 1)
    # What a silent member would have said changes nothing, and neither do the other rows.
    for row in np.flatnonzero(~nobody)[:3]:
        assert np.array_equal(pool(heard[:, row : row + 1], rule)[0], found[row])
    if not stacked:
        w = np.array(rule.weights)
        for row in np.flatnonzero(~nobody):
            mine = np.where(silent[:, row], 0, w)
            mine = np.where(silent[:, row], 0, 1.0) if mine.sum() == 0 else mine
            assert np.allclose(found[row], mine @ np.nan_to_num(heard[:, row]) / mine.sum())


@pytest.mark.parametrize("method", COMBINATIONS)
def test_every_rule_gives_more_to_members_that_know_more(method: str) -> None:
    proba, label = members(6_000, (0.8, 0.9, 6.0, 6.5), silent=True)
    weight = np.ones(len(label))
    length = np.arange(len(label)) // 50 % 40 * 1.0
    rule = fit_rule(method, proba, label, weight, {"gene_length": length}, np.arange(len(label)) // 50)  # type: ignore[arg-type]
    new, truth = members(6_000, (0.8, 0.9, 6.0, 6.5), seed=1)
    ap = macro_ap(pool(new, rule, length), truth, weight)
    mean = macro_ap(pool(new, equal(4)), truth, weight)
    assert rule.method == method
    assert msgspec.json.decode(msgspec.json.encode(rule), type=Combination) == rule
    if method in ("mean", "logit-mean"):  # all count alike: one that is sure and wrong spoils a mean of logits
        assert len(set(rule.weights)) == 1
        return
    if method == "hierarchical":  # groups of members whose errors go together, not members, are weighted
        assert ap > mean - 0.02
        return
    assert ap > mean + 0.02
    if method != "stacking":
        assert min(rule.weights[:2]) > max(rule.weights[2:])


def test_convex_weights_minimise_the_log_loss() -> None:
    proba, label = members(2_000, (1.0, 1.2, 3.0), silent=True)
    weight = np.random.default_rng(3).integers(1, 5, len(label)).astype(float)
    best = fit_rule("convex", proba, label, weight, {}, np.zeros(len(label)))
    least = log_loss(pool(proba, best), label, weight)
    assert sum(best.weights) == pytest.approx(1)
    rng = np.random.default_rng(0)
    for _ in range(30):
        near = np.clip(np.array(best.weights) + rng.normal(0, 0.03, 3), 0, None)
        other = Combination(method="convex", weights=tuple(near))
        assert log_loss(pool(proba, other), label, weight) >= least - 1e-8


def test_stacking_is_scikit_learns_multinomial_regression() -> None:
    proba, label = members(1_500, (1.0, 2.0))
    logs = np.log(proba)
    x = (logs - logs.mean(axis=2, keepdims=True)).transpose(1, 0, 2).reshape(1_500, -1)
    model = LogisticRegression(C=1.0, max_iter=1000, tol=1e-6).fit(x, label)
    found = pool(proba, fit_rule("stacking", proba, label, np.ones(1_500), {}, np.zeros(1_500)))
    assert np.allclose(found, model.predict_proba(x), atol=1e-4)


def test_metrics_of_the_choice_are_scikit_learns() -> None:
    proba, label = members(800, (1.0,))
    weight = np.random.default_rng(0).integers(1, 9, 800).astype(float)
    expected = np.mean([average_precision_score(label == c, proba[0][:, c], sample_weight=weight) for c in range(3)])
    assert macro_ap(proba[0], label, weight) == pytest.approx(expected)
    assert log_loss(proba[0], label, weight) == pytest.approx(sk_log_loss(label, proba[0], sample_weight=weight))


def test_auto_keeps_the_mean_of_equals_and_leaves_it_where_a_member_knows_nothing() -> None:
    rng = np.random.default_rng(0)
    truth = rng.dirichlet((2, 0.5, 0.5), 6_000)
    label = (rng.random((6_000, 1)) > truth.cumsum(axis=1)).sum(axis=1)
    alike = truth * rng.uniform(0.9, 1.1, (4, 6_000, 3))
    even = choose(honest(alike / alike.sum(axis=2, keepdims=True), label), CLASSES, "auto", 42, {})
    assert even.rule.method == "mean"
    assert [line["method"] for line in even.judged] == list(COMBINATIONS)
    uneven = choose(honest(*members(6_000, (1.0, 1.0, 9.0, 9.0), silent=True)), CLASSES, "auto", 42, {})
    taken = next(line for line in uneven.judged if line["taken"])
    assert uneven.rule.method == taken["method"] != "mean"
    assert taken["difference_ci95"][0] > 0


def test_no_row_is_combined_by_a_rule_that_saw_its_gene() -> None:
    rows = honest(*members(3_000, (1.0, 2.0, 4.0), silent=True))
    choice = choose(rows, CLASSES, "convex", 42, {})
    assert set(choice.fold) == set(range(FOLDS))
    assert all(len(set(choice.fold[rows.gene == g])) == 1 for g in np.unique(rows.gene))
    for number, rule in enumerate(choice.crossed):
        others, here = choice.fold != number, choice.fold == number
        again = fit_rule(
            "convex", rows.proba[:, others], rows.label[others], rows.weight[others], {}, rows.gene[others]
        )
        assert again.weights == rule.weights
        assert np.array_equal(choice.pooled[here], pool(rows.proba[:, here], rule))


def test_routing_gives_each_kind_of_gene_the_members_that_know_it() -> None:
    proba, label = members(6_000, (0.8, 0.9, 1.0))
    rows = honest(proba, label, rows_a_gene=25)
    rng = np.random.default_rng(5)
    levels = {"gc_content": rng.random(240).astype(np.float32), "gene_length": rows.levels["gene_length"]}
    short = levels["gene_length"][rows.gene] < 34
    blur, _ = members(6_000, (9.0, 9.0), seed=7)
    proba[0][short], proba[1][~short] = blur[0][short], blur[1][~short]
    rows = replace(rows, proba=proba, levels=levels)
    choice = choose(rows, CLASSES, "routing", 42, {})
    rule = choice.rule
    assert rule.feature == "gene_length"
    first, last = rule.routes[0], rule.routes[-1]
    assert first[1] > 2 * first[0]
    assert last[0] > 2 * last[1]
    routed = next(line for line in choice.judged if line["method"] == "routing")
    assert routed["better"]
    # A row's route is its own affair, whatever comes with it; without the feature all routes count.
    level = levels["gene_length"][rows.gene]
    found = pool(proba, rule, level)
    assert np.array_equal(pool(proba[:, 10:13], rule, level[10:13]), found[10:13])
    nothing = pool(proba, rule, np.full(len(label), np.nan))
    assert np.array_equal(nothing, pool(proba, Combination(method="convex", weights=rule.weights)))


def test_features_of_the_whole_gene_are_found_while_rows_stream_by() -> None:
    gene = np.arange(60) // 5
    table = pa.table(
        {
            "gene_length": pa.array((gene * 7 % 12).astype(np.int32)), "gc_content": pa.array(np.arange(60) / 60),
            "constant": pa.array(np.ones(60, np.uint8)),
            "holes": pa.array([None if i == 31 else float(g) for i, g in enumerate(gene)]),
        }
    )  # fmt: skip
    for cut in (60, 7):
        levels = GeneLevels(["gene_length", "gc_content", "constant", "holes", "absent"], 12)
        for start in range(0, 60, cut):
            levels.see(table.slice(start, cut), gene[start : start + cut])
        found = levels.found()
        assert list(found) == ["gene_length"]
        assert found["gene_length"].tolist() == [g * 7 % 12 for g in range(12)]


@pytest.mark.parametrize("method", COMBINATIONS)
def test_a_member_that_says_nothing_of_weight_is_no_obstacle(method: str) -> None:
    """It trained on all but a few loci, and these lie in one fold."""
    proba, label = members(2_000, (1.0, 1.1, 1.2))
    weight = np.where(np.arange(2_000) < 100, 0.0, 1.0)
    levels = {"gene_length": np.arange(2_000) // 50 % 40 * 1.0}
    for mute in (slice(None), slice(100, None)):  # of all rows; of those that have weight
        heard = proba.copy()
        heard[0, mute] = np.nan
        rule = fit_rule(method, heard, label, weight, levels, np.arange(2_000) // 50)  # type: ignore[arg-type]
        found = pool(heard, rule, levels["gene_length"])
        assert np.isfinite(found).all()


def test_routes_are_thirds_of_the_genes_not_of_the_values() -> None:
    proba, label = members(5_000, (1.0, 1.5))
    gene = np.arange(5_000) // 50
    level = np.where(gene < 60, 1.0, gene - 58.0)  # 60 genes of one length, 40 of others
    rule = fit_rule("routing", proba, label, np.ones(5_000), {"gene_length": level}, gene)
    counts = np.bincount(np.searchsorted(rule.edges, level[::50], side="right"))
    assert counts.tolist() == [60 + 6, 34]  # a third ends within the 60


def test_the_number_of_threads_shows_in_no_bit() -> None:
    code = (
        "import numpy as np, msgspec, sys; from metabatch.ensemble.choosing import choose;"
        "from tests.unit.test_pooling import honest, members, CLASSES;"
        "rows = honest(*members(15_000, (1.0, 1.3, 1.7), silent=True));"
        "found = [choose(rows, CLASSES, m, 42, {}) for m in ('logit-mean', 'convex')];"
        "sys.stdout.buffer.write(msgspec.json.encode([(c.rule, c.crossed, c.judged) for c in found]))"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT,
            env=os.environ | {"OPENBLAS_NUM_THREADS": n, "OMP_NUM_THREADS": n, "PYTHONPATH": str(ROOT)},
        ).stdout
        for n in ("1", "2")
    ]  # fmt: skip
    assert said[0] == said[1]


def test_without_a_feature_of_the_whole_gene_routing_is_refused_and_auto_does_without() -> None:
    rows = replace(honest(*members(3_000, (1.0, 1.1, 1.2), silent=True)), levels={})
    with pytest.raises(InputError, match="no feature is the same in all rows of a gene"):
        choose(rows, CLASSES, "routing", 42, {})
    choice = choose(rows, CLASSES, "auto", 42, {})
    assert [line["method"] for line in choice.judged] == [m for m in COMBINATIONS if m != "routing"]


def test_where_nothing_can_be_learned_auto_says_why_and_a_rule_asked_for_is_refused() -> None:
    proba, label = members(1_000, (1.0, 1.0), silent=True)  # two members, each row known to one
    rows = honest(proba, label)
    assert "left out by two" in str(learnable(rows, CLASSES, np.arange(1_000) // 50 % FOLDS))
    choice = choose(rows, CLASSES, "auto", 42, {})
    assert choice.rule.method == "mean"
    assert "nothing to learn from" in choice.rule.note
    with pytest.raises(InputError, match="stacking cannot be learned"):
        choose(rows, CLASSES, "stacking", 42, {})


def test_a_class_in_one_fold_of_genes_only_is_nothing_to_learn_from() -> None:
    proba, label = members(1_000, (1.0, 1.2, 1.4))
    label = np.where(np.arange(1_000) < 50, label, 0)
    choice = choose(honest(proba, label), CLASSES, "auto", 42, {})
    assert choice.rule.method == "mean"
    assert "occurs in one fold of genes only" in choice.rule.note
    one = choose(honest(proba, np.zeros(1_000, dtype=np.int64)), CLASSES, "auto", 42, {})
    assert "all rows are neither" in one.rule.note


@pytest.mark.parametrize("method", ["logit-mean", "stacking", "convex"])
def test_a_learned_rule_keeps_the_natural_prevalence_of_a_prior(method: str) -> None:
    """Members are made for the prior; the rows have many more sites than that."""
    prior = {"donor": 0.002, "acceptor": 0.001}
    proba, label = members(6_000, (1.0, 1.3, 1.6), silent=True)
    share = np.bincount(label) / len(label)
    natural = np.array([0.997, 0.002, 0.001])
    proba = proba * (natural / share)
    proba /= proba.sum(axis=2, keepdims=True)
    choice = choose(honest(proba, label), CLASSES, method, 42, prior)  # type: ignore[arg-type]
    # Rows of the natural prevalence: sites weigh so little.
    weight = (natural / share)[label]
    said = np.average(choice.pooled, axis=0, weights=weight)
    assert 0.001 < said[1] < 0.006  # 0.15 in the rows
    assert 0.0005 < said[2] < 0.004
