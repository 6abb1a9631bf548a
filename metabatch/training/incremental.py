"""Linear models of an instance, out of core: passes over its row groups, a batch of rows in memory at a time.

A first pass standardises. In every later one (an epoch) the row groups come in an order of their own, each batch is
first scored by the models as they were after the epoch before, every row by that of the fold that holds it out, and
then shuffled and learned from. So an epoch is judged in the pass of the next one, and the last pass only judges. The
models of all folds and the final one learn from the same batches; of the final one the lines after every epoch are
kept, of which the folds choose one. It ends after an epoch that was the best one for no fold and class.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np

from metabatch.errors import InputError
from metabatch.resources.law import LINEAR_ROWS
from metabatch.rundir.manifests import Plan
from metabatch.training.checkpoints import Slot
from metabatch.training.epochs import Epochs, packed, unpacked
from metabatch.training.judge import LOSS_DECIMALS, log_loss, log_losses
from metabatch.training.matrix import Rows
from metabatch.training.moments import Moments
from metabatch.training.sgd import Learners
from metabatch.training.shuffled import ShuffledRows

log = logging.getLogger(__name__)


class Incremental:
    """Fits the linear models of an instance.

    Parameters
    ----------
    source : ShuffledRows
        The features of `rows`.
    fold : ndarray of int, shape (n,), optional
        Fold of each row, 0 to F - 1.
    slot : Slot
        Where all models are kept while they learn.
    """

    def __init__(
        self, source: ShuffledRows, rows: Rows, fold: np.ndarray | None, plan: Plan, index: int, threads: int,
        slot: Slot,
    ) -> None:  # fmt: skip
        self._source, self._rows, self._fold, self._plan = source, rows, fold, plan
        self._index, self._threads, self._slot = index, threads, slot
        self._folds = 0 if fold is None else int(fold.max()) + 1
        self._classes = len(plan.columns.classes)
        self._batch_rows = min(plan.options.batch_size, len(rows))

    def fit(self) -> Epochs:
        """All passes; goes on from a checkpoint, to the same bits."""
        saved = self._slot.read()
        state = self._standardise() if saved is None else unpacked(saved.blobs["state"])
        fixed = {name: state[name] for name in ("sizes", "mean", "scale")}
        learners = self._learners(fixed["mean"], fixed["scale"])
        epochs = Epochs.empty(len(self._rows) if self._folds else 0, self._classes, self._folds)
        epoch, skipped = 1, 0
        if saved is not None:
            learners.restore(state)
            epochs.restore(saved, state, learners.models())
            epoch, skipped = int(saved.facts["epoch"]), int(saved.facts["batches"])
        last = self._plan.options.epochs
        for number in range(epoch, last + 1 + bool(self._folds)):
            self._pass(number, skipped, learners, epochs, fixed, learning=number <= last)
            skipped = 0
            if number > 1 and self._folds and not self._judge(number - 1, epochs):
                break
            if number <= last:
                epochs.lines = learners.models()
                epochs.final.append(epochs.lines[-1])
        return epochs

    def _pass(
        self, number: int, skipped: int, learners: Learners, epochs: Epochs, fixed: Mapping[str, np.ndarray],
        *, learning: bool,
    ) -> None:  # fmt: skip
        """One pass over all rows, without the first `skipped` batches."""
        seed = [self._plan.seed, self._index, number]
        order = np.random.default_rng(seed).permutation(len(self._source))
        batches = self._source.batches(order, fixed["sizes"], self._batch_rows, skipped)
        for through, (batch, index) in enumerate(batches, start=skipped + 1):
            if number > 1 and self._folds:
                self._score(batch, index, epochs)
            if learning:
                rng = np.random.default_rng([*seed, through])
                self._learn(batch, index, rng.permutation(len(index)), learners)
            self._slot.keep_growing(
                lambda: {"state": packed({**fixed, **learners.state(), **epochs.arrays()})},
                {"rounds_done": number - 1, "epoch": number, "batches": through},
                epochs.scored,
            )

    def _learn(self, batch: np.ndarray, index: np.ndarray, order: np.ndarray, learners: Learners) -> None:
        for start in range(0, len(order), LINEAR_ROWS):
            mine = order[start : start + LINEAR_ROWS]
            row = index[mine]
            taking = [self._fold[row] != f for f in range(self._folds)] if self._fold is not None else []
            taking.append(np.ones(len(row), dtype=bool))
            learners.learn(batch[mine], self._rows.label[row], self._rows.weight[row].astype(np.float64), taking)

    def _score(self, batch: np.ndarray, index: np.ndarray, epochs: Epochs) -> None:
        """Held-out rows by the models of the epoch before; the losses of the others are added up."""
        if self._fold is None:
            return
        for start in range(0, len(index), LINEAR_ROWS):
            row = index[start : start + LINEAR_ROWS]
            label, weight, fold = self._rows.label[row], self._rows.weight[row], self._fold[row]
            for number, line in enumerate(epochs.lines[: self._folds]):
                proba = line.raw(batch[start : start + LINEAR_ROWS])
                mine = fold == number
                epochs.scores[row[mine]] = proba[mine]
                for code in range(self._classes):
                    losses = log_losses(proba[~mine, code], label[~mine] == code)
                    epochs.losses[code, number] += float((weight[~mine] * losses).sum(dtype=np.float64))

    def _judge(self, epoch: int, epochs: Epochs) -> bool:
        """Take in the scores of `epoch`; whether it was the best so far for any fold and class."""
        rows, fold, better = self._rows, self._fold, False
        if fold is None:
            raise ValueError("nothing to judge by")
        held_out = np.full(epochs.chosen.shape, np.nan)
        whole = float(rows.weight.sum(dtype=np.float64))
        train = np.full(epochs.chosen.shape, np.nan)
        for number in range(self._folds):
            mine = fold == number
            weight = rows.weight[mine]
            trained = whole - float(weight.sum(dtype=np.float64))
            for code in range(self._classes):
                scores, positive = epochs.scores[mine, code], rows.label[mine] == code
                loss = log_loss(scores, positive, weight)
                held_out[code, number] = loss
                train[code, number] = epochs.losses[code, number] / trained if trained else np.nan
                judges = 0 < weight[positive].sum(dtype=np.float64) < weight.sum(dtype=np.float64)
                known = epochs.chosen[code, number]
                lowest = np.inf if not known else round(epochs.held_out[known - 1][code, number], LOSS_DECIMALS)
                improved = judges and round(loss, LOSS_DECIMALS) < lowest
                if improved or not judges:  # what cannot be judged has the scores of the last epoch
                    epochs.best[mine, code] = scores
                if improved:
                    epochs.chosen[code, number] = epoch
                    better = True
        epochs.train.append(train)
        epochs.held_out.append(held_out)
        epochs.losses[:] = 0
        log.info("epoch %d: held-out log loss %s", epoch, np.array2string(np.nanmean(held_out, axis=1), precision=5))
        return better

    def _standardise(self) -> dict[str, np.ndarray]:
        """sizes: rows of each piece; mean, scale: of every group (each fold's training rows, and all), shape (m, d)."""
        groups = max(1, self._folds)
        moments = Moments(groups, len(self._source.features))
        fold = np.zeros(len(self._rows), dtype=np.int64) if self._fold is None else self._fold
        sizes = np.zeros(len(self._source), dtype=np.int64)
        start = 0
        for number, table in self._source.tables(range(len(self._source))):
            part = slice(start, start + len(table))
            moments.add(table, fold[part], self._rows.weight[part])
            sizes[number] += len(table)
            start += len(table)
        if start != len(self._rows):
            raise InputError(f"the data set gives {start:,} rows", expected=f"{len(self._rows):,} rows as planned")
        others = [[g for g in range(groups) if g != f] for f in range(self._folds)]
        found = [moments.standardisation(own) for own in [*others, list(range(groups))]]
        mean, scale = (np.stack(values) for values in zip(*found, strict=True))
        return {"sizes": sizes, "mean": mean, "scale": scale}

    def _learners(self, mean: np.ndarray, scale: np.ndarray) -> Learners:
        rows, fold, classes = self._rows, self._fold, self._classes
        weight = rows.weight.astype(np.float64)
        totals, counts = np.zeros((self._folds + 1, classes, 2)), np.zeros(self._folds + 1, dtype=np.int64)
        for group in range(self._folds + 1):
            mine = np.ones(len(rows), dtype=bool) if group == self._folds or fold is None else fold != group
            own = np.bincount(rows.label[mine], weights=weight[mine], minlength=classes)
            totals[group, :, 0], totals[group, :, 1] = own, own.sum() - own
            counts[group] = int((mine & (weight > 0)).sum())
        largest = np.array([
            [weight[rows.label == c].max(initial=0.0), weight[rows.label != c].max(initial=0.0)] for c in range(classes)
        ])  # fmt: skip
        o = self._plan.options
        names = self._source.features
        return Learners(names, mean, scale, totals, counts, largest, o.model_spec, o.alpha, self._threads)
