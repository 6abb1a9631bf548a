"""The trained instances that an ensemble is, or is to be, made from."""

from __future__ import annotations

import logging
from collections.abc import Collection
from shlex import quote

import msgspec
import polars as pl

from metabatch.errors import InputError
from metabatch.rundir.layout import RunDir
from metabatch.rundir.made_from import instance_markers, markers_of
from metabatch.rundir.manifests import Done, Lowered, Plan
from metabatch.rundir.markers import check_stage
from metabatch.rundir.tables import instance_genes, read_genes

log = logging.getLogger(__name__)


def usable_instances(run: RunDir, plan: Plan, *, allow_missing: bool = False) -> dict[int, Done]:
    """The markers of all planned instances; with `allow_missing` of those that can be used, with a warning of others.

    Raises
    ------
    InputError
        Listing every instance that is missing, failed, altered, or trained on other genes than planned; with
        `allow_missing` when that is all of them.
    """
    dones: dict[int, Done] = {}
    problems = []
    for planned in plan.instances:
        folder = run.instance(planned.index).root
        try:
            done = check_stage(folder, stage="instance", fingerprint=plan.fingerprint)
        except InputError as error:
            problems.append((planned.index, error.found))
            continue
        wanted = instance_genes(run, planned.index)
        if list(done.ledger or ()) != wanted:
            problems.append((planned.index, f"trained on {len(done.ledger or ())} genes, planned {len(wanted)}"))
            continue
        dones[planned.index] = done
    if problems and not (allow_missing and dones):
        listed = "; ".join(f"instance {i}: {text}" for i, text in problems)
        indices = ",".join(str(i) for i, _ in problems)
        raise InputError(
            f"{len(problems)} of {len(plan.instances)} instances cannot be used: {listed}",
            expected="every planned instance done and unaltered",
            where=str(run.instances),
            next_step=f"train them (again): sbatch --array={indices} jobs/train.sh {quote(str(run.root))}, "
            f"or bin/train-instance {quote(str(run.root))} N for each",
        )
    for index, text in problems:
        log.warning("instance %d is left out: %s", index, text)
    return dones


def only_instances(run: RunDir, plan: Plan, used: Collection[int]) -> Plan:
    """The plan as far as it came: with the `used` instances, the genes they cover, and what is missing said."""
    missing = [p.index for p in plan.instances if p.index not in used]
    if not missing:
        return plan
    training = read_genes(run).filter(pl.col("split") == "train").height
    covered = pl.read_parquet(run.assignments).filter(pl.col("instance").is_in(list(used)))["gene_id"].n_unique()
    named = ", ".join(str(i) for i in missing)
    lowered = Lowered(
        option="instances in the ensemble", default=len(plan.instances), value=len(used),
        because=f"without instance {named} (--allow-missing)",
    )  # fmt: skip
    text = (
        f"made without instance {named} of {len(plan.instances)} (--allow-missing): {training - covered:,} of "
        f"{training:,} training genes were trained on by no member"
    )
    return msgspec.structs.replace(
        plan, instances=tuple(p for p in plan.instances if p.index in used), coverage=covered / training,
        lowered=(*plan.lowered, lowered), warnings=(*plan.warnings, text),
    )  # fmt: skip


def ensemble_inputs(run: RunDir, plan: Plan) -> dict[str, str]:
    """What the finished ensemble of a run was made from; an InputError when there is none, or it was altered."""
    try:
        return check_stage(run.ensemble, stage="consolidate", fingerprint=plan.fingerprint).inputs
    except InputError as error:
        raise InputError(
            f"the ensemble cannot be used: {error.found}",
            where=str(run.ensemble),
            next_step=f"bin/consolidate {quote(str(run.root))}",
        ) from None


def consolidated_plan(run: RunDir, plan: Plan, made_from: dict[str, str]) -> Plan:
    """Check that the ensemble was made from the instances that lie in the run, and give the plan with these.

    Parameters
    ----------
    made_from : dict
        The ensemble's `ensemble_inputs`.

    Raises
    ------
    InputError
        An instance of the ensemble that is missing, altered, or another than it was.
    """
    markers = markers_of(made_from)
    used = [p.index for p in plan.instances if p.index in markers]
    own = only_instances(run, plan, used)
    usable_instances(run, own)
    if markers_of(instance_markers(run, used)) != markers:
        raise InputError(
            "the ensemble was made from other instances than those now in the run",
            where=str(run.ensemble),
            next_step=f"bin/consolidate {quote(str(run.root))}",
        )
    return own
