"""Wide k-mers hashed into fewer columns: every one in one of them, and a line over them is one over the k-mers."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from metabatch.data.hashing import Hasher
from metabatch.models.linear import Linear
from metabatch.training.epochs import unhashed

KMERS = ["6mer_" + "".join(bases) for bases in itertools.product("ACGT", repeat=6)]
NAMES = ["donor_score", *KMERS[:2_000], "3mer_AAA", *KMERS[2_000:], "gc_content"]


@pytest.fixture(scope="module")
def hasher() -> Hasher:
    return Hasher(NAMES, 256)


@pytest.fixture(scope="module")
def batch() -> np.ndarray:
    rng = np.random.default_rng(0)
    values = rng.poisson(0.05, (50, len(NAMES))).astype(np.float32)
    values[rng.random(values.shape) < 0.01] = np.nan
    return values


def test_every_wide_kmer_is_in_one_sum_and_nothing_else_is(hasher: Hasher) -> None:
    assert hasher.features[:3] == ["donor_score", "3mer_AAA", "gc_content"]
    assert len(hasher.features) == 3 + 256
    signs = hasher.signs.toarray()
    assert signs.shape == (4_096, 256)
    assert (np.abs(signs).sum(axis=1) == 1).all()
    assert 0.45 < (signs > 0).sum() / 4_096 < 0.55  # so that sums of many stay near 0
    assert np.abs(signs).sum(axis=0).max() < 5 * 16  # spread out


def test_the_others_stay_as_they_are_and_the_sums_are_exact(hasher: Hasher, batch: np.ndarray) -> None:
    found = hasher.hashed(batch)
    others = [NAMES.index(n) for n in ("donor_score", "3mer_AAA", "gc_content")]
    assert np.array_equal(found[:, :3], batch[:, others], equal_nan=True)
    wide = [i for i in range(len(NAMES)) if i not in others]
    counts = np.nan_to_num(batch[:, wide].astype(np.float64))
    assert np.array_equal(found[:, 3:], counts @ hasher.signs.toarray())
    assert np.array_equal(Hasher(NAMES, 256).hashed(batch), found, equal_nan=True)


def test_a_line_over_the_sums_gives_the_same_over_the_kmers(hasher: Hasher, batch: np.ndarray) -> None:
    rng = np.random.default_rng(1)
    width = len(hasher.features)
    line = Linear(
        hasher.features, rng.normal(size=width), rng.uniform(0.5, 2, width), rng.normal(0, 0.1, (3, width)),
        rng.normal(size=3),
    )  # fmt: skip
    whole = unhashed(line, hasher)
    assert list(whole.features) == NAMES
    assert np.abs(whole.raw(batch) - line.raw(hasher.hashed(batch))).max() < 1e-6
