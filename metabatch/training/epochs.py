"""What the epochs of linear models come to: losses, scores, the best epoch of each fold; what a checkpoint holds."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from metabatch.data.hashing import Hasher
from metabatch.models.linear import Linear
from metabatch.training.boosters import FoldResult, recommended_rounds
from metabatch.training.checkpoints import Saved
from metabatch.training.crossval import CrossValidation, fold_record
from metabatch.training.matrix import Rows


@dataclass
class Epochs:
    """What is known after each epoch.

    scores, best : float32, shape (n, k): of the epoch that is being judged; of each fold and class's best one.
    train, held_out : a list an epoch of log losses, shape (k, folds).
    chosen : shape (k, folds): the best epoch, counted from 1; 0 before any.
    lines : models of all m groups after the last whole epoch. final : of the last group (all rows), one an epoch.
    losses : sums of the training rows' losses in the pass under way, shape (k, folds).
    """

    scores: np.ndarray
    best: np.ndarray
    chosen: np.ndarray
    losses: np.ndarray
    train: list[np.ndarray] = field(default_factory=list)
    held_out: list[np.ndarray] = field(default_factory=list)
    lines: list[Linear] = field(default_factory=list)
    final: list[Linear] = field(default_factory=list)

    @classmethod
    def empty(cls, rows: int, classes: int, folds: int) -> Epochs:
        """Before the first one."""
        scores, best = (np.full((rows, classes), np.nan, dtype=np.float32) for _ in range(2))
        return cls(scores, best, np.zeros((classes, folds), dtype=np.int64), np.zeros((classes, folds)))

    def arrays(self) -> dict[str, np.ndarray]:
        """What a checkpoint keeps beside the scores."""
        return {
            "chosen": self.chosen, "losses": self.losses, "train": np.array(self.train),
            "held_out": np.array(self.held_out), "judging": np.array([_as_array(line) for line in self.lines]),
            "final": np.array([_as_array(line) for line in self.final]),
        }  # fmt: skip

    def scored(self) -> dict[str, np.ndarray]:
        """The scores as a checkpoint keeps them, not copied; none without folds (it holds no empty array)."""
        return {"scores": self.scores.reshape(-1), "best": self.best.reshape(-1)} if self.scores.size else {}

    def restore(self, saved: Saved, state: Mapping[str, np.ndarray], groups: Sequence[Linear]) -> None:
        """Go on from a checkpoint. `groups`: a model of each, for what does not change."""
        for name, values in self.scored().items():
            values[:] = saved.array(name)
        self.chosen[:], self.losses[:] = state["chosen"], state["losses"]
        self.train, self.held_out = list(state["train"]), list(state["held_out"])
        self.lines = [_from_array(group, a) for group, a in zip(groups, state["judging"], strict=False)]
        self.final = [_from_array(groups[-1], a) for a in state["final"]]


def cross_validation(
    epochs: Epochs, rows: Rows, fold: np.ndarray, classes: Sequence[str], limit: int
) -> CrossValidation:
    """As of boosters; rounds are epochs, `limit` of them at most."""
    found = CrossValidation(raw=epochs.best, meta=epochs.best, fold=fold)
    for code, name in enumerate(classes):
        records = []
        for number in np.unique(fold):
            outcome = _outcome(epochs, code, int(number), fold, limit)
            record = fold_record(int(number), outcome, rows.label == code, rows.weight, fold == number)
            judges = bool(epochs.chosen[code, number])
            records.append(record if judges else record | {"best_rounds": None, "stopped_early": False})
        found.folds[name] = records
        best = [int(b) for b in epochs.chosen[code] if b]
        # Mean + sd of the folds' best can be more than the epochs that were gone through.
        found.rounds[name] = min(recommended_rounds(best, limit), len(epochs.final))
    return found


def _outcome(epochs: Epochs, code: int, number: int, fold: np.ndarray, limit: int) -> FoldResult:
    train, held_out = (
        np.array([e[code, number] for e in curve], dtype=np.float32) for curve in (epochs.train, epochs.held_out)
    )
    best = int(epochs.chosen[code, number]) or len(held_out)
    return FoldResult(
        rounds=best, trained_rounds=len(held_out), stopped_early=len(held_out) < limit,
        train_logloss=float(train[best - 1]), held_out_logloss=float(held_out[best - 1]),
        scores=epochs.best[fold == number, code], curve_train=train, curve_held_out=held_out,
    )  # fmt: skip


def final_line(epochs: Epochs, rounds: Sequence[int]) -> Linear:
    """Each class's line after the epoch `rounds` says."""
    kept = [epochs.final[r - 1] for r in rounds]
    return Linear(
        kept[0].features, kept[0].mean, kept[0].scale,
        np.stack([line.coefficients[c] for c, line in enumerate(kept)]),
        np.array([line.intercepts[c] for c, line in enumerate(kept)]),
    )  # fmt: skip


def unhashed(line: Linear, hasher: Hasher) -> Linear:
    """The same line over the features as they were before hashing; of a hashed k-mer mean 0 and scale 1."""
    mean, scale = np.zeros(len(hasher.names)), np.ones(len(hasher.names))
    coefficients = np.zeros((len(line.intercepts), len(hasher.names)))
    own = len(hasher.own)
    mean[hasher.own], scale[hasher.own] = line.mean[:own], line.scale[:own]
    coefficients[:, hasher.own] = line.coefficients[:, :own]
    slopes = line.coefficients[:, own:] / line.scale[own:]
    coefficients[:, hasher.wide] = (hasher.signs @ slopes.T).T
    return Linear(hasher.names, mean, scale, coefficients, line.intercepts - slopes @ line.mean[own:])


def _as_array(line: Linear) -> np.ndarray:
    return np.column_stack([line.coefficients, line.intercepts])


def _from_array(template: Linear, values: np.ndarray) -> Linear:
    return Linear(
        template.features, template.mean, template.scale, np.ascontiguousarray(values[:, :-1]), values[:, -1].copy()
    )


def packed(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as a checkpoint's blob."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def unpacked(blob: bytes) -> dict[str, np.ndarray]:
    """What `packed` made."""
    with np.load(io.BytesIO(blob), allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}
