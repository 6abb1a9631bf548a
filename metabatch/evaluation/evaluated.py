"""A finished run as another one meets it: its evaluation checked, what it is, and what it cost."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote
from typing import Any

import msgspec
import polars as pl
import xgboost as xgb

from metabatch.ensemble.bundle import BUNDLE_FILE
from metabatch.ensemble.instances import consolidated_plan
from metabatch.errors import InputError
from metabatch.evaluation.evaluate import read_metrics
from metabatch.resources.usage import ResourceUsage
from metabatch.rundir.bundle import Bundle
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Done, Plan, load
from metabatch.rundir.markers import MARKER, check_stage
from metabatch.rundir.publish import sha256_file

# How the base model is called among the runs.
BASE = "base model"


@dataclass(frozen=True)
class Evaluated:
    """A run whose evaluation is of the models that lie in it.

    name : of its folder, unlike those of the runs it is compared with.
    marker : sha256 of evaluation/done.json. model_bytes : of the bundle's members on disk.
    usages : of its instances.
    """

    name: str
    run: RunDir
    plan: Plan
    bundle: Bundle
    metrics: dict[str, Any]
    marker: str
    model_bytes: int
    usages: tuple[ResourceUsage, ...]

    @property
    def predictions(self) -> Path:
        return self.run.evaluation / "predictions.parquet"

    @property
    def is_exact(self) -> bool:
        """One model of all training genes together, trained on their labels."""
        together = self.plan.strategy in ("single", "external", "distributed") and all(
            u.parts == 1 for u in self.usages
        )
        return together and self.plan.teacher is None

    @property
    def scoring(self) -> str:
        """How its rows were scored, without the numbers of genes."""
        return str(self.metrics["how"]).partition(" (")[0].partition(";")[0]


def open_evaluated(runs: Sequence[RunDir]) -> list[Evaluated]:
    """Check every run and read what is compared; nothing is written.

    Raises
    ------
    InputError
        Naming the run that is not evaluated, or whose files are not those of its evaluation, and what to type.
    """
    return [_open(run, name) for run, name in zip(runs, _names(runs), strict=True)]


def _open(run: RunDir, name: str) -> Evaluated:
    plan = open_plan(run)
    place = quote(str(run.root))
    evaluate = f"bin/evaluate {place}"
    evaluation = _stage(run.evaluation, "evaluate", plan, f"{run.root} is not evaluated", evaluate)
    problem = f"the ensemble of {run.root} cannot be used"
    ensemble = _stage(run.ensemble, "consolidate", plan, problem, f"bin/consolidate {place}, then {evaluate}")
    if evaluation.inputs.get("ensemble") != sha256_file(run.ensemble / MARKER):
        raise InputError(
            f"{run.root} was evaluated with another ensemble than the one in it",
            where=str(run.evaluation),
            next_step=evaluate,
        )
    plan = consolidated_plan(run, plan, ensemble.inputs)  # the instances' accounts are read
    return Evaluated(
        name=name, run=run, plan=plan, bundle=load(run.ensemble / BUNDLE_FILE, Bundle), metrics=read_metrics(run),
        marker=sha256_file(run.evaluation / MARKER),
        model_bytes=sum(r.bytes for file, r in ensemble.files.items() if file.startswith("members/")),
        usages=tuple(_usage(run.instance(p.index).root) for p in plan.instances),
    )  # fmt: skip


def _stage(folder: Path, stage: str, plan: Plan, problem: str, next_step: str) -> Done:
    try:
        return check_stage(folder, stage=stage, fingerprint=plan.fingerprint)
    except InputError as error:
        raise InputError(f"{problem}: {error.found}", where=str(folder), next_step=next_step) from None


def _usage(folder: Path) -> ResourceUsage:
    return msgspec.json.decode((folder / "resource_usage.json").read_bytes(), type=ResourceUsage)


def _names(runs: Sequence[RunDir]) -> list[str]:
    """The folders' names; where one comes again it gets a number."""
    names = [BASE]
    for run in runs:
        stem = run.root.resolve().name
        name, number = stem, 1
        while name in names:
            number += 1
            name = f"{stem} ({number})"
        names.append(name)
    return names[1:]


def check_comparable(run: RunDir, plan: Plan, other: RunDir, theirs: Plan) -> None:
    """The same data, and the same truth about it.

    Raises
    ------
    InputError
        Saying what differs.
    """
    known, given = ({s.sha256: s.name for s in p.dataset.shards} for p in (plan, theirs))
    if known.keys() != given.keys():
        alone = [
            f"only in {r.root}: {_some(sorted(mine[k] for k in mine.keys() - others.keys()))}"
            for r, mine, others in ((run, known, given), (other, given, known))
            if mine.keys() - others.keys()
        ]
        raise InputError(
            f"{other.root} is of another data set than {run.root}: {'; '.join(alone)}",
            expected="runs of the same data set (shards of the same content, whatever their names)",
            where=f"{plan.dataset.path} and {theirs.dataset.path}",
            next_step="plan, train and evaluate both on the same data set",
        )
    a, b = plan.columns, theirs.columns
    roles = (
        ("--group-column", a.group, b.group),
        ("--label-column", a.label, b.label),
        ("--weight-column", a.weight, b.weight),
        ("--classes", ",".join(sorted(a.classes)), ",".join(sorted(b.classes))),
    )
    differing = [f"{role} {ours or 'none'} and {its or 'none'}" for role, ours, its in roles if ours != its]
    if differing:
        raise InputError(
            f"{run.root} and {other.root} differ in {'; '.join(differing)}",
            expected="runs with the same genes, labels, classes and weights of the rows",
            next_step="plan a run with the same columns and classes",
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def cost(of: Evaluated) -> dict[str, Any]:
    """What a run took to train and takes to predict; bytes and seconds.

    training_seconds, training_cpu_seconds : of all instances, without their analyses. peak_bytes : the highest of one
    instance, as measured_peak_bytes of its resource_usage.json; peak_anonymous_bytes : the same without mapped files,
    counted alike for every strategy. trees : in all boosters of the bundle. score_rows_per_second : of `evaluate`'s
    models; None where only out-of-fold scores were read.
    """
    phases = [p for u in of.usages for p in u.phases if p.name != "analysis"]
    plan = of.plan
    trained = pl.read_parquet(of.run.ensemble / "ledger.parquet")["gene_id"].n_unique()
    return {
        "members": len(of.bundle.members),
        "parts": max(u.parts for u in of.usages),
        "trained_genes": trained,
        "training_seconds": round(sum(p.seconds for p in phases), 3),
        "training_cpu_seconds": round(sum(p.cpu_seconds for p in phases), 3),
        "threads": max(u.threads for u in of.usages),
        "peak_bytes": max(u.measured_peak_bytes for u in of.usages),
        "peak_anonymous_bytes": max(u.peak_anonymous_bytes for u in of.usages),
        "mem_request_mb": max(p.mem_request_mb for p in plan.instances),
        "trees": sum(
            xgb.Booster(model_file=f).num_boosted_rounds() for f in sorted((of.run.ensemble / "members").rglob("*.ubj"))
        ),
        "model_bytes": of.model_bytes,
        "score_rows_per_second": _rows_per_second(_usage(of.run.evaluation)),
    }


def _rows_per_second(usage: ResourceUsage) -> float | None:
    scoring = next((p for p in usage.phases if p.name == "score"), None)
    if scoring is None or not scoring.rows_asked or not scoring.seconds:
        return None
    return round(scoring.rows_asked / scoring.seconds, 1)
