"""Rows of a gene: all sites, the negatives that matter, and weights that add up to the gene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.building.rows import RowSampling, select_rows, targets
from metabatch.errors import InputError, UsageError

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = ROOT.parent / "shared" / "data" / "hg19-windows"
DEMO_SEED = 20251122

Gene = tuple[np.ndarray, np.ndarray]


def made(length: int, sites: int, seed: int = 0, levels: int = 1000) -> Gene:
    """Labels and scores; few `levels` make many ties."""
    rng = np.random.default_rng(seed)
    labels = np.zeros(length, np.uint8)
    labels[rng.choice(length, min(sites, length), replace=False)] = rng.integers(1, 3, min(sites, length))
    scores = np.zeros((length, 3), np.float32)
    scores[:, 1:] = np.floor(rng.random((length, 2)) ** 6 * levels) / levels / 2
    scores[:, 0] = 1 - scores[:, 1] - scores[:, 2]
    return labels, scores


def chosen(sampling: RowSampling, labels: np.ndarray, scores: np.ndarray, target: int = 0, seed: int = 0) -> Gene:
    return select_rows(sampling, "G1", labels, scores, target, seed)


def ranked_negatives(labels: np.ndarray, scores: np.ndarray) -> list[int]:
    peak = np.maximum(scores[:, 1], scores[:, 2])
    return sorted(np.flatnonzero(labels == 0).tolist(), key=lambda i: (-peak[i], i))


samplings = st.builds(
    RowSampling,
    best=st.sampled_from([0, 0.5, 3, 10]),
    next_pool=st.sampled_from([7, 20.5, 60]),
    next_drawn=st.sampled_from([0, 0.1, 2, 7]),
    min_random=st.sampled_from([1, 5, 100]),
)


@settings(deadline=None, max_examples=200)
@given(samplings, st.integers(1, 3000), st.integers(0, 40), st.integers(0, 600), st.integers(0, 99), st.data())
def test_weights_add_up_to_the_gene_and_sites_and_best_negatives_are_all_there(
    sampling: RowSampling, length: int, sites: int, target: int, seed: int, data: st.DataObject
) -> None:
    labels, scores = made(length, sites, seed, data.draw(st.sampled_from([1, 3, 1000])))
    index, weight = chosen(sampling, labels, scores, target)
    assert index.dtype == np.int64
    assert weight.dtype == np.float32
    assert (np.diff(index) > 0).all()
    assert 0 <= index[0] <= index[-1] < length
    assert weight.astype(np.float64).sum() == pytest.approx(length, rel=1e-7, abs=0)
    weight_of = dict(zip(index.tolist(), weight.tolist(), strict=True))
    assert all(weight_of.get(i) == 1 for i in np.flatnonzero(labels))
    unit = max(int((labels != 0).sum()), 1)
    best = round(sampling.best * unit)
    negatives = ranked_negatives(labels, scores)
    assert all(weight_of.get(i) == 1 for i in negatives[:best])
    drawn, pool = round(sampling.next_drawn * unit), round(sampling.next_pool * unit)
    if length > max(target, (labels != 0).sum() + best + drawn + sampling.min_random) and drawn:
        following = negatives[best : best + pool]
        taken = [weight_of[i] for i in following if i in weight_of]
        assert len(taken) == min(drawn, len(following))
        assert taken == [np.float32(len(following) / len(taken))] * len(taken)
    if len(index) < length:
        assert len(index) <= max(target, (labels != 0).sum() + best + drawn + sampling.min_random)


@settings(deadline=None, max_examples=40)
@given(st.integers(200, 3000), st.integers(0, 8), st.integers(0, 99))
def test_equal_scores_are_ranked_by_position(length: int, sites: int, seed: int) -> None:
    sampling = RowSampling(best=5, next_pool=0, next_drawn=0, min_random=1)
    labels, scores = made(length, sites, seed, levels=2)
    index, weight = chosen(sampling, labels, scores)
    best = ranked_negatives(labels, scores)[: 5 * max(sites, 1)]
    expected = sorted([*np.flatnonzero(labels).tolist(), *best])
    assert index[weight == 1].tolist() == expected


def test_a_gene_without_sites_is_treated_as_if_it_had_one() -> None:
    labels, scores = made(5000, 0)
    index, weight = chosen(RowSampling(), labels, scores)
    tiers = {float(w): int((weight == w).sum()) for w in np.unique(weight)}
    assert tiers == {1.0: 3, float(np.float32(60 / 7)): 7, float(np.float32((5000 - 63) / 100)): 100}
    assert len(index) == 110


def test_a_gene_shorter_than_what_is_asked_for_gives_every_position() -> None:
    labels, scores = made(290, 4)
    for length, target in ((144, 0), (290, 290)):
        index, weight = chosen(RowSampling(), labels[:length], scores[:length], target)
        assert index.tolist() == list(range(length))
        assert (weight == 1).all()


def test_where_the_next_best_are_nearly_all_the_rest_is_taken_whole() -> None:
    labels, scores = made(290, 4)
    index, weight = chosen(RowSampling(), labels, scores, 200)
    assert len(index) == 4 + 12 + 28 + (290 - 4 - 12 - 240)
    assert sorted(set(weight.tolist())) == [1, float(np.float32(240 / 28))]


def test_one_position_and_a_gene_of_sites_only() -> None:
    for labels in ([0], [1], [1, 2, 1]):
        scores = np.full((len(labels), 3), 1 / 3, np.float32)
        index, weight = chosen(RowSampling(min_random=1), np.array(labels, np.uint8), scores)
        assert index.tolist() == list(range(len(labels)))
        assert weight.tolist() == [1.0] * len(labels)


def test_all_positions_are_all_of_weight_one() -> None:
    labels, scores = made(4000, 10)
    index, weight = chosen(RowSampling(all_positions=True), labels, scores, 5)
    assert index.tolist() == list(range(4000))
    assert weight.tolist() == [1.0] * 4000


def test_draws_follow_from_seed_and_gene_alone() -> None:
    labels, scores = made(20_000, 10)
    first = select_rows(RowSampling(), "G1", labels, scores, 300, 1)[0].tolist()
    assert select_rows(RowSampling(), "G2", labels, scores, 300, 1)[0].tolist() != first
    assert select_rows(RowSampling(), "G1", labels, scores, 300, 2)[0].tolist() != first
    assert select_rows(RowSampling(), "G1", labels, scores, 300, 1)[0].tolist() == first


def test_random_negatives_come_from_the_whole_gene() -> None:
    labels, scores = made(50_000, 5)
    index, weight = chosen(RowSampling(), labels, scores, 2000)
    random = index[weight == weight.max()]
    assert np.histogram(random, bins=10, range=(0, 50_000))[0].min() > 0.5 * len(random) / 10


@settings(deadline=None)
@given(st.lists(st.integers(1, 2_300_000), min_size=1, max_size=60), st.randoms())
def test_targets_do_not_depend_on_the_order_of_genes_and_have_the_mean_asked_for(
    lengths: list[int], random: Any
) -> None:
    asked = targets(RowSampling(rows_per_gene=400), np.array(lengths))
    assert asked.mean() == pytest.approx(400, abs=0.51)
    order = random.sample(range(len(lengths)), len(lengths))
    again = targets(RowSampling(rows_per_gene=400), np.array(lengths)[order])
    assert again.tolist() == asked[order].tolist()


def test_the_demo_has_the_same_rows_in_every_tier(demo: Path) -> None:
    if not WINDOWS.exists():
        pytest.skip("../shared/data/hg19-windows is not beside the checkout")
    genes = pl.read_csv(demo / "gene_manifest.csv")
    base = pl.read_parquet(WINDOWS / "base_scores.parquet").partition_by("gene_id", as_dict=True)
    columns = ["gene_id", "position", "splice_type", "sampling_weight"]
    shards = sorted(demo.glob("*.parquet"))
    rows = pl.concat([pl.read_parquet(f, columns=columns) for f in shards]).partition_by("gene_id", as_dict=True)
    asked = targets(RowSampling(), genes["n_positions"].to_numpy())
    for gene, target in zip(genes.iter_rows(named=True), asked.tolist(), strict=True):
        theirs = rows[gene["gene_id"],]
        scores = base[gene["gene_id"],].select("neither_score", "donor_score", "acceptor_score").to_numpy()
        at = theirs["position"].to_numpy() - gene["start"]
        labels = np.zeros(len(scores), np.uint8)
        labels[at[theirs["splice_type"].to_numpy() != "neither"]] = 1
        index, weight = select_rows(RowSampling(), gene["gene_id"], labels, scores, target, DEMO_SEED)
        kept = theirs["sampling_weight"].to_numpy()
        # Sites and best-scored negatives are the same rows; of the drawn tiers, number and weight.
        assert index[weight == 1].tolist() == at[kept == 1].tolist(), gene["gene_name"]
        assert np.sort(weight).tolist() == np.sort(kept).tolist(), gene["gene_name"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1.0])
@pytest.mark.parametrize("everything", [False, True])
def test_scores_that_are_no_probabilities_are_refused_by_the_name_of_the_gene(value: float, everything: bool) -> None:
    labels, scores = made(500, 3)
    scores[7, 1] = value
    with pytest.raises(InputError, match=r"no probability, e\.g\.: donor") as refused:
        chosen(RowSampling(all_positions=everything), labels, scores)
    assert refused.value.where == "gene G1"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"best": -1}, "best = -1"),
        ({"next_pool": float("inf")}, "next_pool"),
        ({"next_drawn": float("nan")}, "next_drawn"),
        ({"next_pool": 5, "next_drawn": 7}, "7 times the sites drawn out of 5"),
        ({"rows_per_gene": 0}, "rows_per_gene"),
        ({"min_random": 0}, "min_random = 0"),
    ],
)
def test_a_sampling_that_makes_no_sense_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        RowSampling(**options)
