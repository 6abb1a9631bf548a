"""Analyses of a whole run: of the scored rows, and what its instances found of their models, put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from metabatch.analysis.curves import curves
from metabatch.analysis.frame import Found, ImpossibleError, Sections, save_sections, study
from metabatch.analysis.genes import compare_genes
from metabatch.analysis.importance import importance_found, merge_groups, merge_importance
from metabatch.analysis.neighbourhoods import neighbourhoods
from metabatch.analysis.scored import ScoredRows
from metabatch.analysis.shap_sums import merge_shap
from metabatch.analysis.shap_words import shap_sentences, shap_shown
from metabatch.ensemble.bundle import BUNDLE_FILE
from metabatch.options import ANALYSES
from metabatch.rundir.bundle import Bundle, Combination
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan, load


def explain_run(run: RunDir, plan: Plan, rows: ScoredRows, folder: Path, how: str) -> Sections:
    """The analyses that the plan asks for, as far as they concern the run as a whole; writes analysis.json.

    Parameters
    ----------
    rows : ScoredRows
        What `evaluate` scored.
    how : str
        How, in words.
    """
    options, classes = plan.options, plan.columns.classes
    on = f"{rows.described()}: {how}"
    studies: dict[str, tuple[str, Callable[[], Found]]] = {
        "curves": ("Curves", lambda: curves(rows, classes, on=on, reliable=True)),
        "genes": ("Gene by gene", lambda: compare_genes(rows, classes, seed=options.seed)),
        "neighbourhoods": (
            "Neighbourhoods of true sites",
            lambda: neighbourhoods(
                rows, classes, sample=options.neigh_sample, window=options.neigh_window, seed=options.seed
            ),
        ),
    }
    if len(plan.instances) > 1:  # of a single one they stand in its own part of the report
        studies["importance"] = ("Feature importance, all members", lambda: _importance(run, plan))
        studies["shap"] = ("SHAP, all members", lambda: _shap(run, plan))
    made = [
        study(name, *studies[name], folder)
        for name in ANALYSES
        if name in studies and name in options.analyses
    ]  # fmt: skip
    sections = Sections(analyses=tuple(made), off=tuple(n for n in studies if n not in options.analyses))
    save_sections(folder / "analysis.json", sections)
    return sections


def _tables(run: RunDir, plan: Plan, name: str) -> list[tuple[float, pl.DataFrame]]:
    """The tables of the members that count, each with the rows it speaks for x its weight in the combination."""
    found = []
    for planned, weight in zip(plan.instances, _rule(run).weights, strict=True):
        if not weight:
            continue
        file = run.instance(planned.index).root / f"{name}.parquet"
        if not file.is_file():
            raise ImpossibleError(f"instance {planned.index} has no {name}.parquet: see its own part of the report")
        found.append((planned.rows * weight, pl.read_parquet(file)))
    return found


def _rule(run: RunDir) -> Combination:
    return load(run.ensemble / BUNDLE_FILE, Bundle).combination


def _on(run: RunDir, what: str) -> str:
    rule = _rule(run)
    asked = np.array(rule.weights) > 0
    text = f"{what} of the {asked.sum()} members that are asked, weighted by their rows"
    if rule.coefficients:
        return f"{text}: of the members, not of what {rule.method} makes of them"
    return text if len(set(np.array(rule.weights)[asked])) == 1 else f"{text} and their weights in the combination"


def _importance(run: RunDir, plan: Plan) -> Found:
    table = merge_importance(_tables(run, plan, "importance"))
    groups = merge_groups(_tables(run, plan, "importance_groups"))
    return importance_found(table, groups, _on(run, "the importances"))


def _shap(run: RunDir, plan: Plan) -> Found:
    table = merge_shap(_tables(run, plan, "shap"))
    classes = plan.columns.classes
    return Found(
        on=_on(run, "the SHAP values"), says=shap_sentences(table, classes), shown=shap_shown(table, classes),
        tables={"shap": table},
    )  # fmt: skip
