"""Features that give the label away, each looked at alone: by its values, and by where it is missing or zero.

With base scores that work, a feature may well be as good as they are, since many are made from them. What no honest
feature does is to tell a class nearly as well again *among rows of like base scores*: rows to which the base scores
together, by a small model of nothing else that was grown on other genes, give the same probability. They are the blocks
of an isotonic regression of the class on it: within one it tells nothing more. Without such base scores a feature has
to be all but the label itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
import xgboost as xgb
from scipy.optimize import isotonic_regression
from scipy.stats import binomtest

from metabatch.analysis.ranking import Ranked, auc_and_ap, auc_within, correlations, rank

# Correlation with the label, and without a base score AUC: all but the label itself.
SAME_CORRELATION, SAME_AUC = 0.95, 0.99
# AP says as much where the class is rare; of a common one many features have a high AP.
SAME_AP, RARE = 0.9, 0.1
# A base score of this AUC works; a feature then needs this AUC, and among rows of like base score again. A copy of the
# label with one in twenty changed has 0.95.
WORKING_AUC, BEYOND_AUC = 0.9, 0.9
# Or this part of the base's own error at most: where the base leaves too few rows of like score to compare in.
MARKED = 0.25
# A state (missing, present, zero, not zero) of one side only, even if it is seldom (a leak in one shard): the part of
# its rows on that side is at least this with 95 % confidence, and the odds of it so many times those expected.
PURE, ODDS = 0.95, 15.0
# Fewer rows of either side, or genes, can be chance; so can what is within two standard errors (of the AUC by genes, of
# the AP binomial in the positives: Boyd, Eng and Page 2013).
LEAST_ROWS, LEAST_UNITS, ERRORS = 20, 5, 2.0
# Weight of the comparable pairs, about the rows of the smaller side among them.
LEAST_WEIGHT = 10.0

_SCHEMA = {
    "feature": pl.String, "class": pl.String, "pearson": pl.Float64, "spearman": pl.Float64, "auc": pl.Float64,
    "ap": pl.Float64, "base_stratified_auc": pl.Float64, "missing_auc": pl.Float64, "missing_ap": pl.Float64,
    "zero_auc": pl.Float64, "zero_ap": pl.Float64, "flagged": pl.Boolean, "reason": pl.String,
}  # fmt: skip


@dataclass(frozen=True)
class _Base:
    """What the base scores tell of a class: how good they are, the rows alike in them, the share expected there."""

    auc: float
    ap: float
    correlation: float
    stratum: np.ndarray
    expected: np.ndarray


class Screen:
    """Judges columns against the labels of some rows.

    Parameters
    ----------
    label : ndarray of int, shape (n,)
        Positions in `classes`.
    unit : ndarray of int, shape (n,)
        Codes of the genes; rows of one are no independent evidence.
    base : mapping
        Class -> its base score, float, shape (n,), NaN where missing. All of them count for every class.
    """

    def __init__(
        self, label: np.ndarray, unit: np.ndarray, classes: Sequence[str], base: Mapping[str, np.ndarray]
    ) -> None:
        self.label, self.unit, self.classes = label, unit, tuple(classes)
        self._one_hot = (label[:, None] == np.arange(len(classes))).astype(np.int32)
        self._units = min(LEAST_UNITS, len(np.unique(unit)))
        self._base: dict[int, _Base] = {}
        scores = np.stack([np.asarray(b, dtype=np.float32) for b in base.values()], axis=1) if base else None
        for k in range(len(self.classes)):
            if scores is not None and 0 < self._one_hot[:, k].sum() < len(label):
                self._base[k] = self._base_of(_probability(scores, self._one_hot[:, k], unit), k)

    def column(self, name: str, values: np.ndarray) -> list[dict[str, Any]]:
        """One row of `leakage_table` a class, flagged by the numbers alone.

        Parameters
        ----------
        values : ndarray of numbers, shape (n,)
            NaN where missing.
        """
        gone = np.isnan(values) if values.dtype.kind == "f" else np.zeros(len(values), dtype=bool)
        present = np.flatnonzero(~gone)
        here = rank(values[present], present, self._one_hot)
        states = {
            "missing": rank(gone.view(np.uint8), np.arange(len(values)), self._one_hot),
            "zero": rank((values[present] == 0).view(np.uint8), present, self._one_hot),
        }
        (auc, ap), (pearson, spearman) = auc_and_ap(here), correlations(here)
        of_state = {state: auc_and_ap(ranked) for state, ranked in states.items()}
        found = []
        for k, class_name in enumerate(self.classes):
            reasons = [self._by_value(here, k, auc[k], ap[k], pearson[k], spearman[k])]
            for state, ranked in states.items():
                # Of a column of zeros and ones its values say the same.
                if state == "missing" or reasons[0] is None or len(here.values) > 2:
                    reasons.append(self._by_state(state, ranked, k, of_state[state][0][k]))
            said = [r for r in reasons if r is not None]
            base = self._base.get(k)
            beyond = None if base is None else auc_within(here, k, base.stratum)
            row = {"feature": name, "class": class_name, "pearson": pearson[k], "spearman": spearman[k]}
            row |= {"auc": _either(auc[k]), "ap": ap[k], "base_stratified_auc": None}
            if beyond is not None:
                row["base_stratified_auc"] = beyond.auc if auc[k] >= 0.5 else 1 - beyond.auc
            for state, (state_auc, state_ap) in of_state.items():
                row |= {f"{state}_auc": _either(state_auc[k]), f"{state}_ap": state_ap[k]}
            found.append(row | {"flagged": bool(said), "reason": "; ".join(said)})
        return found

    def _base_of(self, score: np.ndarray, k: int) -> _Base:
        ranked = rank(score, np.arange(len(score)), self._one_hot)
        fitted = isotonic_regression(ranked.hits[k] / ranked.counts, weights=ranked.counts)
        blocks = np.diff(fitted.blocks)
        stratum, expected = np.zeros(len(score), dtype=np.int64), np.zeros(len(score))
        stratum[ranked.rows] = np.repeat(np.arange(len(blocks)), blocks)[ranked.code]
        expected[ranked.rows] = fitted.x[ranked.code]
        auc, ap = auc_and_ap(ranked)
        return _Base(auc[k], ap[k], max(abs(c[k]) for c in correlations(ranked)), stratum, expected)

    def _working(self, k: int) -> _Base | None:
        base = self._base.get(k)
        return base if base is not None and base.auc >= WORKING_AUC else None

    def _by_value(self, ranked: Ranked, k: int, auc: float, ap: float, pearson: float, spearman: float) -> str | None:
        """How the values of a column tell class k from the rest; None when they do not, or no better than they may."""
        base, share, hits = self._working(k), ranked.share[k], ranked.hits[k].sum()
        kind, r = ("Pearson", pearson) if abs(pearson) >= abs(spearman) else ("Spearman", spearman)
        alone, rare_ap = _either(auc), ap if share <= RARE else 0.0
        telling = abs(r) >= SAME_CORRELATION or rare_ap >= SAME_AP or alone >= (BEYOND_AUC if base else SAME_AUC)
        if not telling or not self._enough(ranked, k):
            return None
        same = f"|{kind}| {abs(r):.2f} with the label"
        ap_low = rare_ap - ERRORS * float(np.sqrt(rare_ap * (1 - rare_ap) / hits))
        if base is None:
            if abs(r) >= SAME_CORRELATION:
                return same
            if self._surely(ranked, k, None, up=auc >= 0.5)[0] >= SAME_AUC:
                return f"AUC {alone:.3f} alone"
            return f"AP {ap:.2f} alone, in a class of {share:.1%} of the rows" if ap_low >= SAME_AP else None
        low, beyond = self._surely(ranked, k, base.stratum, up=auc >= 0.5)
        if alone >= BEYOND_AUC and low >= BEYOND_AUC:
            return f"AUC {alone:.3f} alone, and {beyond:.2f} among rows of like base scores"
        if abs(r) >= SAME_CORRELATION and 1 - abs(r) <= MARKED * (1 - base.correlation):
            return f"{same}, that of the base scores is {base.correlation:.2f}"
        if ap_low >= SAME_AP and 1 - ap_low <= MARKED * (1 - base.ap):
            return f"AP {ap:.2f} alone, that of the base scores is {base.ap:.2f}"
        return None

    def _by_state(self, state: str, ranked: Ranked, k: int, auc: float) -> str | None:
        """How being missing (or zero) tells class k from the rest; None when it does not, or no better than it may."""
        if len(ranked.values) < 2:
            return None
        base, hits, others = self._working(k), ranked.hits[k], ranked.counts - ranked.hits[k]
        names = ("present", "missing") if state == "missing" else ("not zero", "zero")
        least, alone = BEYOND_AUC if base else SAME_AUC, _either(auc)
        if alone >= least and self._enough(ranked, k):
            low, beyond = self._surely(ranked, k, base.stratum if base else None, up=auc >= 0.5)
            if low >= least:
                mine = int(auc >= 0.5)
                where = f"{names[mine]} in {hits[mine] / hits.sum():.0%} of its rows and "
                where += f"{others[mine] / others.sum():.0%} of the others"
                more = f", and {beyond:.2f} among rows of like base scores" if base else ""
                return f"{where}: {'missingness' if state == 'missing' else 'zero-ness'} AUC {alone:.2f}{more}"
        # Only of the rarer side is it telling: most rows are of the other anyway.
        rarer, whose = (hits, self.classes[k]) if ranked.share[k] <= 0.5 else (others, f"not {self.classes[k]}")
        for value in (0, 1):
            count, total = int(rarer[value]), int(ranked.counts[value])
            if count < LEAST_ROWS or count < PURE * total:
                continue
            rows = ranked.rows[ranked.code == value]
            expected = float(self._expected(k)[rows].mean())
            expected = expected if rarer is hits else 1 - expected
            low = binomtest(count, total).proportion_ci(0.95, method="wilson").low
            enough = len(np.unique(self.unit[rows])) >= self._units
            if enough and low >= PURE and low * (1 - expected) >= ODDS * expected * (1 - low):
                return (
                    f"{count / total:.0%} of the {total:,} rows where it is {names[value]} are {whose}, "
                    f"where {expected:.0%} were expected"
                )
        return None

    def _expected(self, k: int) -> np.ndarray:
        """Probability of class k, by its base score where there is one, shape (n,)."""
        base = self._base.get(k)
        return np.full(len(self.label), self._one_hot[:, k].mean()) if base is None else base.expected

    def _enough(self, ranked: Ranked, k: int) -> bool:
        mine = ranked.one_hot[:, k] == 1
        sides = (ranked.rows[mine], ranked.rows[~mine])
        return all(len(s) >= LEAST_ROWS and len(np.unique(self.unit[s])) >= self._units for s in sides)

    def _surely(self, ranked: Ranked, k: int, stratum: np.ndarray | None, *, up: bool) -> tuple[float, float]:
        """The AUC in this direction less its errors, and the AUC; 0 where too few pairs can be compared."""
        found = auc_within(ranked, k, stratum, self.unit)
        if found is None or found.weight < LEAST_WEIGHT:
            return 0.0, 0.0
        auc = found.auc if up else 1 - found.auc
        return auc - ERRORS * found.error, auc


def _probability(scores: np.ndarray, positive: np.ndarray, unit: np.ndarray) -> np.ndarray:
    """What the base scores, shape (n, s), tell together of a class: each half of the genes by a model of the other."""
    half = np.random.default_rng(0).permutation(int(unit.max()) + 1)[unit] % 2
    found = np.zeros(len(positive), dtype=np.float32)
    settings = {"objective": "binary:logistic", "max_depth": 3, "learning_rate": 0.2, "nthread": 1, "seed": 0}
    for out in (0, 1):
        mine, other = half == out, half != out
        if mine.any() and other.any():
            known = xgb.QuantileDMatrix(scores[other], positive[other], nthread=1)
            found[mine] = xgb.train(settings, known, 40).inplace_predict(scores[mine])
    return found


def leakage_table(rows: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """leakage.parquet: a row a feature and class. `auc` and `ap` of the better direction; null where undefined."""
    return pl.DataFrame(list(rows), schema=_SCHEMA, orient="row").with_columns(pl.selectors.float().fill_nan(None))


def _either(auc: float) -> float:
    return max(auc, 1 - auc)
