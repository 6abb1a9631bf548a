"""Which combination of members: each way learned on some genes and judged on others, against the plain mean.

Scores are those of members that trained neither on a row's gene nor on its split group. The genes are cut into folds;
every rule is fitted on the other folds and combines the fold's rows (cross-fitting), and the differences to the mean
get intervals by resampling whole genes. The mean stands unless a rule's macro AP is higher beyond its interval, widened
for the number of rules tried, and its log loss not higher beyond its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import msgspec
import numpy as np
from threadpoolctl import threadpool_limits

from metabatch.data.partition import seeded_rank
from metabatch.ensemble.combining import equal, fit_rule, log_loss, row_losses
from metabatch.errors import InputError
from metabatch.metrics.bootstrap import Ranking, bootstrap_ap, group_multiplicities, interval
from metabatch.models.calibration import prior_ratios
from metabatch.models.pooling import pool
from metabatch.options import COMBINATIONS, CombinationMethod, CombineOption
from metabatch.rundir.bundle import Combination

FOLDS = 5
# The widened limit is a quantile of some 0.4 %; each resample goes through all rows of every rule.
_MOST_RESAMPLES, _LEAST_RESAMPLES, _ROW_DRAWS = 1_000, 400, 40_000_000
# Chance that a rule no better than the mean is called better, on one side.
_DOUBT = 0.025


@dataclass(frozen=True)
class HonestRows:
    """Rows with what the members say that did not train on their genes.

    proba : shape (m, n, k), NaN where a member may not speak; every row has at least one that may.
    base : shape (n, k); NaN in columns without a base score. label, gene, group : int, shape (n,).
    weight : float64, shape (n,). gene_names : of the codes in `gene`. of_rows, of_genes : there are in all.
    levels : features that are the same in all rows of a gene -> value of each gene, shape (genes,).
    """

    proba: np.ndarray
    base: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    gene: np.ndarray
    group: np.ndarray
    gene_names: list[str]
    levels: Mapping[str, np.ndarray]
    of_rows: int
    of_genes: int

    def __len__(self) -> int:
        return len(self.label)

    def levels_of(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        return {name: values[self.gene[rows]] for name, values in self.levels.items()}


@dataclass(frozen=True)
class Choice:
    """rule : the one taken, fitted on all rows. crossed : fitted without each fold; fold : of each row.

    pooled : shape (n, k), every row by the rule fitted without its fold.
    judged : a line a method: macro AP, log loss, differences to the mean with intervals, and whether it was taken.
    """

    rule: Combination
    crossed: tuple[Combination, ...]
    fold: np.ndarray
    pooled: np.ndarray
    judged: list[dict[str, Any]]


def learnable(rows: HonestRows, classes: Sequence[str], fold: np.ndarray) -> str | None:
    """Why no weights can be learned from these rows; None when they can."""
    members = len(rows.proba)
    if members < 2:
        return "there is one member"
    if int((~np.isnan(rows.proba[:, :, 0])).sum(axis=0).max(initial=0)) < 2:
        return "no gene was left out by two members, so none can be held against another"
    groups = len(np.unique(rows.group))
    if groups < 2 * FOLDS:
        return f"there are {groups} independent genes to learn from, at least {2 * FOLDS} are needed"
    folds = {name: len(np.unique(fold[(rows.label == c) & (rows.weight > 0)])) for c, name in enumerate(classes)}
    occurring = [name for name, count in folds.items() if count]
    if len(occurring) < 2:
        return f"all rows are {' '.join(occurring) or 'without weight'}"
    lonely = [name for name in occurring if folds[name] < 2]
    return f"{lonely[0]} occurs in one fold of genes only" if lonely else None


def choose(
    rows: HonestRows, classes: tuple[str, ...], asked: CombineOption, seed: int, prior: Mapping[str, float]
) -> Choice:
    """Judge all methods (`auto`), or the one asked for beside the mean.

    Parameters
    ----------
    prior : mapping of str to float
        Natural prevalence of classes (`--prior`), for which members' probabilities are made: rows are weighted by it.

    Raises
    ------
    InputError
        A method that has to learn was asked for, and there is nothing to learn from.
    """
    fold = _folds(rows.group, seed)
    reason = learnable(rows, classes, fold)
    if reason is not None:
        if asked not in ("auto", "mean"):
            raise InputError(
                f"--combine {asked} cannot be learned: {reason}",
                expected=f"{2 * FOLDS} or more independent training genes that members did not train on, some of them "
                "left out by two members or more: three instances with few genes in common, or two of them",
                next_step="--combine auto takes the mean then",
            )  # fmt: skip
        rule = equal(len(rows.proba))
        rule = msgspec.structs.replace(
            rule, note=f"nothing to learn from: {reason}" if asked == "auto" else "as asked for"
        )
        return Choice(rule, (rule,), np.zeros_like(fold), pool(rows.proba, rule), [])
    if prior:
        ratios = np.array(prior_ratios(rows.label, rows.weight, classes, prior))
        rows = replace(rows, weight=rows.weight * ratios[rows.label])
    methods = COMBINATIONS if asked == "auto" else tuple(dict.fromkeys(("mean", asked)))
    if not rows.levels:
        if asked == "routing":
            raise InputError(
                "--combine routing cannot be learned: no feature is the same in all rows of a gene",
                expected="a feature of the whole gene (its length, say) that differs between genes",
                next_step="--combine auto tries the other rules",
            )
        methods = tuple(m for m in methods if m != "routing")
    crossed = {m: _crossed(m, rows, fold) for m in methods}
    pooled: dict[str, np.ndarray] = {m: _pooled(rows, fold, rules) for m, rules in crossed.items()}
    judged = _judge(pooled, rows, classes, seed)
    better = [line for line in judged if line["better"]]
    taken: CombinationMethod = "mean"
    if asked != "auto":
        taken, why = asked, "as asked for"
    elif better:
        best = max(better, key=lambda line: line["difference"])
        taken, why = (
            best["method"],
            f"macro AP {best['difference']:+.4f} against the mean on genes it was not fitted on",
        )
    else:
        why = f"none of {len(methods) - 1} other rules is better than the mean beyond its interval"
    for line in judged:
        line["taken"] = line["method"] == taken
    rule = _fitted(taken, rows, np.ones(len(rows), dtype=bool))
    rule = msgspec.structs.replace(rule, note=f"{why}, by {rule.feature}" if rule.routes else why)
    return Choice(rule, crossed[taken], fold, pooled[taken], judged)


def _folds(group: np.ndarray, seed: int) -> np.ndarray:
    """A fold of each row, whole groups, the same for a seed whatever the order of the rows."""
    codes, place = np.unique(group, return_inverse=True)
    return np.asarray(seeded_rank([str(c) for c in codes], seed)[place] % FOLDS)


def _fitted(method: CombinationMethod, rows: HonestRows, here: np.ndarray) -> Combination:
    given = rows.proba[:, here], rows.label[here], rows.weight[here]
    return fit_rule(method, *given, rows.levels_of(here), rows.gene[here])


def _crossed(method: CombinationMethod, rows: HonestRows, fold: np.ndarray) -> tuple[Combination, ...]:
    return tuple(_fitted(method, rows, fold != number) for number in range(FOLDS))


def _pooled(rows: HonestRows, fold: np.ndarray, rules: tuple[Combination, ...]) -> np.ndarray:
    found = np.empty(rows.proba.shape[1:])
    for number, rule in enumerate(rules):
        here = fold == number
        found[here] = pool(rows.proba[:, here], rule, rows.levels_of(here).get(rule.feature))
    return found


def _judge(
    pooled: Mapping[str, np.ndarray], rows: HonestRows, classes: tuple[str, ...], seed: int
) -> list[dict[str, Any]]:
    groups, code = np.unique(rows.group, return_inverse=True)
    resamples = int(np.clip(_ROW_DRAWS // len(rows), _LEAST_RESAMPLES, _MOST_RESAMPLES))
    draws = group_multiplicities(len(groups), resamples, seed)
    present = [c for c in range(len(classes)) if 0 < rows.weight[rows.label == c].sum() < rows.weight.sum()]
    sampled: dict[str, np.ndarray] = {m: np.empty((len(present), resamples)) for m in pooled}
    whole: dict[str, list[float]] = {m: [] for m in pooled}
    for row, c in enumerate(present):
        positive = rows.label == c
        rankings = {m: Ranking.of(p[:, c], positive) for m, p in pooled.items()}
        for m, values in bootstrap_ap(rankings, rows.weight, code, draws).items():
            sampled[m][row] = values
        for m, ranking in rankings.items():
            whole[m].append(ranking.average_precision(rows.weight))
    with threadpool_limits(1):  # as in `fit_rule`
        mass = draws @ np.bincount(code, rows.weight)
        losses = {
            m: draws @ np.bincount(code, rows.weight * row_losses(p, rows.label)) / mass for m, p in pooled.items()
        }
    mean_loss = log_loss(pooled["mean"], rows.label, rows.weight)
    lines = []
    for m, p in pooled.items():
        ap, loss = float(np.mean(whole[m])), log_loss(p, rows.label, rows.weight)
        apart = (sampled[m] - sampled["mean"]).mean(axis=0)
        gain = interval(apart)
        cost = interval(losses[m] - losses["mean"])
        # Of all rules tried together (Bonferroni); resamples without one of the classes say nothing.
        defined = apart[np.isfinite(apart)]
        sure = gain is not None and np.quantile(defined, _DOUBT / max(1, len(pooled) - 1)) > 0
        better = m != "mean" and bool(sure) and (cost is None or cost[0] <= 0)
        lines.append(
            {
                "method": m, "macro_ap": ap, "log_loss": loss,
                "ap": {classes[c]: whole[m][row] for row, c in enumerate(present)},
                "difference": ap - float(np.mean(whole["mean"])), "difference_ci95": gain,
                "log_loss_difference": loss - mean_loss, "log_loss_difference_ci95": cost, "better": better,
            }
        )  # fmt: skip
    return lines
