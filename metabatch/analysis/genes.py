"""Gene by gene, base and meta-model side by side: where it helps, where it harms, which decisions it changes."""

from __future__ import annotations

from typing import Any

import numpy as np
import polars as pl
from scipy.stats import binomtest  # type: ignore[import-untyped, unused-ignore]

from metabatch.analysis.figures import BASE, GREY, META, new_axes
from metabatch.analysis.frame import Cell, Found, ImpossibleError, Picture, Shown
from metabatch.analysis.per_gene import changed, comparable, loss, per_gene
from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.bootstrap import group_multiplicities, interval
from metabatch.rundir.layout import class_stems

_RESAMPLES, _EXTREMES = 1000, 5


def compare_genes(rows: ScoredRows, classes: tuple[str, ...], *, seed: int = 0) -> Found:
    """Base against meta-model per gene and per true class.

    Genes are ranked by log loss; where the base scores do not allow one, by AP.

    Raises
    ------
    ImpossibleError
        No base score that every row has, or one gene only.
    """
    if np.isnan(rows.base).any(axis=0).all():
        raise ImpossibleError("there is no base score that every row has, so nothing to compare with")
    if len(rows.gene_names) < 2:
        raise ImpossibleError("there is one gene only")
    table = per_gene(rows, classes)
    by_loss = table["log_loss_gain"].is_not_null().any()
    measure = "log_loss_gain" if by_loss else "ap_gain"
    known = table.filter(pl.col(measure).is_not_null())
    if known.is_empty():
        raise ImpossibleError("no gene has rows with and rows without a class that has a base score")
    facts: dict[str, Any] = {"measure": measure, "genes": table.height} | _tested(rows, known, measure)
    facts["classes"] = {c: found for c in classes if (found := _ranked(table, c)) is not None}
    what = "log loss" if by_loss else "mean AP over the classes"
    says = [_tested_text(facts, what)]
    shown = [_extremes(known, measure, what), _ranked_table(facts["classes"])]
    if by_loss:
        facts["log_loss_gain"], facts["log_loss_gain_ci95"] = _mean_gain(rows, seed)
        says.append(_mean_text(facts["log_loss_gain"], facts["log_loss_gain_ci95"]))
    if comparable(rows):
        facts["decisions"] = _decisions(rows, classes)
        fixed, introduced = (int(table[f"errors_{e}"].sum()) for e in ("fixed", "introduced"))
        says.append(f"Of its decisions (the most probable class), {fixed:,} errors of the base are fixed and "
                    f"{introduced:,} introduced.")  # fmt: skip
        shown.append(_decision_table(facts["decisions"]))
    else:
        says.append("Decisions are not compared: not every class has a base score in every row.")
    pictures = [_gain_picture(known, measure, what)]
    for name, stem in zip(classes, class_stems(classes), strict=True):
        both = table.filter(pl.col(f"{name}_ap_base").is_not_null() & pl.col(f"{name}_ap_meta").is_not_null())
        if not both.is_empty():
            pictures.append(_ap_picture(both, name, stem))
    return Found(
        on=f"{rows.described()}: base and meta-model on rows that the meta-model did not train on",
        says=says, flags=_flags(facts, what), facts=facts, shown=shown, tables={"per_gene": table}, pictures=pictures,
    )  # fmt: skip


def _tested(rows: ScoredRows, known: pl.DataFrame, measure: str) -> dict[str, Any]:
    """Genes better and worse; the sign test is over resampling groups, since genes of one group are not independent."""
    signs = _signs(known[measure])
    unit = pl.DataFrame({"gene": rows.gene, "group": rows.group}).unique().sort("gene")
    named = unit.with_columns(gene_id=pl.Series(rows.gene_names)[unit["gene"].cast(pl.Int64)])
    grouped = known.join(named, on="gene_id").group_by("group").agg(pl.col(measure).mean()).sort("group")
    tested = _signs(grouped[measure])
    differ = tested["better"] + tested["worse"]
    p = float(binomtest(tested["better"], differ).pvalue) if differ else None
    return {**signs, "groups": grouped.height, "groups_better": tested["better"], "groups_worse": tested["worse"],
            "sign_test_p": p}  # fmt: skip


def _signs(gain: pl.Series) -> dict[str, int]:
    kept = gain.drop_nulls()
    return {"better": int((kept > 0).sum()), "worse": int((kept < 0).sum()), "equal": int((kept == 0).sum())}


def _ranked(table: pl.DataFrame, name: str) -> dict[str, Any] | None:
    """AP and top-k accuracy of a class in the genes that have it; None where there are none, or no base score."""
    both = table.drop_nulls([f"{name}_ap_base", f"{name}_ap_meta"])
    if both.is_empty():
        return None
    means = {f"{k}_{m}": both[f"{name}_{k}_{m}"].mean() for k in ("ap", "top_k") for m in ("base", "meta")}
    return {"genes": both.height, **means, **_signs(both[f"{name}_ap_meta"] - both[f"{name}_ap_base"])}


def _ranked_table(found: dict[str, dict[str, Any]]) -> Shown:
    keys = ("genes", "ap_base", "ap_meta", "better", "worse", "top_k_base", "top_k_meta")
    return Shown(
        title="AP and top-k accuracy within genes",
        columns=("class", "genes", "AP base", "AP meta", "AP better in", "AP worse in", "top-k base", "top-k meta"),
        kinds=("text", "count", "number", "number", "count", "count", "number", "number"),
        rows=tuple((name, *(d[k] for k in keys)) for name, d in found.items()),
        note="Means over the genes that have the class, each gene alike; k: the gene's true sites.",
    )


def _mean_gain(rows: ScoredRows, seed: int) -> tuple[float, tuple[float, float] | None]:
    """Weighted mean over all rows of base minus meta log loss, with its interval by resampling groups."""
    gain = loss(rows.base, rows.label) - loss(rows.meta, rows.label)
    groups = int(rows.group.max()) + 1
    sums = np.bincount(rows.group, weights=gain * rows.weight, minlength=groups)
    weights = np.bincount(rows.group, weights=rows.weight, minlength=groups)
    draws = group_multiplicities(groups, _RESAMPLES, seed)
    drawn = draws @ weights
    sampled = np.divide(draws @ sums, drawn, out=np.full(len(draws), np.nan), where=drawn > 0)
    return float(sums.sum() / weights.sum()), interval(sampled)


def _decisions(rows: ScoredRows, classes: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Per true class: rows, rows the base and the meta-model have right, fixed, introduced; the last two by weight."""
    moved = changed(rows)
    right = {m: getattr(rows, m).argmax(axis=1) == rows.label for m in ("base", "meta")}
    found = {}
    for code, name in enumerate(classes):
        true = rows.label == code
        found[name] = {
            "rows": int(true.sum()),
            **{f"{m}_right": int((true & r).sum()) for m, r in right.items()},
            **{e: int((true & c).sum()) for e, c in moved.items()},
            **{f"{e}_weight": float(rows.weight[true & c].sum()) for e, c in moved.items()},
        }
    return found


def _tested_text(facts: dict[str, Any], what: str) -> str:
    genes = facts["better"] + facts["worse"] + facts["equal"]
    over = "" if facts["groups"] == genes else f" over {facts['groups']:,} groups of genes kept together"
    p = "undefined" if facts["sign_test_p"] is None else f"p = {facts['sign_test_p']:.2g}"
    return (
        f"By {what} the meta-model is better than the base in {facts['better']:,} of {genes:,} genes and worse in "
        f"{facts['worse']:,} (sign test{over}: {p})."
    )


def _mean_text(gain: float, ci: tuple[float, float] | None) -> str:
    text = f"Over all rows the log loss is {abs(gain):.3g} {'lower' if gain >= 0 else 'higher'} than the base's"
    return text + ("." if ci is None else f" (base - meta: 95 % interval {ci[0]:+.3g} to {ci[1]:+.3g}).")


def _flags(facts: dict[str, Any], what: str) -> list[str]:
    found = []
    if facts["worse"] >= facts["better"]:
        found.append(f"By {what}, the meta-model is no better than the base in most genes.")
    found += [
        f"{name}: more errors are introduced ({d['introduced']:,}) than fixed ({d['fixed']:,})."
        for name, d in facts.get("decisions", {}).items()
        if d["introduced"] > d["fixed"]
    ]
    return found


def _extremes(known: pl.DataFrame, measure: str, what: str) -> Shown:
    ranked = known.sort(measure, "gene_id", descending=[True, False])
    best = ranked.filter(pl.col(measure) > 0).head(_EXTREMES)
    worst = ranked.filter(pl.col(measure) < 0).tail(_EXTREMES)
    cells = ["gene_id", "rows", "base_log_loss", "meta_log_loss", "ap_gain", "errors_fixed", "errors_introduced"]
    rows: list[tuple[Cell, ...]] = list(pl.concat([best, worst]).select(cells).iter_rows())
    return Shown(
        title="Genes most improved and most worsened",
        columns=("gene", "rows", "log loss base", "log loss meta", "AP meta - base", "errors fixed", "introduced"),
        kinds=("text", "count", "small", "small", "signed", "count", "count"),
        rows=tuple(rows),
        note=f"By {what}: {best.height} most improved, then {worst.height} most worsened. AP: mean over the classes.",
    )


def _decision_table(found: dict[str, dict[str, float]]) -> Shown:
    keys = ("rows", "base_right", "meta_right", "fixed", "introduced", "fixed_weight", "introduced_weight")
    rows: list[tuple[Cell, ...]] = [(name, *(d[k] for k in keys)) for name, d in found.items()]
    rows.append(("all", *(sum(d[k] for d in found.values()) for k in keys)))
    return Shown(
        title="Decisions of base and meta-model, by true class",
        columns=("true class", "rows", "base right", "meta right", "fixed", "introduced", "fixed, weighted",
                 "introduced, weighted"),
        kinds=("text", *("count",) * 5, "small", "small"),
        rows=tuple(rows),
        note="Decision: the most probable class. Fixed: the base is wrong and the meta-model right; introduced: the "
        "reverse. Weighted: positions that these rows stand for.",
    )  # fmt: skip


def _gain_picture(known: pl.DataFrame, measure: str, what: str) -> Picture:
    table = known.select("gene_id", pl.col(measure).alias("gain")).sort("gain", "gene_id")
    table = table.with_row_index("rank", offset=1)
    figure, axes = new_axes()
    for label, marker, colour, part in (
        ("meta-model better", "o", META, table.filter(pl.col("gain") > 0)),
        ("meta-model worse or equal", "x", BASE, table.filter(pl.col("gain") <= 0)),
    ):
        axes.plot(part["rank"], part["gain"], marker, color=colour, markersize=4, label=f"{label}: {part.height:,}")
    axes.axhline(0, color=GREY, linewidth=0.8)
    unit = "log loss, base - meta (nats per position)" if measure == "log_loss_gain" else "AP, meta - base"
    axes.set(xlabel="genes, sorted", ylabel=unit, title=f"{table.height:,} genes")
    axes.legend(frameon=False, fontsize="small")
    return Picture("genes-gain", f"Difference in {what} per gene, sorted; n = {table.height:,} genes.", figure, table)


def _ap_picture(both: pl.DataFrame, name: str, stem: str) -> Picture:
    table = both.select(
        "gene_id", pl.col(f"{name}_ap_base").alias("base_ap"), pl.col(f"{name}_ap_meta").alias("meta_ap")
    )
    figure, axes = new_axes(4.4, 4.2)
    axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8)
    for marker, colour, part in (
        ("o", META, table.filter(pl.col("meta_ap") >= pl.col("base_ap"))),
        ("x", BASE, table.filter(pl.col("meta_ap") < pl.col("base_ap"))),
    ):
        label = f"{'better or equal' if marker == 'o' else 'worse'}: {part.height:,}"
        axes.plot(part["base_ap"], part["meta_ap"], marker, color=colour, markersize=4, alpha=0.7, label=label)
    axes.set(
        xlabel="AP of the base in a gene", ylabel="AP of the meta-model", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02),
        title=f"{name}: {table.height:,} genes",
    )  # fmt: skip
    axes.legend(frameon=False, fontsize="small", loc="lower right")
    caption = (
        f"{name}: average precision of each gene's rows, weighted; n = {table.height:,} genes that have the class."
    )
    return Picture(f"genes-ap-{stem}", caption, figure, table)
