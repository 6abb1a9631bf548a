"""The analyses of an instance: each made if asked for, written, and put into its analysis.json and report.html."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from metabatch.analysis.ablation import ablation
from metabatch.analysis.bounds import COMPARED_ROWS, JUDGED_ROWS, PERMUTED_ROWS
from metabatch.analysis.calibration import calibration
from metabatch.analysis.comparison import compare
from metabatch.analysis.curves import curves
from metabatch.analysis.frame import Found, ImpossibleError, Section, Sections, save_sections, study
from metabatch.analysis.genes import compare_genes
from metabatch.analysis.importance import importance
from metabatch.analysis.leakage_found import leakage_found
from metabatch.analysis.neighbourhoods import neighbourhoods
from metabatch.analysis.overfitting import overfitting
from metabatch.analysis.report import instance_report
from metabatch.analysis.sampling import draw_units
from metabatch.analysis.shap_sums import explain as explain_margins
from metabatch.analysis.thresholds import scan_thresholds
from metabatch.options import ANALYSES
from metabatch.resources.progress import Progress
from metabatch.resources.usage import trim_memory
from metabatch.rundir.publish import write_bytes
from metabatch.rundir.tables import read_leakage
from metabatch.training.material import Material
from metabatch.training.sizes import size_line

log = logging.getLogger(__name__)
# For the interval of the answer: hundreds of thousands of rows are ranked anew for each.
_ANSWER_RESAMPLES = 200


def explain(material: Material, progress: Path) -> Sections:
    """Make the analyses that the plan asks for; write analysis.json, report.html and their tables and figures.

    Parameters
    ----------
    progress : Path
        Told how far they are.
    """
    asked = [name for name in ANALYSES if name in material.plan.options.analyses]
    # SHAP before importance, which takes it in; the report has its own order.
    order = sorted(asked, key=lambda name: (name == "importance", ANALYSES.index(name)))
    made: dict[str, Section] = {}
    with Progress("analysis", len(order), "analyses", progress) as bar:
        for name in order:
            title, make = _STUDIES[name]
            made[name] = study(name, title, lambda make=make: make(material), material.folder)  # type: ignore[misc]
            log.info("analysis %s: %s in %.1f s", name, made[name].status, made[name].seconds)
            trim_memory()
            bar.advance()
            material.stop.check()
    sections = Sections(
        analyses=tuple(made[name] for name in asked), off=tuple(name for name in ANALYSES if name not in asked)
    )
    save_sections(material.folder / "analysis.json", sections)
    sizes = material.metrics.get("sizes")
    facts = [("size of the student", size_line(sizes))] if isinstance(sizes, dict) and sizes else []  # not of parts
    html = instance_report(
        material.folder, material.plan, material.index, sections, *_comparison(material), facts=facts
    )
    write_bytes(material.folder / "report.html", html.encode())
    return sections


def _comparison(material: Material) -> tuple[dict[str, object] | None, str]:
    try:
        rows = material.scored
    except ImpossibleError as reason:
        return None, f"{reason}."
    return compare(rows, material.plan, {}, resamples=_ANSWER_RESAMPLES), f"{_out_of_fold(material)}."


def _out_of_fold(material: Material) -> str:
    return f"{material.scored.described()}, each scored by fold models that did not see its gene (out of fold)"


def _leakage(material: Material) -> Found:
    left_out = material.plan.options.auto_exclude_leaky
    return leakage_found(read_leakage(material.run), material.classes, left_out=left_out)


def _curves(material: Material) -> Found:
    return curves(material.scored, material.classes, on=_out_of_fold(material))


def _overfitting(material: Material) -> Found:
    if not material.plan.options.n_folds:
        raise ImpossibleError("there is no cross-validation (--n-folds 0)")
    options, metrics = material.plan.options, material.metrics
    if "trees" not in metrics:
        raise ImpossibleError("it judges trees; the losses of linear models by epoch stand in metrics.json (curve)")
    folds = {name: metrics["classes"][name]["folds"] for name in metrics["classes"]}
    return overfitting(
        folds, limit=options.n_estimators, patience=options.early_stopping_patience, trees=metrics["trees"],
        on=f"{metrics['rows']:,} rows of {metrics['genes']:,} genes: each fold's model on the rows it was trained on, "
        "and on those held out",
    )  # fmt: skip


def _calibration(material: Material) -> Found:
    options = material.plan.options
    return calibration(
        material.scored, material.classes, method=options.calibration, seed=options.seed, prior=options.prior or None
    )


def _thresholds(material: Material) -> Found:
    return scan_thresholds(material.scored, material.classes, seed=material.plan.seed)


def _genes(material: Material) -> Found:
    return compare_genes(material.scored, material.classes, seed=material.plan.seed)


def _neighbourhoods(material: Material) -> Found:
    options = material.plan.options
    return neighbourhoods(
        material.scored, material.classes, sample=options.neigh_sample, window=options.neigh_window, seed=options.seed
    )


def _shap(material: Material) -> Found:
    most = material.plan.options.diagnostic_rows
    rows = min(most, len(material.rows))
    return explain_margins(
        material.boosters, material.draw(most), material.features.features, material.prepare.matrix_names,
        material.classes,
        on=f"the final models{material.part_note} and {rows:,} of the {len(material.rows):,} rows they were trained "
        "on: it says what the models use, not how well they do",
        seed=material.plan.seed, threads=material.threads, check=material.stop.check,
    )  # fmt: skip


def _importance(material: Material) -> Found:
    boosters, seed, shap = material.boosters, material.plan.seed, material.folder / "shap.parquet"
    held_out, rows = material.held_out(PERMUTED_ROWS), material.drawn(COMPARED_ROWS)
    return importance(
        boosters, held_out, rows,
        pl.read_parquet(shap, columns=["class", "feature", "mean_abs_shap"]) if shap.exists() else None,
        material.features.features, material.prepare.matrix_names, material.classes,
        on=f"the final models{material.part_note}, those of a held-out fold, and rows without a model",
        seed=seed, threads=material.threads, check=material.stop.check,
    )  # fmt: skip


def _ablation(material: Material) -> Found:
    cv, variants = material.fitted.cv, material.fitted.variants
    if cv is None:
        raise ImpossibleError("there is no held-out fold to compare on (--n-folds 0)")
    if not variants:
        raise ImpossibleError("it is made of short boosters, and the models are linear")
    held_out, rows = np.flatnonzero(cv.fold == cv.kept_fold), material.rows
    _, units = np.unique(material.unit[held_out], return_inverse=True)
    judged = draw_units(np.bincount(units), JUDGED_ROWS, material.plan.seed)[units]
    here = held_out[judged]
    of = f" of {len(held_out):,} (whole genes drawn)" if len(here) < len(held_out) else ""
    return ablation(
        [v if v.scores is None else replace(v, scores=v.scores[judged]) for v in variants],
        rows.label[here], rows.weight[here].astype(np.float64), units[judged], material.classes,
        rounds=variants[0].rounds, seed=material.plan.seed,
        on=f"{len(here):,} rows{of} of held-out fold {cv.kept_fold}{material.part_note}, with short boosters grown on "
        "the other folds",
    )  # fmt: skip


_STUDIES: dict[str, tuple[str, Callable[[Material], Found]]] = {
    "leakage": ("Leakage screen", _leakage),
    "curves": ("Precision, recall, ROC", _curves),
    "overfitting": ("Overfitting", _overfitting),
    "calibration": ("Calibration", _calibration),
    "thresholds": ("Thresholds", _thresholds),
    "genes": ("Gene by gene", _genes),
    "neighbourhoods": ("Neighbourhoods of true sites", _neighbourhoods),
    "importance": ("Feature importance", _importance),
    "shap": ("SHAP", _shap),
    "ablation": ("Ablation", _ablation),
}
