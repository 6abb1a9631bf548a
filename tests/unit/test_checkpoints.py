"""A booster taken up from a checkpoint is the one that never stopped; a bad checkpoint is named and not used."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import xgboost as xgb

from metabatch.errors import InterruptedRunError
from metabatch.options import Options
from metabatch.resources.signals import StopFlag
from metabatch.rundir.manifests import Booster
from metabatch.training.boosters import FoldResult, booster_params, train_final, train_fold
from metabatch.training.checkpoints import Checkpoints, booster_blobs
from metabatch.training.gradients import Gradients
from metabatch.training.judge import standing_for

ROUNDS = 24
OPTIONS = Options(subsample=0.7, colsample_bytree=0.6, max_depth=4, learning_rate=0.3, max_bin=64)


class Table:
    """A small matrix with missing cells, its labels, weights and a held-out part."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(3000, 12)).astype(np.float32)
        values[rng.random(values.shape) < 0.2] = np.nan
        signal = np.nan_to_num(values)
        self.positive = signal[:, 0] + signal[:, 1] * signal[:, 2] + rng.normal(size=3000) > 0
        self.weight = rng.integers(1, 4, 3000).astype(np.float32)
        self.held_out = np.arange(3000) % 4 == 0
        self.matrix = xgb.QuantileDMatrix(values, max_bin=64, nthread=2)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


def params(threads: int = 2, seed: int = 7) -> dict[str, object]:
    return booster_params(OPTIONS, Booster(base_score=0.5, min_child_weight=1.0, because="test"), threads, seed)


def checkpoints(folder: Path, stop: StopFlag | None = None, plan: str = "p") -> Checkpoints:
    return Checkpoints(folder, {"plan": plan}, 0, stop or StopFlag())


def stop_after(stop: StopFlag, rounds: int) -> object:
    """Called after every round; asks to stop after so many."""
    seen = iter(range(1, 10_000))

    def on_round() -> None:
        if next(seen) == rounds:
            stop.signal = "SIGTERM"

    return on_round


def fold(table: Table, kept: Checkpoints | None, on_round: object = lambda: None, patience: int = 5) -> FoldResult:
    slot = kept.slot("fold", params()) if kept else None
    return train_fold(
        table.matrix, params(), table.positive, table.weight, table.held_out, ROUNDS, patience, on_round, slot,  # type: ignore[arg-type]
        keep=True,
    )  # fmt: skip


def test_the_curves_are_the_losses_after_each_round_and_the_kept_model_gives_the_scores(table: Table) -> None:
    result = fold(table, None, patience=3)
    assert result.stopped_early
    assert result.model is not None
    kept = xgb.Booster(model_file=bytearray(result.model))
    assert kept.num_boosted_rounds() == result.rounds < result.trained_rounds
    gradients = Gradients(params(), table.positive, table.weight, table.held_out)
    whole = xgb.Booster(gradients.params, [table.matrix])
    for tree in range(result.trained_rounds):
        gradients.grow(whole, table.matrix, tree)
    for at in range(result.trained_rounds):
        p = whole.predict(table.matrix, iteration_range=(0, at + 1)).astype(float)
        loss = -np.log(np.where(table.positive, p, 1 - p))
        for rows, curve in ((~table.held_out, result.curve_train), (table.held_out, result.curve_held_out)):
            assert curve[at] == pytest.approx(np.average(loss[rows], weights=table.weight[rows]), rel=1e-5)
    assert np.abs(kept.predict(table.matrix)[table.held_out] - result.scores).max() < 1e-6
    assert result.curve_train[result.rounds - 1] == pytest.approx(result.train_logloss, rel=1e-5)


@pytest.mark.parametrize("hits", [0, 300, 9_000])
def test_the_rows_of_the_training_curve_stand_for_all_of_them(hits: int) -> None:
    rng = np.random.default_rng(1)
    positive = rng.permutation(np.arange(20_000) < hits)
    weight = rng.uniform(0.5, 2, 20_000).astype(np.float32)
    among = rng.random(20_000) < 0.9
    rows, stood = standing_for(positive, weight, among, 4_000)
    assert len(rows) == 4_000
    assert len(np.unique(rows)) == len(rows)
    assert among[rows].all()
    for side in (True, False):
        assert stood[positive[rows] == side].sum() == pytest.approx(weight[among & (positive == side)].sum(), rel=1e-5)
    if hits == 300:
        assert positive[rows].sum() == (positive & among).sum()  # the rare side whole


def test_a_checkpoint_of_the_former_format_is_not_used(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    fold(table, checkpoints(tmp_path))
    file = tmp_path / "fold.ckpt"
    assert file.read_bytes().startswith(b"metabatch-checkpoint 3 ")
    file.write_bytes(file.read_bytes().replace(b"checkpoint 3", b"checkpoint 2", 1))
    with caplog.at_level(logging.WARNING):
        assert checkpoints(tmp_path).slot("fold", params()).read() is None
    assert "does not begin with" in caplog.text


@pytest.mark.parametrize("patience", [0, 3])
@pytest.mark.parametrize("rounds", [1, 6])
def test_a_fold_goes_on_as_if_it_had_never_stopped(tmp_path: Path, table: Table, rounds: int, patience: int) -> None:
    undisturbed = fold(table, None, patience=patience)
    stop = StopFlag()
    with pytest.raises(InterruptedRunError):
        fold(table, checkpoints(tmp_path, stop), stop_after(stop, rounds), patience)
    kept = checkpoints(tmp_path)
    grown: list[int] = []
    resumed = fold(table, kept, lambda: grown.append(1), patience)
    assert len(grown) == undisturbed.trained_rounds - rounds
    assert (kept.restored_boosters, kept.restored_rounds) == (0, rounds)
    again = checkpoints(tmp_path)
    known = fold(table, again, lambda: grown.append(1), patience)
    assert len(grown) == undisturbed.trained_rounds - rounds  # nothing was trained again
    assert (again.restored_boosters, again.restored_rounds) == (1, undisturbed.trained_rounds)
    for result in (resumed, known):
        assert np.array_equal(result.scores, undisturbed.scores)
        assert len(result.curve_train) == len(result.curve_held_out) == result.trained_rounds
        assert result.curve_train.tobytes() == undisturbed.curve_train.tobytes()
        assert result.curve_held_out.tobytes() == undisturbed.curve_held_out.tobytes()
        assert result.model == undisturbed.model
        for name in ("rounds", "trained_rounds", "stopped_early", "train_logloss", "held_out_logloss"):
            assert getattr(result, name) == getattr(undisturbed, name), name


def test_a_final_model_killed_at_every_round_is_the_same_file(tmp_path: Path, table: Table) -> None:
    def final(kept: Checkpoints | None, on_round: object = lambda: None, threads: int = 2) -> bytes:
        slot = kept.slot("final", params(threads)) if kept else None
        booster = train_final(
            table.matrix, params(threads), table.positive, table.weight, ROUNDS, on_round, slot,  # type: ignore[arg-type]
        )  # fmt: skip
        return bytes(booster.save_raw("ubj"))

    undisturbed = final(None)
    for number in range(ROUNDS):
        stop = StopFlag()
        with pytest.raises(InterruptedRunError):
            final(checkpoints(tmp_path, stop), stop_after(stop, 1), threads=1 + number % 2)
    assert final(checkpoints(tmp_path)) == undisturbed
    assert final(checkpoints(tmp_path)) == undisturbed  # from the finished one


def test_only_the_same_booster_of_the_same_plan_is_taken_up(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    fold(table, checkpoints(tmp_path))
    assert checkpoints(tmp_path).slot("fold", params(threads=1)).read() is not None
    for other in (
        checkpoints(tmp_path, plan="q").slot("fold", params()),
        checkpoints(tmp_path).slot("fold", params(seed=8)),
    ):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert other.read() is None
        assert "another plan, version or parameters" in caplog.text


def test_a_damaged_checkpoint_is_named_and_the_booster_trained_again(
    tmp_path: Path, table: Table, caplog: pytest.LogCaptureFixture
) -> None:
    undisturbed = fold(table, checkpoints(tmp_path))
    file = tmp_path / "fold.ckpt"
    good = file.read_bytes()
    places = np.linspace(0, len(good) - 1, 40).astype(int)
    damaged = [good[:at] for at in places] + [good[:at] + bytes([good[at] ^ 4]) + good[at + 1 :] for at in places]
    for data in damaged:
        file.write_bytes(data)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert checkpoints(tmp_path).slot("fold", params()).read() is None
        assert "fold.ckpt" in caplog.text
    assert np.array_equal(fold(table, checkpoints(tmp_path)).scores, undisturbed.scores)
    assert file.read_bytes() == good


def test_the_time_between_checkpoints_grows_with_what_they_cost(tmp_path: Path, table: Table) -> None:
    kept = Checkpoints(tmp_path, {}, 3600, StopFlag())
    slot = kept.slot("final", params())
    train_final(table.matrix, params(), table.positive, table.weight, 5, lambda: None, slot)
    saved = slot.read()
    assert saved is not None
    assert saved.finished  # and none on the way: an hour had not passed
    eager = Checkpoints(tmp_path, {}, 1e-6, StopFlag()).slot("other", params())
    writes = []
    for _ in range(50):
        before = (tmp_path / "other.ckpt").stat().st_mtime_ns if (tmp_path / "other.ckpt").exists() else 0
        eager.keep_growing(lambda: booster_blobs(xgb.Booster(params(), [table.matrix])), {"rounds_done": 1})
        writes.append((tmp_path / "other.ckpt").stat().st_mtime_ns != before)
    assert sum(writes) < 10  # a hundredth of the time at most, where one after the other takes all of it
