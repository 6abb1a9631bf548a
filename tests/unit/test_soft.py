"""Soft labels stand beside the rows they are of, and boosters are trained on them but judged by the true ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import xgboost as xgb

from metabatch.errors import InputError, InterruptedRunError
from metabatch.options import Options
from metabatch.resources.signals import StopFlag
from metabatch.rundir.manifests import Booster
from metabatch.training.boosters import booster_params, train_final, train_fold
from metabatch.training.checkpoints import Checkpoints
from metabatch.training.matrix import Rows
from metabatch.training.sizes import STUDENT_AP_LOSS, chosen_size, sizes_to_try
from metabatch.training.soft import with_soft_labels

CLASSES = ("x", "y")
PARAMS = booster_params(
    Options(max_depth=3, max_bin=64, learning_rate=0.3, subsample=1.0),
    Booster(base_score=0.5, min_child_weight=1.0, because="test"),
    1,
    3,
)


def rows_of(genes: list[str], order: list[int]) -> Rows:
    gene = np.array(order, dtype=np.uint16)
    n = len(gene)
    return Rows(gene, np.zeros(n, np.uint8), np.ones(n, np.float32), genes, [(n,)])


def soft_file(path: Path, genes: list[str], values: list[float], group: int = 3) -> Path:
    frame = pl.DataFrame({"gene_id": genes, "x_soft": values, "y_soft": [1 - v for v in values]})
    frame.cast({"x_soft": pl.Float32, "y_soft": pl.Float32}).write_parquet(path, row_group_size=group)
    return path


def test_soft_labels_follow_gene_and_row_whatever_lies_between(tmp_path: Path) -> None:
    """The file has the genes in another order, split over row groups, and a gene that is not trained on."""
    rows = rows_of(["a", "b"], [1, 0, 1, 1, 0])
    file = soft_file(tmp_path / "s.parquet", ["a", "c", "a", "b", "b", "c", "b"], [0.1, 0.9, 0.2, 0.3, 0.4, 0.8, 0.5])
    soft = with_soft_labels(rows, file, CLASSES).soft
    assert soft is not None
    assert soft[:, 0] == pytest.approx([0.3, 0.1, 0.4, 0.5, 0.2])
    assert soft[:, 1] == pytest.approx(1 - soft[:, 0])


@pytest.mark.parametrize("genes", [["a", "b", "b"], ["a", "b", "b", "b", "a", "a"], ["b", "b", "b"]])
def test_a_gene_with_other_rows_than_soft_labels_is_refused(tmp_path: Path, genes: list[str]) -> None:
    file = soft_file(tmp_path / "s.parquet", genes, [0.5] * len(genes))
    with pytest.raises(InputError, match=r"gene [ab] has [0-3] soft labels"):
        with_soft_labels(rows_of(["a", "b"], [1, 0, 1, 1, 0]), file, CLASSES)


class Table:
    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        values = rng.normal(size=(2000, 6)).astype(np.float32)
        self.positive = values[:, 0] + values[:, 1] * values[:, 2] + rng.normal(size=2000) > 1
        self.soft = (1 / (1 + np.exp(-2 * values[:, 0]))).astype(np.float32)
        self.weight = rng.integers(1, 4, 2000).astype(np.float32)
        self.held_out = np.arange(2000) % 4 == 0
        self.matrix = xgb.QuantileDMatrix(values, max_bin=64, nthread=1)


@pytest.fixture(scope="module")
def table() -> Table:
    return Table()


def final(table: Table, soft: np.ndarray | None) -> bytes:
    booster = train_final(table.matrix, PARAMS, table.positive, table.weight, 8, lambda: None, soft=soft)
    return bytes(booster.save_raw("ubj"))


def test_a_booster_is_trained_on_the_soft_labels_and_on_true_ones_given_as_soft_to_the_same_bits(table: Table) -> None:
    plain = final(table, None)
    assert final(table, table.positive.astype(np.float32)) == plain
    student = final(table, table.soft)
    assert student != plain
    table.matrix.set_info(label=table.soft, weight=table.weight)
    mean = xgb.train(PARAMS, table.matrix, 8).predict(table.matrix)
    taught = xgb.Booster(model_file=bytearray(student)).predict(table.matrix)
    assert np.abs(taught - mean).max() < 1e-6


def test_a_fold_taught_by_soft_labels_is_judged_by_the_true_ones(table: Table) -> None:
    sizes = sizes_to_try(20)
    found = train_fold(
        table.matrix, PARAMS, table.positive, table.weight, table.held_out, 20, 0, lambda: None, soft=table.soft,
        sizes=sizes,
    )  # fmt: skip
    p = np.where(table.positive[table.held_out], found.scores, 1 - found.scores)
    assert found.held_out_logloss == pytest.approx(
        np.average(-np.log(p), weights=table.weight[table.held_out]), abs=2e-6
    )
    assert found.size_trees.tolist() == sizes
    table.matrix.set_info(label=table.soft, weight=np.where(table.held_out, 0, table.weight))
    whole = xgb.train(PARAMS, table.matrix, 20)
    from sklearn.metrics import average_precision_score

    for trees, ap in zip(found.size_trees, found.size_ap, strict=True):
        scores = whole.predict(table.matrix, iteration_range=(0, int(trees)))[table.held_out]
        truth, weight = table.positive[table.held_out], table.weight[table.held_out]
        assert ap == pytest.approx(average_precision_score(truth, scores, sample_weight=weight), abs=1e-5)


@pytest.mark.parametrize("stop_at", [5, 13])
def test_the_sizes_of_a_fold_taken_up_again_are_those_of_one_that_never_stopped(
    table: Table, tmp_path: Path, stop_at: int
) -> None:
    def grow(stop: StopFlag, kept: bool, on_round: object) -> tuple[list[float], list[float], bytes]:
        slot = Checkpoints(tmp_path, {"plan": "p"}, 0, stop).slot("fold", PARAMS) if kept else None
        found = train_fold(
            table.matrix, PARAMS, table.positive, table.weight, table.held_out, 20, 0, on_round, slot, keep=True,  # type: ignore[arg-type]
            soft=table.soft, sizes=sizes_to_try(20),
        )  # fmt: skip
        return found.size_trees.tolist(), found.size_ap.tolist(), found.model or b""

    stop, seen = StopFlag(), iter(range(1, 100))

    def on_round() -> None:
        stop.signal = "SIGTERM" if next(seen) == stop_at else None

    undisturbed = grow(StopFlag(), False, lambda: None)
    assert undisturbed[0][-1] > stop_at  # or there is nothing left to take up
    with pytest.raises(InterruptedRunError):
        grow(stop, True, on_round)
    assert grow(StopFlag(), True, lambda: None) == undisturbed
    assert grow(StopFlag(), True, lambda: pytest.fail("it is finished")) == undisturbed


def test_the_size_chosen_is_the_fewest_trees_within_the_loss_allowed() -> None:
    trees = np.array([10, 20, 40, 80])
    assert chosen_size(trees, np.array([0.80, 0.90 - STUDENT_AP_LOSS + 1e-5, 0.90, 0.85])) == 20
    assert chosen_size(trees, np.array([0.80, 0.90 - STUDENT_AP_LOSS - 1e-5, 0.90, 0.85])) == 40
    assert chosen_size(np.array([7]), np.array([0.1])) == 7
    assert sizes_to_try(800)[0] == 10
    assert sizes_to_try(800)[-1] == 800
    assert len(sizes_to_try(800)) == 12
    assert sizes_to_try(4) == [4]
