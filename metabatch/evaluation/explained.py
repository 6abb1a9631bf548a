"""Analyses of a whole run: of the scored rows, and what its instances found of their models, put together."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import polars as pl

from metabatch.analysis.curves import curves
from metabatch.analysis.frame import Found, ImpossibleError, Sections, save_sections, study
from metabatch.analysis.genes import compare_genes
from metabatch.analysis.importance import importance_found, merge_groups, merge_importance
from metabatch.analysis.neighbourhoods import neighbourhoods
from metabatch.analysis.scored import ScoredRows
from metabatch.analysis.shap_sums import merge_shap
from metabatch.analysis.shap_words import shap_sentences, shap_shown
from metabatch.options import ANALYSES
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan


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
    """The instances' tables of an analysis, each with the rows it speaks for."""
    found = []
    for planned in plan.instances:
        file = run.instance(planned.index).root / f"{name}.parquet"
        if not file.is_file():
            raise ImpossibleError(f"instance {planned.index} has no {name}.parquet: see its own part of the report")
        found.append((float(planned.rows), pl.read_parquet(file)))
    return found


def _on(plan: Plan, what: str) -> str:
    return f"{what} of the {len(plan.instances)} members, weighted by their rows"


def _importance(run: RunDir, plan: Plan) -> Found:
    table = merge_importance(_tables(run, plan, "importance"))
    groups = merge_groups(_tables(run, plan, "importance_groups"))
    return importance_found(table, groups, _on(plan, "the importances"))


def _shap(run: RunDir, plan: Plan) -> Found:
    table = merge_shap(_tables(run, plan, "shap"))
    classes = plan.columns.classes
    return Found(
        on=_on(plan, "the SHAP values"), says=shap_sentences(table, classes), shown=shap_shown(table, classes),
        tables={"shap": table},
    )  # fmt: skip
