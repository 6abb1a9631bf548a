"""The table of genes: base and meta-model side by side in each."""

from __future__ import annotations

import numpy as np
import polars as pl

from metabatch.analysis.scored import ScoredRows
from metabatch.metrics.bootstrap import Ranking
from metabatch.metrics.classification import top_k

_LEAST = 1e-7


def per_gene(rows: ScoredRows, classes: tuple[str, ...]) -> pl.DataFrame:
    """Per gene: rows, rows per class, log loss, decisions changed by the meta-model, AP and top-k accuracy per class.

    Losses, AP and top-k are weighted; errors_fixed and errors_introduced count rows (of the most probable class), and
    with `_weight` the positions these stand for. log_loss_gain is base minus meta, ap_gain the mean over classes of
    meta minus base: above 0 the meta-model is better. Null: undefined in this gene (AP, top-k: all rows or none have
    the class), or not comparable (a base score is missing; for the loss, base scores that are no probabilities).
    """
    code = rows.gene.astype(np.int64)
    frame = pl.DataFrame({"code": code, "label": rows.label, "weight": rows.weight}).with_columns(
        meta_loss=loss(rows.meta, rows.label), base_loss=_base_loss(rows), **changed(rows)
    )
    total = pl.col("weight").sum()
    frame = frame.group_by("code").agg(
        pl.len().alias("rows"),
        *((pl.col("label") == i).sum().alias(f"n_{c}") for i, c in enumerate(classes)),
        *(((pl.col(f"{m}_loss") * pl.col("weight")).sum() / total).alias(f"{m}_log_loss") for m in ("meta", "base")),
        *(pl.col(e).sum().alias(f"errors_{e}") for e in ("fixed", "introduced")),
        *((pl.col(e) * pl.col("weight")).sum().alias(f"errors_{e}_weight") for e in ("fixed", "introduced")),
    )
    if not comparable(rows):
        frame = frame.with_columns(pl.lit(None, pl.Int64).alias(f"errors_{e}") for e in ("fixed", "introduced"))
        frame = frame.with_columns(
            pl.lit(None, pl.Float64).alias(f"errors_{e}_weight") for e in ("fixed", "introduced")
        )
    names = pl.DataFrame({"code": np.arange(len(rows.gene_names)), "gene_id": rows.gene_names})
    frame = names.join(frame, on="code", maintain_order="left").drop("code").fill_nan(None)
    frame = frame.hstack(_rankings(rows, classes))
    gains = [pl.col(f"{c}_ap_meta") - pl.col(f"{c}_ap_base") for c in classes]
    frame = frame.with_columns(
        log_loss_gain=pl.col("base_log_loss") - pl.col("meta_log_loss"), ap_gain=pl.mean_horizontal(gains)
    )
    return frame.sort("gene_id")


def loss(proba: np.ndarray, label: np.ndarray) -> np.ndarray:
    truth = np.take_along_axis(proba, label[:, None].astype(np.int64), axis=1)[:, 0].astype(np.float64)
    return -np.log(np.clip(truth, _LEAST, 1))


def _base_loss(rows: ScoredRows) -> np.ndarray:
    """Log loss of the base scores, NaN where they are incomplete or no probabilities."""
    if not comparable(rows) or rows.base.min() < 0 or rows.base.max() > 1:
        return np.full(len(rows), np.nan)
    return loss(rows.base, rows.label)


def comparable(rows: ScoredRows) -> bool:
    """Whether the base decides in every row: all classes have a score there."""
    return not bool(np.isnan(rows.base).any())


def changed(rows: ScoredRows) -> dict[str, np.ndarray]:
    """Rows that the meta-model decides rightly and the base wrongly, and the reverse."""
    base = rows.base.argmax(axis=1) == rows.label
    meta = rows.meta.argmax(axis=1) == rows.label
    return {"fixed": meta & ~base, "introduced": base & ~meta}


def _rankings(rows: ScoredRows, classes: tuple[str, ...]) -> pl.DataFrame:
    """{class}_ap_base, {class}_ap_meta, {class}_top_k_base, {class}_top_k_meta; one row a gene, in order of codes."""
    order = np.argsort(rows.gene, kind="stable")
    ends = np.cumsum(np.bincount(rows.gene, minlength=len(rows.gene_names)))
    label, weight = rows.label[order], rows.weight[order]
    columns: dict[str, pl.Series] = {}
    for code, name in enumerate(classes):
        for model, scores in (("base", rows.base), ("meta", rows.meta)):
            ap, top = np.full(len(ends), np.nan), np.full(len(ends), np.nan)
            score = scores[order, code]
            if not np.isnan(score).any():
                for gene, end in enumerate(ends):
                    part = slice(ends[gene - 1] if gene else 0, end)
                    w, positive = weight[part], label[part] == code
                    if (w * positive).sum() > 0 and (w * ~positive).sum() > 0:
                        ap[gene] = Ranking.of(score[part], positive).average_precision(w)
                        top[gene] = top_k(score[part], positive, w)
            columns[f"{name}_ap_{model}"] = pl.Series(ap, nan_to_null=True)
            columns[f"{name}_top_k_{model}"] = pl.Series(top, nan_to_null=True)
    return pl.DataFrame(columns)
