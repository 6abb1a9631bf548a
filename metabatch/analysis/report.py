"""report.html of an instance, and what it shares with that of the run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from metabatch import __version__
from metabatch.analysis.answer import answer_lines, helps
from metabatch.analysis.frame import Sections
from metabatch.analysis.page import picture_url, render_page
from metabatch.rundir.manifests import Lowered, Plan


def instance_report(
    folder: Path, plan: Plan, index: int, sections: Sections, comparison: dict[str, Any] | None, scope: str,
    facts: Sequence[tuple[str, str]] = (),
) -> str:  # fmt: skip
    """The HTML of an instance's report.

    Parameters
    ----------
    folder : Path
        Where its figures lie.
    comparison : dict, optional
        Base and meta-model side by side (see `metabatch.analysis.comparison.compare`); None without out-of-fold rows.
    scope : str
        Which rows that was made on.
    facts : sequence of (str, str)
        More of how it was made.
    """
    return render_page(
        "instance.html.j2",
        "metabatch.analysis",
        index=index,
        answer=answer_lines(comparison) if comparison else ["Not judged: there are no out-of-fold scores."],
        helps=comparison is not None and helps(comparison),
        scope=scope,
        sections=sections.analyses,
        off=sections.off,
        url=lambda name: picture_url(folder, name),
        facts=[*plan_facts(plan, plan.lowered), *facts],
        version=__version__,
        fingerprint=plan.fingerprint[:12],
    )


def plan_facts(plan: Plan, changed: Sequence[Lowered]) -> list[tuple[str, str]]:
    """How a run was made: what and why, in words."""
    o = plan.options
    lowered = "; ".join(x.text() for x in changed)
    if plan.strategy == "incremental":
        models = [
            ("linear models", f"{o.model_spec}, up to {o.epochs} epochs, batches of {o.batch_size:,} rows, L2 penalty "
                              f"{o.alpha:g}, {f'wide k-mers hashed into {o.hash_kmers}, ' if o.hash_kmers else ''}"
                              f"{o.n_folds} folds, calibration {o.calibration}"),
            ("weights", plan.columns.weight or "none"),
        ]  # fmt: skip
    else:
        models = [
            ("boosters", f"up to {o.n_estimators} trees, learning rate {o.learning_rate:g}, depth {o.max_depth}, "
                         f"subsample {o.subsample:g}, columns {o.colsample_bytree:g}, {o.max_bin} bins, {o.n_folds} "
                         f"folds, early stopping after {o.early_stopping_patience} rounds, calibration "
                         f"{o.calibration}"),
            ("weights", f"{plan.columns.weight or 'none'}: base_score {plan.booster.base_score:g}, min_child_weight "
                        f"{plan.booster.min_child_weight:g} ({plan.booster.because})"),
        ]  # fmt: skip
    taught = [] if plan.teacher is None else [("distilled from", plan.teacher.text())]
    return [
        *taught,
        ("data set", f"{plan.dataset.path}: {plan.dataset.genes:,} genes, {plan.dataset.positions:,} rows, "
                     f"{plan.dataset.features:,} features"),
        ("strategy", f"{plan.strategy} ({plan.why}), {len(plan.instances)} instance(s), coverage {plan.coverage:.0%} "
                     "of the training genes"),
        ("holdout", f"{plan.holdout.genes:,} genes, {plan.holdout.rows:,} rows: {plan.holdout.how}"),
        ("splits keep together", plan.columns.split or plan.columns.group),
        *models,
        ("quality settings changed", lowered or "none"),
        ("budget", f"{plan.budget.bytes / 2**30:.2f} GB per instance ({plan.budget.source})"),
        ("seed", str(plan.seed)),
    ]  # fmt: skip
