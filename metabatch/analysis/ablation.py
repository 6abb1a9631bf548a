"""What groups of features are worth: average precision and log loss of short boosters that lack them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import polars as pl

from metabatch.analysis.feature_groups import SCORE_GROUPS, group_of
from metabatch.analysis.figures import COLOURS, GREY, new_axes
from metabatch.analysis.frame import Cell, Found, ImpossibleError, Picture, Shown
from metabatch.metrics.bootstrap import Ranking, bootstrap_ap, group_multiplicities, interval
from metabatch.metrics.classification import class_metrics
from metabatch.rundir.layout import class_stems
from metabatch.rundir.manifests import Feature

RESAMPLES = 200
# A rise of AP below this is not flagged, however sure it is.
NOTABLE = 0.01
_SAID = {"no-scores": "without scores", "no-kmers": "without k-mers", "scores-only": "with scores only"}
type Group = Literal["score", "kmer", "context"]
# Variant -> the groups of features that it has.
VARIANTS: dict[str, tuple[Group, ...]] = {
    "full": ("score", "kmer", "context"),
    "scores-only": ("score",),
    "kmers-only": ("kmer",),
    "no-kmers": ("score", "context"),
    "no-scores": ("kmer", "context"),
    "context-only": ("context",),
}


@dataclass(frozen=True)
class Variant:
    """Short boosters of all classes on some of the features.

    features : how many. same_as : an earlier variant with the same features, which speaks for this one.
    rounds, learning_rate : how they were grown.
    scores : of the held-out rows, float32, shape (m, k); None for a variant that was not grown.
    """

    name: str
    features: int
    same_as: str | None
    rounds: int
    learning_rate: float
    scores: np.ndarray | None


def feature_groups(features: Sequence[Feature], scores: Mapping[str, str]) -> list[Group]:
    """The group of each feature: all that comes from the base scores, k-mers, and context.

    Scores are those of the position and of its neighbours, and what the table derived from them, as told by
    `metabatch.analysis.feature_groups`.
    """
    columns = tuple(scores.values())
    fine = [group_of(f, columns) for f in features]
    return ["score" if g in SCORE_GROUPS else f.group for g, f in zip(fine, features, strict=True)]


def ablation(
    variants: Sequence[Variant], label: np.ndarray, weight: np.ndarray, group: np.ndarray, classes: Sequence[str],
    *, rounds: int, on: str, seed: int,
) -> Found:  # fmt: skip
    """Compare the variants on the held-out rows.

    Parameters
    ----------
    label, weight, group : ndarray of shape (m,)
        Of the held-out rows, in order of the variants' scores: class code, sampling weight, code of the gene (or split
        group) that is resampled.
    rounds : int
        Rounds of each booster.
    on : str
        Which rows, with which models.

    Raises
    ------
    ImpossibleError
        One gene only, no class that the rows can judge, or no groups of features that could be taken away.
    """
    grown = {v.name: v.scores for v in variants if v.scores is not None}
    _, codes = np.unique(group, return_inverse=True)
    units = int(codes.max()) + 1 if len(codes) else 0
    if units < 2:
        raise ImpossibleError("the held-out rows are of one gene (or split group): nothing can be resampled")
    if len(grown) < 2:
        raise ImpossibleError("the features are of one group: nothing can be taken away")
    judged = [c for c in range(len(classes)) if weight[label == c].any() and weight[label != c].any()]
    if not judged:
        raise ImpossibleError("the held-out rows hold no class beside others")
    draws = group_multiplicities(units, RESAMPLES, seed)
    weights = weight.astype(np.float64)
    frames = [_compared(classes[c], grown, c, label == c, weights, codes, draws) for c in judged]
    table = pl.concat(frames)
    rate = variants[0].learning_rate
    skipped = {v.name: f"same features as {v.same_as}" if v.same_as else "no such features"
               for v in variants if v.scores is None}  # fmt: skip
    left_out = [name for c, name in enumerate(classes) if c not in judged]
    stems = class_stems(tuple(classes))
    counts = {v.name: v.features for v in variants}
    says = [_saying(name, frame) for name, frame in zip([classes[c] for c in judged], frames, strict=True)]
    if left_out:
        says.append(f"The held-out rows cannot judge {', '.join(left_out)}: left out.")
    return Found(
        on=on,
        says=says,
        flags=_flags(table),
        facts={
            "rounds": rounds, "learning_rate": rate, "resamples": RESAMPLES, "rows": len(label), "groups": units,
            "variants": {
                v.name: {"features": v.features, "grown": v.scores is not None, "same_as": v.same_as} for v in variants
            },
            "classes": {
                name: {r["variant"]: {k: r[k] for k in r if k not in ("class", "variant")} for r in f.to_dicts()}
                for name, f in zip([classes[c] for c in judged], frames, strict=True)
            },
            "left_out": left_out,
        },
        shown=[_shown(table, counts, skipped, rounds, rate)],
        tables={"ablation": table},
        pictures=[
            _picture(classes[c], stems[c], frame, units, len(label), rounds)
            for c, frame in zip(judged, frames, strict=True)
        ],
    )  # fmt: skip


def _compared(
    name: str, grown: Mapping[str, np.ndarray], code: int, positive: np.ndarray, weight: np.ndarray,
    group: np.ndarray, draws: np.ndarray,
) -> pl.DataFrame:  # fmt: skip
    """One class: metrics of each variant, and the differences to the full one with paired intervals."""
    rankings = {v: Ranking.of(scores[:, code], positive) for v, scores in grown.items()}
    aps = bootstrap_ap(rankings, weight, group, draws)
    sums = {v: _sums(scores[:, code], positive, weight, group, draws.shape[1]) for v, scores in grown.items()}
    of_group = np.bincount(group, weights=weight, minlength=draws.shape[1])
    total = draws @ of_group
    losses = {v: np.divide(draws @ s, total, out=np.full(len(draws), np.nan), where=total > 0)
              for v, s in sums.items()}  # fmt: skip
    rows: list[dict[str, Any]] = []
    full = class_metrics(grown["full"][:, code], positive, weight)
    for variant, scores in grown.items():
        here = class_metrics(scores[:, code], positive, weight)
        row: dict[str, Any] = {"class": name, "variant": variant, "ap": here["ap"], "log_loss": here["log_loss"]}
        for metric, drawn in (("ap", aps), ("log_loss", losses)):
            ends = (None if variant == "full" else interval(drawn[variant] - drawn["full"])) or (None, None)
            change = None if variant == "full" else float(here[metric] or 0.0) - float(full[metric] or 0.0)
            row |= {f"{metric}_change": change, f"{metric}_low": ends[0], f"{metric}_high": ends[1]}
        rows.append(row)
    numbers = {k: pl.Float64 for k in rows[0] if k not in ("class", "variant")}
    return pl.DataFrame(rows, schema={"class": pl.String, "variant": pl.String, **numbers})


def _sums(p: np.ndarray, positive: np.ndarray, weight: np.ndarray, group: np.ndarray, groups: int) -> np.ndarray:
    """Weighted log loss added up by group, as in `class_metrics`."""
    clipped = np.clip(p.astype(np.float64), 1e-7, 1 - 1e-7)
    loss = -np.log(np.where(positive, clipped, 1 - clipped))
    return np.bincount(group, weights=weight * loss, minlength=groups)


def _saying(name: str, frame: pl.DataFrame) -> str:
    """E.g.: without scores donor AP falls by 0.310 (0.220 to 0.400)."""
    rows = {r["variant"]: r for r in frame.iter_rows(named=True)}
    parts = [_change(words, rows[v]) for v, words in _SAID.items() if v in rows]
    return f"{name}: AP {rows['full']['ap']:.3f} with all features; {'; '.join(parts) or 'nothing to compare'}."


def _change(words: str, row: Mapping[str, Any]) -> str:
    change, low, high = row["ap_change"], row["ap_low"], row["ap_high"]
    if abs(change) < 0.0005:
        return f"{words} it stays the same"
    if low is None:
        return f"{words} {row['class']} AP changes by {change:+.3f}"
    if change > 0:
        return f"{words} {row['class']} AP rises by {change:.3f} ({low:.3f} to {high:.3f})"
    return f"{words} {row['class']} AP falls by {-change:.3f} ({-high:.3f} to {-low:.3f})"


def _flags(table: pl.DataFrame) -> list[str]:
    """Features that the held-out rows are better off without: the interval lies above 0."""
    better = table.filter((pl.col("ap_low") > 0) & (pl.col("ap_change") > NOTABLE))
    return [
        f"{r['class']}: {r['variant']} has a higher AP than all features (by {r['ap_change']:.3f}, "
        f"{r['ap_low']:.3f} to {r['ap_high']:.3f}): the features it lacks do harm"
        for r in better.iter_rows(named=True)
    ]


def _shown(
    table: pl.DataFrame, counts: Mapping[str, int], skipped: Mapping[str, str], rounds: int, rate: float
) -> Shown:
    rows: list[tuple[Cell, ...]] = [
        (r["class"], r["variant"], counts[r["variant"]], r["ap"], r["ap_change"], _span(r["ap_low"], r["ap_high"]),
         r["log_loss"], r["log_loss_change"])
        for r in table.iter_rows(named=True)
    ]  # fmt: skip
    said = "".join(f" {variant}: {why}, not grown." for variant, why in skipped.items())
    return Shown(
        title="Ablation: average precision and log loss by variant",
        columns=("class", "variant", "features", "AP", "change", "95 % interval", "log loss", "change"),
        kinds=("text", "text", "count", "number", "signed", "text", "small", "signed"),
        rows=tuple(rows),
        note=f"Short boosters ({rounds} rounds at learning rate {rate:g}), uncalibrated, grown without the held-out "
        "rows: compare within the table only. Changes are to `full`; intervals by resampling whole genes, paired. "
        "Scores are the base scores, those of neighbouring positions, and what was derived from them, told by name."
        + said,
    )


def _span(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:+.3f} to {high:+.3f}"


def _picture(name: str, stem: str, frame: pl.DataFrame, units: int, rows: int, rounds: int) -> Picture:
    """Bars of AP; whiskers: AP of `full` plus the interval of the difference to it."""
    figure, axes = new_axes()
    at = np.arange(frame.height)
    full = frame.row(by_predicate=pl.col("variant") == "full", named=True)["ap"]
    numbers = frame.with_columns(
        whisker_low=full + pl.col("ap_low"), whisker_high=full + pl.col("ap_high")
    ).select("variant", "ap", "ap_change", "ap_low", "ap_high", "whisker_low", "whisker_high")  # fmt: skip
    axes.bar(at, numbers["ap"], color=[COLOURS[0] if v == "full" else COLOURS[5] for v in numbers["variant"]],
             edgecolor="black", linewidth=0.6)  # fmt: skip
    known = numbers["whisker_low"].is_not_null().to_numpy()
    axes.vlines(at[known], numbers["whisker_low"].drop_nulls(), numbers["whisker_high"].drop_nulls(), color="black")
    axes.axhline(full, color=GREY, linestyle="--", linewidth=0.9)
    axes.set_xticks(at, numbers["variant"].to_list(), rotation=25, ha="right")
    axes.set(ylabel="average precision", ylim=(0, 1.05), title=f"{name}: {rows:,} held-out rows, {units:,} groups")
    caption = (
        f"{name}: average precision of short boosters ({rounds} rounds) on subsets of the features; lines: 95 % "
        "interval of the difference to all features (dashed), by resampling whole genes."
    )
    return Picture(f"ablation_{stem}", caption, figure, numbers)
