"""`evaluate`: score honestly, compare with the base, write metrics, figures and the report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from metabatch.analysis.comparison import compare
from metabatch.analysis.frame import Sections
from metabatch.analysis.per_gene import per_gene
from metabatch.analysis.scored import load_out_of_fold, load_scored, resampling_units
from metabatch.data.shards import verify_unchanged
from metabatch.ensemble.bundle import load_bundle
from metabatch.ensemble.combination import read_combination
from metabatch.ensemble.instances import consolidated_plan, ensemble_inputs
from metabatch.errors import InputError
from metabatch.evaluation.honest import score
from metabatch.evaluation.report import render
from metabatch.options import ANALYSES
from metabatch.resources.limits import cpu_count, memory_limits
from metabatch.resources.signals import stop_on_signal
from metabatch.resources.usage import Accounts
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lease import tidy
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import Plan, save
from metabatch.rundir.markers import MARKER, check_stage, finish_stage, is_marked
from metabatch.rundir.publish import attempt_folder, sha256_file, write_bytes
from metabatch.rundir.tables import write_table


@dataclass(frozen=True)
class EvaluateResult:
    metrics: dict[str, Any]
    report: Path
    already: bool


def evaluate(run: RunDir, *, threads: int | None = None, force: bool = False) -> EvaluateResult:
    """Evaluate the ensemble of a run.

    Raises
    ------
    InputError
        No valid ensemble, changed data, or nothing was kept back to evaluate on.
    """
    plan = open_plan(run)
    made_from = ensemble_inputs(run, plan)
    inputs = {"ensemble": sha256_file(run.ensemble / MARKER)}
    report = run.evaluation / "report.html"
    if not force and _is_current(run, plan, inputs):
        tidy(run.evaluation)
        return EvaluateResult(read_metrics(run), report, already=True)
    plan = consolidated_plan(run, plan, made_from)  # the instances' out-of-fold scores and accounts are read
    verify_unchanged(plan.dataset)
    model = load_bundle(run.ensemble, threads=threads or cpu_count())
    groups = resampling_units(run, plan)
    accounts = Accounts()
    with stop_on_signal() as stop, hold_folder(run.evaluation), attempt_folder(run.evaluation) as folder:
        with accounts.phase("score") as phase:
            scored = score(run, plan, model, folder, stop)
            phase.rows_read, phase.rows_asked = scored.count.read, scored.count.asked
        with accounts.phase("metrics"):
            rows = load_scored(folder / "predictions.parquet", plan.columns, groups)
            metrics: dict[str, Any] = {
                "format_version": 1, "how": scored.how, "genes": scored.genes, "rows": scored.rows,
                "weighted_by": plan.columns.weight, "teacher": plan.teacher,
                "missing_instances": model.bundle.missing,
            }  # fmt: skip
            # Without a holdout the genes scored are those that chose the thresholds: no honest figure.
            thresholds = model.bundle.thresholds if plan.holdout.genes else None
            metrics |= compare(rows, plan, scored.members, thresholds)
            metrics["out_of_fold"] = _out_of_fold(run, plan) if plan.holdout.genes and plan.options.n_folds else None
            learned = read_combination(run.ensemble)
            metrics["combination"] = {"method": learned.rule.method, "why": learned.rule.note, "judged": learned.judged,
                                      "on": learned.on}  # fmt: skip
            metrics["out_of_instance"] = learned.estimate
            for scratch in scored.members.values():
                scratch.unlink()
        with accounts.phase("report"):
            write_table(folder / "per_gene.parquet", per_gene(rows, plan.columns.classes))
            save(folder / "metrics.json", metrics)
            metrics = msgspec.json.decode((folder / "metrics.json").read_bytes())
            sections = Sections(analyses=(), off=ANALYSES)
            if plan.options.analyses:
                from metabatch.evaluation.explained import explain_run  # its libraries take time and memory

                sections = explain_run(run, plan, rows, folder, scored.how)
            html = render(run, plan, metrics, folder, sections, model.bundle.lowered)
            write_bytes(folder / "report.html", html.encode())
        limit = memory_limits()[0]
        usage = accounts.usage(
            predicted_peak_bytes=None,
            budget_bytes=limit.bytes,
            budget_source=limit.source,
            threads=threads or cpu_count(),
            limit=limit,
        )
        save(folder / "resource_usage.json", usage)
        finish_stage(folder, run.evaluation, stage="evaluate", fingerprint=plan.fingerprint, inputs=inputs)
    return EvaluateResult(metrics, report, already=False)


def read_metrics(run: RunDir) -> dict[str, Any]:
    return dict(msgspec.json.decode((run.evaluation / "metrics.json").read_bytes()))


def _is_current(run: RunDir, plan: Plan, inputs: dict[str, str]) -> bool:
    if not is_marked(run.evaluation):
        return False
    try:
        return check_stage(run.evaluation, stage="evaluate", fingerprint=plan.fingerprint).inputs == inputs
    except InputError:
        return False


def _out_of_fold(run: RunDir, plan: Plan) -> dict[str, Any]:
    """Base and meta on the training genes' out-of-fold rows; whole genes drawn when there are very many."""
    rows = load_out_of_fold(run, plan, only_scores=True)
    found = compare(rows, plan, {})
    drawn = f": {rows.described()}" if len(rows) < rows.of_rows else ""
    return {
        "how": f"training genes, out of fold{drawn}", "genes": len(rows.gene_names), "rows": len(rows),
        **{k: found[k] for k in ("base", "meta", "difference")},
    }  # fmt: skip
