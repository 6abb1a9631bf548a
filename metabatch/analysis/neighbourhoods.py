"""Scores around true sites: does the meta-model peak at the site, and is it quiet beside it?"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from metabatch.analysis.figures import BASE, GREY, META, new_axes
from metabatch.analysis.frame import Cell, Found, ImpossibleError, Picture, Shown
from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.bootstrap import group_multiplicities, interval
from metabatch.rundir.layout import class_stems

_RESAMPLES = 200
# Below this nothing is drawn apart on the log axis.
_FLOOR = 1e-6
# A score beside the sites below this part of that at the sites blurs nothing, whatever the base's is.
_BLUR = 0.01
_MODELS = ("base", "meta")


@dataclass(frozen=True)
class _Around:
    """Rows found around the drawn sites of a class: one entry a site and offset that the table has.

    scores : class whose score it is and model -> float, shape (m,); where a position has several rows, their mean.
    weight : shape (m,): sites that the entry stands for. is_site : whether the entry is a site of the class itself.
    """

    sites: int
    of_sites: int
    offset: np.ndarray
    group: np.ndarray
    weight: np.ndarray
    is_site: np.ndarray
    scores: dict[tuple[int, str], np.ndarray]


def neighbourhoods(
    rows: ScoredRows, classes: tuple[str, ...], *, sample: int = 2000, window: int = 10, seed: int = 0
) -> Found:
    """Mean base and meta score at every offset from true sites, in the direction of transcription.

    Sites are the rows of every class but the heaviest one (the background); offset +1 is the next position
    downstream. Positions that the table lacks are left out, so that each offset has its own n. Intervals: groups
    resampled.

    Parameters
    ----------
    sample : int
        Most sites of a class, drawn by `seed`.
    window : int
        Most nt up- and downstream.

    Raises
    ------
    ImpossibleError
        No position column, no sites, or nothing asked for.
    """
    if sample < 1 or window < 1:
        raise ImpossibleError(f"{sample} sites and a window of {window} nt leave nothing to look at")
    if rows.position is None or rows.strand is None:
        raise ImpossibleError("there is no column `position` with a coordinate in every row")
    mass = np.bincount(rows.label, weights=rows.weight, minlength=len(classes))
    background = int(mass.argmax())
    wanted = [i for i in range(len(classes)) if i != background and mass[i] > 0]
    if not wanted:
        raise ImpossibleError(f"all rows are {classes[background]}: there are no sites")
    places = pl.DataFrame({"gene": rows.gene, "position": rows.position, "row": np.arange(len(rows))})
    tables, pictures, says, flags, shown = [], [], [], [], []
    facts: dict[str, Any] = {
        "background": classes[background],
        "window": window,
        "resamples": _RESAMPLES,
        "classes": {},
    }
    stems = class_stems(classes)
    for code in wanted:
        around = _around(rows, places, code, wanted, sample, window, seed)
        table = _profile(around, classes, code, window, seed)
        found = _facts(around, code)
        facts["classes"][classes[code]] = found
        tables.append(table)
        pictures.append(_picture(table, classes[code], stems[code], found, window))
        says.append(_sentence(classes[code], found, window))
        flags += _flags(classes[code], found)
        shown.append(_cells(classes[code], found))
    if (rows.strand > 0).all():
        says.append(
            "No row is on the reverse strand, or the table has no usable `strand`: offsets follow the coordinate."
        )
    return Found(
        on=f"{rows.described()}, scored by models that did not train on them; true sites of every class but "
        f"{classes[background]}, at most {sample:,} of each",
        says=says, flags=flags, facts=facts, shown=[_shown(shown, window)],
        tables={"neighbourhoods": pl.concat(tables)}, pictures=pictures,
    )  # fmt: skip


def _around(
    rows: ScoredRows, places: pl.DataFrame, code: int, wanted: list[int], sample: int, window: int, seed: int
) -> _Around:
    """Draw sites and find the rows of the same gene around them.

    An entry stands for 1 / (chance that its site is in the table x chance that its neighbour is): the product of their
    weights (Horvitz and Thompson 1952); at the site itself, its weight.
    """
    assert rows.position is not None  # noqa: S101 (checked by the caller)
    assert rows.strand is not None  # noqa: S101
    true = np.flatnonzero((rows.label == code) & (rows.weight > 0))
    sites = places[true].with_columns(strand=rows.strand[true], site_weight=rows.weight[true])
    sites = sites.group_by("gene", "position").agg(pl.col("strand").first(), pl.col("site_weight").mean())
    sites = sites.sort("gene", "position")
    of_sites = sites.height
    if of_sites > sample:
        sites = sites[np.sort(np.random.default_rng(seed).choice(of_sites, sample, replace=False))]
    offsets = pl.DataFrame({"offset": np.arange(-window, window + 1)})
    asked = sites.with_row_index("site").rename({"position": "at"}).join(offsets, how="cross")
    asked = asked.with_columns(position=pl.col("at") + pl.col("offset") * pl.col("strand"))
    met = asked.join(places, on=["gene", "position"], how="inner")
    row = met["row"].to_numpy()
    pairs = [(i, m) for i in wanted for m in _MODELS]
    met = met.with_columns(
        group=rows.group[row], weight=rows.weight[row], is_site=rows.label[row] == code,
        **{f"{m}_{i}": getattr(rows, m)[row, i].astype(np.float64) for i, m in pairs},
    )  # fmt: skip
    met = (
        met.group_by("site", "offset")
        .agg(pl.col("group", "site_weight").first(), pl.col("weight").mean(), pl.col("is_site").any(),
             pl.col(f"{m}_{i}" for i, m in pairs).mean())
        .sort("site", "offset")
    )  # fmt: skip
    neighbour = pl.when(pl.col("offset") == 0).then(1.0).otherwise(pl.col("weight"))
    return _Around(
        sites=sites.height,
        of_sites=of_sites,
        offset=met["offset"].to_numpy(),
        group=met["group"].to_numpy(),
        weight=met.select(pl.col("site_weight") * neighbour).to_series().to_numpy(),
        is_site=met["is_site"].to_numpy(),
        scores={
            (i, m): met[f"{m}_{i}"].to_numpy() for i, m in pairs if not np.isnan(getattr(rows, m)[:, i]).any()
        },
    )  # fmt: skip


def _profile(around: _Around, classes: tuple[str, ...], code: int, window: int, seed: int) -> pl.DataFrame:
    """class (of the sites), score (class whose score it is), offset, model, n, mean, low, high (null without rows)."""
    offsets = np.arange(-window, window + 1)
    _, unit = np.unique(around.group, return_inverse=True)
    units = int(unit.max()) + 1
    draws = group_multiplicities(units, _RESAMPLES, seed)
    cell = unit * len(offsets) + around.offset + window
    size = units * len(offsets)

    def sums(values: np.ndarray) -> np.ndarray:
        return np.bincount(cell, weights=values, minlength=size).reshape(units, len(offsets))

    weights = sums(around.weight)
    n = np.bincount(around.offset + window, minlength=len(offsets))
    parts = []
    for (score, model), values in around.scores.items():
        totals = sums(values * around.weight)
        sampled = _ratio(draws @ totals, draws @ weights)
        bounds = [interval(sampled[:, i]) or (None, None) for i in range(len(offsets))]
        parts.append(pl.DataFrame({
            "class": [classes[code]] * len(offsets), "score": [classes[score]] * len(offsets), "offset": offsets,
            "model": [model] * len(offsets), "n": n,
            "mean": pl.Series(_ratio(totals.sum(axis=0), weights.sum(axis=0)), nan_to_null=True),
            "low": pl.Series([b[0] for b in bounds], dtype=pl.Float64),
            "high": pl.Series([b[1] for b in bounds], dtype=pl.Float64),
        }))  # fmt: skip
    return pl.concat(parts)


def _ratio(total: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return np.divide(total, weight, out=np.full(total.shape, np.nan), where=weight > 0)


def _facts(around: _Around, code: int) -> dict[str, Any]:
    """Mean score at the sites, and beside them (all offsets but 0, other sites of the class left out)."""
    at, beside = around.offset == 0, (around.offset != 0) & ~around.is_site
    found: dict[str, Any] = {
        "sites": around.sites, "of_sites": around.of_sites, "beside": int(beside.sum()),
        "beside_are_sites": int(((around.offset != 0) & around.is_site).sum()),
    }  # fmt: skip
    for model in _MODELS:
        values = around.scores.get((code, model))
        found[model] = None if values is None else {
            "at_site": float(np.average(values[at], weights=around.weight[at])),
            "beside": float(np.average(values[beside], weights=around.weight[beside])) if beside.any() else None,
        }  # fmt: skip
    return found


def _sentence(name: str, found: dict[str, Any], window: int) -> str:
    meta, base = found["meta"], found["base"]
    text = f"At {found['sites']:,} true {name} sites the meta-model gives {meta['at_site']:.3f}"
    text += "" if base is None else f" (base {base['at_site']:.3f})"
    if meta["beside"] is None:
        return text + f"; the table has no other rows within {window} nt of them."
    text += f"; within {window} nt of them, at {found['beside']:,} positions that are no {name}, {meta['beside']:.3g}"
    return text + ("." if base is None else f" (base {base['beside']:.3g}).")


def _flags(name: str, found: dict[str, Any]) -> list[str]:
    meta, base = found["meta"], found["base"]
    if base is None:
        return []
    flags = []
    if meta["at_site"] < base["at_site"]:
        flags.append(f"{name}: the meta-model scores true sites lower ({meta['at_site']:.3f}) than the base "
                     f"({base['at_site']:.3f}).")  # fmt: skip
    if meta["beside"] is None or meta["beside"] < _BLUR * meta["at_site"]:
        return flags
    # Compared as products, so that a base of exactly 0 beside the sites is no division by zero.
    if meta["beside"] * base["at_site"] > base["beside"] * meta["at_site"]:
        flags.append(f"{name}: beside true sites the meta-model is higher, for its score at the site, than the base: "
                     "it blurs the site.")  # fmt: skip
    return flags


def _cells(name: str, found: dict[str, Any]) -> tuple[Cell, ...]:
    scores = [None if found[m] is None else found[m][k] for k in ("at_site", "beside") for m in _MODELS]
    return (name, found["sites"], found["of_sites"], *scores[:2], found["beside"], *scores[2:])


def _shown(rows: list[tuple[Cell, ...]], window: int) -> Shown:
    return Shown(
        title="Scores at true sites and beside them",
        columns=("class", "sites", "of", "base at site", "meta at site", "rows beside", "base beside", "meta beside"),
        kinds=("text", "count", "count", "small", "small", "count", "small", "small"),
        rows=tuple(rows),
        note=f"Beside: 1 to {window} nt up- or downstream, where the table has a row and it is no site of the class; "
        "means weighted by what site and neighbour stand for.",
    )


def _picture(table: pl.DataFrame, name: str, stem: str, found: dict[str, Any], window: int) -> Picture:
    own = table.filter(pl.col("score") == name)
    figure, axes = new_axes(6.2, 4.2)
    for model, colour, marker, line, shift in (("base", BASE, "s", "--", -0.12), ("meta", META, "o", "-", 0.12)):
        part = own.filter(pl.col("model") == model)
        if part.is_empty():
            continue
        # NaN where there are no rows: the line breaks there. An interval that is undefined (one group) has no length.
        low, mean, high = (
            part[c].fill_null(part["mean"]).clip(_FLOOR).fill_null(np.nan).to_numpy() for c in ("low", "mean", "high")
        )
        x = part["offset"].to_numpy() + shift
        label = "meta-model" if model == "meta" else "base model"
        axes.plot(x, mean, color=colour, marker=marker, linestyle=line, markersize=4, linewidth=1, label=label)
        axes.vlines(x, low, high, color=colour, linewidth=1)
    counts = own.filter(pl.col("model") == "meta").select("offset", "n")
    if window <= 15:
        for offset, n in counts.iter_rows():
            axes.text(offset, 1.0, f"{n:,}", transform=axes.get_xaxis_transform(), color=GREY, fontsize=6, rotation=90,
                      ha="center", va="top")  # fmt: skip
    axes.set_yscale("log")
    bottom, top = axes.get_ylim()
    axes.set_ylim(max(bottom, _FLOOR / 2), top * (top / max(bottom, _FLOOR)) ** 0.15)  # room for the counts
    step = max(1, -(-window // 10))
    axes.set_xticks([o for o in range(-window, window + 1) if o % step == 0])
    axes.tick_params(axis="x", labelsize="small")
    axes.set(xlabel="offset from the true site (nt, downstream positive)", ylabel=f"mean {name} score (log scale)",
             title=f"{name}: {found['sites']:,} true sites")  # fmt: skip
    axes.figure.legend(
        *axes.get_legend_handles_labels(), frameon=False, fontsize="small", loc="outside lower center", ncols=2
    )
    others: list[int] = counts.filter(pl.col("offset") != 0)["n"].to_list()
    caption = (
        f"{name}: mean score around {found['sites']:,} true sites of {found['of_sites']:,}, bars 95 % by resampling "
        f"groups; {min(others):,} to {max(others):,} rows at an offset other than 0 (numbers on top); scores below "
        f"{_FLOOR:g} are drawn there."
    )
    return Picture(f"neighbourhoods-{stem}", caption, figure, own)
