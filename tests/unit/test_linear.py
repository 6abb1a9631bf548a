"""Linear models: standardisation by streaming, learning that can be interrupted, scores that rows do not share."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.errors import InputError
from metabatch.models.calibration import Calibration, Calibrator
from metabatch.models.linear import LINEAR_FILE, Linear, LinearMember
from metabatch.models.member import load_member, save_member
from metabatch.training.moments import Moments
from metabatch.training.sgd import Learners

CLASSES = ("neither", "donor", "acceptor")


def rows(count: int, features: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    values = rng.normal(3, 2, (count, features)).astype(np.float32)
    values[rng.random(values.shape) < 0.1] = np.nan
    return values


@settings(max_examples=40, deadline=None)
@given(count=st.integers(2, 200), cuts=st.lists(st.integers(0, 200), max_size=4), shift=st.sampled_from([0.0, 1e4]))
def test_moments_of_batches_are_those_of_all_rows(count: int, cuts: list[int], shift: float) -> None:
    values = rows(count, 3, count) + np.float32(shift)
    group, weight = np.arange(count) % 3, np.linspace(0.1, 2, count)
    moments = Moments(3, 3)
    edges = [0, *sorted(min(c, count) for c in cuts), count]
    for begin, end in itertools.pairwise(edges):
        if end > begin:
            moments.add(values[begin:end], group[begin:end], weight[begin:end])
    for groups in ([0], [1, 2], [0, 1, 2]):
        mine = np.isin(group, groups)
        mean, scale = moments.standardisation(groups)
        for j in range(3):
            there = mine & ~np.isnan(values[:, j])
            if there.sum() < 2:
                continue
            x, w = values[there, j].astype(np.float64), weight[there]
            expected = np.average(x, weights=w)
            deviation = np.sqrt(np.average((x - expected) ** 2, weights=w))
            assert mean[j] == pytest.approx(expected, rel=1e-9)
            assert scale[j] == pytest.approx(deviation, rel=1e-6) or deviation < 1e-6


def test_a_constant_and_an_empty_feature_are_left_as_they_are() -> None:
    values = np.column_stack([np.full(5, 7.25), np.full(5, np.nan), np.arange(5)]).astype(np.float32)
    moments = Moments(1, 3)
    moments.add(values, np.zeros(5, dtype=int), np.ones(5))
    mean, scale = moments.standardisation([0])
    assert mean.tolist() == [7.25, 0.0, 2.0]
    assert scale.tolist() == [1.0, 1.0, pytest.approx(np.sqrt(2))]


def learners(values: np.ndarray, label: np.ndarray, weight: np.ndarray, threads: int = 1) -> Learners:
    moments = Moments(1, values.shape[1])
    moments.add(values, np.zeros(len(values), dtype=int), weight)
    mean, scale = moments.standardisation([0])
    own = np.bincount(label, weights=weight, minlength=3)
    totals = np.stack([own, own.sum() - own], axis=-1)[None]
    largest = np.full((3, 2), weight.max())
    names = [f"f{i}" for i in range(values.shape[1])]
    return Learners(
        names, mean[None], scale[None], totals, np.array([len(values)]), largest, "sgd_logistic", 1e-3, threads
    )


def lines(of: Learners) -> bytes:
    return of.models()[0].coefficients.tobytes() + of.models()[0].intercepts.tobytes()


def test_interrupted_learning_goes_on_to_the_same_bits_whatever_the_threads() -> None:
    values, rng = rows(600, 8), np.random.default_rng(1)
    label, weight = rng.integers(0, 3, 600), rng.random(600) + 0.5
    whole, first = learners(values, label, weight), learners(values, label, weight, threads=3)
    everybody = [np.ones(100, dtype=bool)]
    for start in range(0, 600, 100):
        part = slice(start, start + 100)
        whole.learn(values[part], label[part], weight[part], everybody)
        if start == 300:  # a new process takes over
            second = learners(values, label, weight, threads=2)
            second.restore(first.state())
            first = second
        first.learn(values[part], label[part], weight[part], everybody)
    assert lines(first) == lines(whole)
    forgotten = learners(values, label, weight)
    forgotten.restore({**first.state(), "steps": np.zeros(3)})
    assert lines(forgotten) != lines(whole)


def test_learning_finds_a_rare_class_and_keeps_its_prevalence() -> None:
    """30 sites among 6,000 rows that stand for 300,000 positions."""
    rng = np.random.default_rng(3)
    label = np.zeros(6000, dtype=int)
    label[::200] = 1
    values = rng.normal(0, 1, (6000, 5)).astype(np.float32)
    values[label == 1, 0] += 3
    weight = np.where(label == 1, 1.0, 50.0)
    model = learners(values, label, weight)
    for _ in range(3):
        model.learn(values, label, weight, [np.ones(6000, dtype=bool)])
    proba = model.models()[0].raw(values)
    donor = proba[:, 1]
    assert np.median(donor[label == 1]) > 3 * np.median(donor[label == 0])
    assert np.average(donor, weights=weight) == pytest.approx(30 / (30 + 50 * 5970), rel=3)
    assert np.all(proba[:, 2] < 1e-6)  # a class without rows
    assert model.models()[0].coefficients[0, 0] < 0 < model.models()[0].coefficients[1, 0]


def line(features: int = 40) -> Linear:
    rng = np.random.default_rng(5)
    return Linear(
        [f"f{i}" for i in range(features)], rng.normal(3, 1, features), rng.random(features) + 0.5,
        rng.normal(0, 1, (3, features)), rng.normal(0, 1, 3),
    )  # fmt: skip


def test_a_row_has_the_same_score_whatever_rows_are_with_it() -> None:
    model, values = line(), rows(5000, 40)
    together = model.raw(values)
    for start, stop in ((0, 1), (17, 20), (2040, 2060), (4999, 5000)):
        assert model.raw(values[start:stop]).tobytes() == together[start:stop].tobytes()
    margin = (np.nan_to_num((values[0] - model.mean) / model.scale) @ model.coefficients.T) + model.intercepts
    assert together[0] == pytest.approx(1 / (1 + np.exp(-margin)), rel=1e-5)


def test_a_member_is_read_as_it_was_written_and_a_damaged_one_is_named(tmp_path: Path) -> None:
    calibration = Calibration(classes=CLASSES, calibrators={c: Calibrator(method="none") for c in CLASSES})
    member = LinearMember(line(), calibration)
    save_member(tmp_path, [member])
    back = load_member(tmp_path, 1)
    values = rows(30, 40)
    assert back.predict_proba(values).tobytes() == member.predict_proba(values).tobytes()
    (tmp_path / LINEAR_FILE).write_bytes((tmp_path / LINEAR_FILE).read_bytes()[:300])
    with pytest.raises(InputError, match="cannot be read"):
        load_member(tmp_path, 1)
