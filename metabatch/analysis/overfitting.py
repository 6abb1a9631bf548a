"""Whether the folds' boosters fit their training rows at the cost of others, and whether they had trees enough.

Log losses of a rare class are tiny, so all of them are measured by what the constant prediction of the rows' own
prevalence loses (its entropy H): 1 - loss / H is McFadden's pseudo R2 (D. McFadden, Frontiers in Econometrics, 1974),
0 for that constant and 1 for certainty. Differences of losses below are differences of this R2.

Boosted trees fit their training rows better than others even where nothing is wrong: on the demo's 33 genes the gap is
0.15 to 0.32 while the held-out loss is at its lowest. A gap above `WIDE` is therefore said, and flagged only where it
costs something: where the held-out loss rises by more than `RISE` until the trees that are used, or where less than
`CARRIED` of what was learned holds for other genes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
import polars as pl

from metabatch.analysis.figures import COLOURS, GREY, MARKERS, new_axes
from metabatch.analysis.frame import Found, ImpossibleError, Picture, Shown
from metabatch.rundir.layout import class_stems

WIDE, RISE, CARRIED = 0.05, 0.05, 0.5
# Best rounds that vary by more than this (sd / mean) are no guide to the number of trees.
SPREAD = 0.5
# Without early stopping: a lowest loss within this last part of the rounds says that it was still falling.
LAST = 0.05


class _Fold(msgspec.Struct, frozen=True):
    """One fold that can judge: R2 and rounds. `rise`: of the held-out loss from its lowest point to the trees used."""

    name: str
    best_rounds: int
    trained_rounds: int
    stopped_early: bool
    lowest_at: int
    r2_train: float
    r2_held_out: float
    gap: float
    rise: float
    train_log_loss: float
    held_out_log_loss: float
    ap: float | None


class _Class(msgspec.Struct, frozen=True):
    """Means over the folds of a class. `not_converged`: folds whose loss was still falling at the last round."""

    trees: int
    r2_train: float
    r2_held_out: float
    gap: float
    rise: float
    best_rounds_mean: float
    best_rounds_sd: float
    lowest_at: float
    stopped_early: int
    not_converged: int
    verdict: str
    folds: tuple[_Fold, ...]


def overfitting(
    folds: Mapping[str, Sequence[Mapping[str, Any]]], *, limit: int, patience: int, trees: Mapping[str, int], on: str
) -> Found:
    """Judge the cross-validation of an instance.

    Parameters
    ----------
    folds : mapping
        class -> its fold records of metrics.json.
    limit, patience : int
        --n-estimators and --early-stopping-patience (0: none).
    trees : mapping
        class -> trees of the final model (of all parts together where the genes were trained in parts).
    on : str
        Which rows, with which models.

    Raises
    ------
    ImpossibleError
        No fold can judge any class.
    """
    judged = {name: [f for f in records if f["best_rounds"] is not None] for name, records in folds.items()}
    lacking = [name for name, records in judged.items() if not records]
    if len(lacking) == len(judged):
        raise ImpossibleError("there is no fold that holds a class and others, or no cross-validation")
    classes = {n: _class_of(r, limit, patience, trees[n]) for n, r in judged.items() if r}
    stems = dict(zip(folds, class_stems(tuple(folds)), strict=True))
    says = [*_sayings(classes, patience)]
    if lacking:
        says.append(f"No fold can judge {', '.join(lacking)}: left out.")
    return Found(
        on=on,
        says=says,
        flags=[flag for name, c in classes.items() for flag in _flags(name, c, limit, patience)],
        facts={
            "thresholds": {"wide_gap": WIDE, "rise": RISE, "carried": CARRIED, "spread": SPREAD, "last": LAST},
            "limit": limit, "patience": patience, "classes": {n: msgspec.to_builtins(c) for n, c in classes.items()},
            "left_out": lacking,
        },
        shown=[_table(classes)],
        pictures=[_picture(name, stems[name], judged[name], c) for name, c in classes.items()],
    )  # fmt: skip


def _class_of(records: Sequence[Mapping[str, Any]], limit: int, patience: int, trees: int) -> _Class:
    models = len({r.get("part", 0) for r in records})
    used = max(1, round(trees / models))
    found = tuple(_fold_of(r, used) for r in records)
    best = np.array([f.best_rounds for f in found], dtype=float)
    falling = [not f.stopped_early if patience else f.lowest_at > (1 - LAST) * limit for f in found]

    def mean(field: str) -> float:
        defined = [v for v in (getattr(f, field) for f in found) if np.isfinite(v)]
        return float(np.mean(defined)) if defined else float("nan")

    made = _Class(
        trees=used, r2_train=mean("r2_train"), r2_held_out=mean("r2_held_out"), gap=mean("gap"), rise=mean("rise"),
        best_rounds_mean=float(best.mean()), best_rounds_sd=float(best.std()), lowest_at=mean("lowest_at"),
        stopped_early=sum(f.stopped_early for f in found), not_converged=sum(falling), verdict="", folds=found,
    )  # fmt: skip
    return msgspec.structs.replace(made, verdict=", ".join(_verdicts(made)))


def _fold_of(record: Mapping[str, Any], used: int) -> _Fold:
    curve = record["curve"]
    rounds, held_out = np.array(curve["rounds"]), np.array(curve["held_out"], dtype=float)
    constant = _entropy(record["prevalence"])
    r2_train = 1 - _number(record["train_log_loss"]) / _entropy(record["train_prevalence"])
    r2_held_out = 1 - _number(record["held_out_log_loss"]) / constant
    part = f"part {record['part']}, " if "part" in record else ""
    return _Fold(
        name=f"{part}fold {record['fold']}", best_rounds=record["best_rounds"],
        trained_rounds=record["trained_rounds"], stopped_early=record["stopped_early"],
        lowest_at=int(rounds[held_out.argmin()]), r2_train=r2_train, r2_held_out=r2_held_out,
        gap=r2_train - r2_held_out,
        rise=float(np.interp(used, rounds, held_out) - held_out.min()) / constant,
        train_log_loss=_number(record["train_log_loss"]), held_out_log_loss=_number(record["held_out_log_loss"]),
        ap=record["ap"],
    )  # fmt: skip


def _number(value: float | None) -> float:
    return float("nan") if value is None else value  # as JSON has it


def _entropy(share: float | None) -> float:
    """Log loss of predicting the prevalence; NaN where one side has no weight."""
    if share is None or not 0 < share < 1:
        return float("nan")
    return float(-share * np.log(share) - (1 - share) * np.log1p(-share))


def _overfits(c: _Class) -> bool:
    return c.rise > RISE


def _carries_little(c: _Class) -> bool:
    return c.gap > WIDE and c.r2_held_out < CARRIED * c.r2_train


def _verdicts(c: _Class) -> list[str]:
    found = []
    if _overfits(c) or _carries_little(c):
        found.append("overfits")
    elif c.gap > WIDE:
        found.append("wide gap")
    if _most(c.not_converged, c):
        found.append("not converged")
    if _is_unstable(c):
        found.append("unstable")
    return found or ["sound"]


def _is_unstable(c: _Class) -> bool:
    return c.best_rounds_sd > SPREAD * c.best_rounds_mean


def _most(count: int, c: _Class) -> bool:
    return count > len(c.folds) / 2


def _flags(name: str, c: _Class, limit: int, patience: int) -> list[str]:
    flags = []
    if _overfits(c):
        stop = "" if patience else "; --early-stopping-patience would stop there"
        flags.append(
            f"{name}: the held-out log loss was lowest after {c.lowest_at:.0f} rounds and rises by {c.rise:.3f} of the "
            f"constant prediction's until the {c.trees} that are used: the last trees fit training rows only{stop}"
        )
    if _carries_little(c):
        flags.append(
            f"{name}: overfits: pseudo R2 {c.r2_train:.3f} on training rows but {c.r2_held_out:.3f} on held-out genes "
            f"(gap {c.gap:.3f}); fewer or shallower trees, or more genes"
        )
    if _most(c.not_converged, c):
        flags.append(
            f"{name}: not converged: in {c.not_converged} of {len(c.folds)} folds the held-out loss was still falling "
            f"at the end of the {limit} rounds; more trees (--n-estimators) would help"
        )
    if _is_unstable(c):
        flags.append(
            f"{name}: the best number of rounds varies much between folds ({c.best_rounds_mean:.0f} ± "
            f"{c.best_rounds_sd:.0f}): {c.trees} trees is a rough guess"
        )
    return flags


def _sayings(classes: Mapping[str, _Class], patience: int) -> list[str]:
    pairs = ", ".join(f"{n} {c.r2_train:.3f} and {c.r2_held_out:.3f}" for n, c in classes.items())
    worst = max(classes, key=lambda n: classes[n].rise)
    rounds = ", ".join(
        f"{n} {c.trees} (best in the folds: {c.best_rounds_mean:.0f} ± {c.best_rounds_sd:.0f})"
        for n, c in classes.items()
    )
    stopped = sum(c.stopped_early for c in classes.values())
    total = sum(len(c.folds) for c in classes.values())
    return [
        f"Pseudo R2 on training rows and on held-out genes: {pairs}.",
        f"At the number of trees used, the held-out log loss is at most {classes[worst].rise:.3f} ({worst}) of the "
        "constant prediction's above its lowest point.",
        f"Trees: {rounds}; "
        + (f"early stopping ended {stopped} of {total} folds." if patience else "early stopping was off."),
    ]


def _table(classes: Mapping[str, _Class]) -> Shown:
    rows = tuple(
        (n, c.r2_train, c.r2_held_out, c.gap, c.rise, f"{c.best_rounds_mean:.0f} ± {c.best_rounds_sd:.0f}", c.trees,
         f"{c.stopped_early} of {len(c.folds)}", c.verdict)
        for n, c in classes.items()
    )  # fmt: skip
    return Shown(
        title="Overfitting by class (means over folds)",
        columns=("class", "R2 training rows", "R2 held-out genes", "gap", "rise", "best rounds", "recommended",
                 "stopped early", "verdict"),
        kinds=("text", "number", "number", "number", "number", "text", "count", "text", "text"),
        rows=rows,
        note="R2: 1 - log loss / log loss of the constant prediction (McFadden). Rise: of the held-out loss from its "
        "lowest point to the recommended rounds, in R2. Recommended: mean + sd of the best rounds. Boosted trees fit "
        f"training rows better than others; a gap above {WIDE} is called wide, and flagged only where the rise is "
        f"above {RISE} or R2 on held-out genes is below {CARRIED} of that on training rows.",
    )  # fmt: skip


def _picture(name: str, stem: str, records: Sequence[Mapping[str, Any]], c: _Class) -> Picture:
    figure, axes = new_axes()
    frames = []
    for i, (record, fold) in enumerate(zip(records, c.folds, strict=True)):
        colour, marker = COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)]
        curve = pl.DataFrame(record["curve"], schema={"rounds": pl.Int64, "train": pl.Float64, "held_out": pl.Float64})
        axes.plot(curve["rounds"], curve["train"], "--", color=colour, linewidth=0.9)
        axes.plot(curve["rounds"], curve["held_out"], "-", color=colour, linewidth=1.3)
        best = curve.filter(pl.col("rounds") == fold.best_rounds)
        axes.plot(best["rounds"], best["held_out"], marker, color=colour, markersize=6, label=fold.name)
        frames.append(curve.with_columns(fold=pl.lit(fold.name), best=pl.col("rounds") == fold.best_rounds))
    axes.plot([], [], "--", color=GREY, label="training rows")
    axes.plot([], [], "-", color=GREY, label="held-out genes")
    axes.axvline(c.trees, color=GREY, linestyle=":", label=f"recommended: {c.trees}")
    axes.set_yscale("log")
    axes.set(xlabel="boosting rounds", ylabel="weighted log loss (nats per row)",
             title=f"{name}: {len(records)} folds")  # fmt: skip
    axes.legend(fontsize=7, frameon=False)
    caption = (
        f"{name}: log loss after each round, of training rows (dashed; at most 50,000 of them) and held-out genes "
        "(solid), a colour per fold; markers: the best round of each fold; dotted: the recommended number of rounds."
    )
    return Picture(f"overfitting_{stem}", caption, figure, pl.concat(frames))
