"""Looking at a growing fold model: its losses round by round, and which round is the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from metabatch.training.checkpoints import Saved
from metabatch.training.sizes import SizeTable
from metabatch.training.team import Team

# A gain of the held-out loss below this is none.
LOSS_DECIMALS = 6
# The curve of the training rows is drawn from so many of them at most: it is looked at after every round.
CURVE_ROWS = 50_000
_ALONE = Team()
# Arrays of a fold's outcome and of its checkpoint.
SIZES = ("size_trees", "size_ap")


class Judge:
    """Looks at a fold after every round: which round is best so far, and its scores (without patience: the last one).

    The scores are what the booster would predict, to the last bit, and come from XGBoost's own cache; predicting again
    would search the bin of every cell, which on a matrix with missing cells takes as long as growing many trees.
    Of a team, every worker looks at its own rows, given here, and the losses are those of all.
    """

    def __init__(
        self, positive: np.ndarray, weight: np.ndarray, held_out: np.ndarray, patience: int, sizes: Sequence[int],
        team: Team = _ALONE,
    ) -> None:  # fmt: skip
        self._truth, self._weight, self._held_out, self._patience = (
            positive[held_out],
            weight[held_out],
            held_out,
            patience,
        )
        self._team = team
        self._some, self._some_weight = standing_for(positive, weight, ~held_out, CURVE_ROWS // team.size)
        self._some_truth = positive[self._some]
        self.loss = float("nan")
        self.rounds = 0
        self.scores = np.empty(0, dtype=np.float32)
        self._curve: list[tuple[float, float]] = []
        self._sizes = SizeTable(sizes, self._truth, self._weight)

    def resume(self, saved: Saved, scores_after: Callable[[int], np.ndarray]) -> None:
        """Go on from a checkpoint. `scores_after`: of all rows after so many rounds, where they were not kept."""
        self.loss, self.rounds = saved.number("held_out_logloss"), int(saved.facts["rounds"])
        kept = "scores" in saved.blobs
        self.scores = saved.array("scores").copy() if kept else scores_after(self.rounds).copy()
        self._curve = list(zip(saved.array("curve_train"), saved.array("curve_held_out"), strict=True))
        if SIZES[0] in saved.blobs:
            self._sizes.resume((saved.array(SIZES[0]), saved.array(SIZES[1])))

    def curves(self) -> dict[str, np.ndarray]:
        """Log loss of training and held-out rows after each round, float32."""
        train, held_out = np.array(self._curve, dtype=np.float32).reshape(-1, 2).T
        return {"curve_train": train, "curve_held_out": held_out}

    def growing(self) -> dict[str, np.ndarray]:
        """What must be kept to go on; of a team not the scores, of which each worker has its own."""
        scores = {"scores": self.scores} if self._team.place is None else {}
        return {**scores, **self.curves(), **self.sizes()}

    def sizes(self) -> dict[str, np.ndarray]:
        """AP by numbers of trees; nothing where none was looked at (a checkpoint holds no empty array)."""
        found = self.size_arrays()
        return dict(zip(SIZES, found, strict=True)) if len(found[0]) else {}

    def size_arrays(self) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of trees and their AP, float32."""
        return self._sizes.arrays()

    def cut(self, predictions: np.ndarray, rounds: int) -> None:
        """Take the model after `rounds` for the best; `predictions` as in `look`."""
        self.loss = log_loss(predictions[self._held_out], self._truth, self._weight, self._team)
        self.rounds, self.scores = rounds, predictions

    def close(self) -> None:
        """The fold is through."""
        self._sizes.close(self.scores[self._held_out], self.rounds)

    def look(self, predictions: np.ndarray, rounds: int) -> None:
        """`predictions`: shape (n,), after so many `rounds`."""
        held_out = predictions[self._held_out]
        exact = log_loss(held_out, self._truth, self._weight, self._team)
        self._sizes.look(held_out, rounds)
        train = log_loss(predictions[self._some], self._some_truth, self._some_weight, self._team)
        self._curve.append((train, exact))
        loss = round(exact, LOSS_DECIMALS)
        if not self._patience or not len(self.scores) or loss < self.loss:
            self.loss, self.rounds = loss, rounds
            self.scores.resize(len(predictions), refcheck=False)
            np.copyto(self.scores, predictions)  # XGBoost uses its array again in the next round

    def is_over(self, rounds: int) -> bool:
        """Whether no gain was seen for as long as the patience lasts."""
        return bool(self._patience) and rounds - self.rounds >= self._patience


def log_loss(p: np.ndarray, positive: np.ndarray, weight: np.ndarray, team: Team = _ALONE) -> float:
    """Weighted mean of -log(probability given to the truth), over the rows of the team; NaN without weight."""
    losses = float((weight * log_losses(p, positive)).sum())
    losses, total = team.sums(losses, float(weight.sum(dtype=np.float64)))
    return losses / total if total else float("nan")


def log_losses(p: np.ndarray, positive: np.ndarray) -> np.ndarray:
    """-log(probability given to the truth) of each row, float64."""
    clipped = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.asarray(-np.log(np.where(positive, clipped, 1 - clipped)))


def standing_for(
    positive: np.ndarray, weight: np.ndarray, among: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray]:
    """At most `most` rows `among` all, evenly spaced, and their weights: each side keeps its whole weight.

    The rarer side is taken whole where it has less than half of `most`, as most of the log loss lies there.
    """
    sides = [np.flatnonzero(among & (positive == side)) for side in (True, False)]
    half = most // 2
    room = [max(half, most - len(other)) for other in reversed(sides)]
    rows, weights = [], []
    for side, most_here in zip(sides, room, strict=True):
        some = side if len(side) <= most_here else side[np.linspace(0, len(side) - 1, most_here).astype(np.int64)]
        own = weight[some].astype(np.float64)
        whole = weight[side].sum(dtype=np.float64)
        rows.append(some)
        weights.append(own * (whole / own.sum() if own.sum() else 0.0))
    return np.concatenate(rows), np.concatenate(weights)
