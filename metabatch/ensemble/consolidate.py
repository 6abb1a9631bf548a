"""`consolidate`: check every instance, then make the one bundle out of them."""

from __future__ import annotations

import logging
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path

import msgspec
import polars as pl
import xgboost as xgb

from metabatch import __version__
from metabatch.analysis.scored import best_thresholds, load_out_of_fold
from metabatch.ensemble.bundle import BUNDLE_FILE, member_folder
from metabatch.ensemble.combination import learn_combination, save_combination
from metabatch.ensemble.combining import equal
from metabatch.ensemble.estimator import MetaModel
from metabatch.ensemble.instances import only_instances, usable_instances
from metabatch.errors import InputError
from metabatch.models.member import load_member
from metabatch.options import COMBINATIONS, CombineOption
from metabatch.resources.limits import cpu_count
from metabatch.resources.usage import ResourceUsage
from metabatch.rundir.bundle import Bundle, BundleMember, Combination
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lease import tidy
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.made_from import COMBINE, instance_markers
from metabatch.rundir.manifests import Done, Lowered, Plan, load, save
from metabatch.rundir.markers import MARKER, check_stage, finish_stage, is_marked
from metabatch.rundir.publish import attempt_folder
from metabatch.rundir.tables import read_features, write_table

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ConsolidateResult:
    """genes : that any member trained on. missing : planned instances that are not in the ensemble."""

    members: int
    genes: int
    combination: Combination
    missing: tuple[int, ...]
    already: bool


def consolidate(
    run: RunDir, *, combine: CombineOption | None = None, allow_missing: bool = False, force: bool = False
) -> ConsolidateResult:
    """Validate all instances and write ensemble/.

    Parameters
    ----------
    combine : str, optional
        How the members are combined. None: as it was asked for when the ensemble in the run was made, else by the plan.
    allow_missing : bool
        Make the ensemble of the instances that can be used, and say so in it.

    Raises
    ------
    InputError
        Listing every instance that is missing, failed, altered, or trained on other genes than planned; with
        `allow_missing` when none can be used.
    """
    planned = open_plan(run)
    dones = usable_instances(run, planned, allow_missing=allow_missing)
    plan = only_instances(run, planned, dones)
    missing = tuple(p.index for p in planned.instances if p.index not in dones)
    asked = combine or _asked_before(run, plan) or plan.options.combine
    if combine is None and asked != plan.options.combine:
        log.info("combined by %s as for the ensemble that is there: --combine says otherwise", asked)
    inputs = instance_markers(run, dones) | {COMBINE: asked}
    if not force and _is_current(run, plan, inputs):
        tidy(run.ensemble)
        return ConsolidateResult(len(dones), _trained(run), _rule(run), missing, already=True)
    with hold_folder(run.ensemble), attempt_folder(run.ensemble) as folder:
        for index in dones:
            _copy(run.instance(index).root / "model", member_folder(folder, index))
        members = [load_member(member_folder(folder, i), cpu_count()) for i in dones]
        bundle = _bundle(run, plan, missing)
        found = learn_combination(run, plan, MetaModel(bundle, members), asked)
        thresholds = _out_of_fold_thresholds(run, plan) if found.thresholds is None else found.thresholds
        bundle = msgspec.structs.replace(bundle, combination=found.learned.rule, thresholds=thresholds)
        save(folder / BUNDLE_FILE, bundle)
        save_combination(folder, found)
        ledger = pl.concat(
            pl.DataFrame({"gene_id": list(d.ledger or ()), "instance": i}).cast({"instance": pl.Int32})
            for i, d in dones.items()
        )
        write_table(folder / "ledger.parquet", ledger.sort("gene_id", "instance"))
        model = MetaModel(bundle, members)
        model.set_threads(1)
        # For tools that expect a pickle; unpickling runs code, so only from people you trust (docs).
        (folder / "model.pkl").write_bytes(pickle.dumps(model, protocol=5))
        genes = ledger["gene_id"].n_unique()
        finish_stage(folder, run.ensemble, stage="consolidate", fingerprint=plan.fingerprint, inputs=inputs)
    return ConsolidateResult(len(dones), genes, bundle.combination, missing, already=False)


def _copy(source: Path, target: Path) -> None:
    """All files below `source`; unlike shutil.copytree's, an error says what was wrong (a full disk, say)."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def _bundle(run: RunDir, plan: Plan, missing: tuple[int, ...]) -> Bundle:
    return Bundle(
        metabatch_version=__version__,
        xgboost_version=xgb.__version__,
        fingerprint=plan.fingerprint,
        strategy=plan.strategy if plan.teacher is None else "distilled",
        combination=equal(len(plan.instances)),
        columns=plan.columns,
        features=read_features(run).features,
        members=tuple(BundleMember(index=p.index, genes=p.genes, rows=p.rows) for p in plan.instances),
        missing=missing,
        lowered=(*plan.lowered, *_in_parts(run, plan)),
        recipe=plan.recipe,
    )


def _out_of_fold_thresholds(run: RunDir, plan: Plan) -> dict[str, float]:
    """Per class, the threshold of the best F1 on the instances' out-of-fold rows; none without cross-validation."""
    if not plan.options.n_folds:
        return {}
    rows = load_out_of_fold(run, plan, only_scores=True)
    return {name: t for name, t in best_thresholds(rows, plan.columns.classes).items() if t is not None}


def _in_parts(run: RunDir, plan: Plan) -> list[Lowered]:
    """Instances for which memory did not suffice to train their genes together."""
    found = []
    for planned in plan.instances:
        usage = msgspec.json.decode(
            (run.instance(planned.index).root / "resource_usage.json").read_bytes(), type=ResourceUsage
        )
        if usage.parts > 1:
            because = f"{usage.limit_bytes / 2**30:.2f} GB were too little to train them together"
            option = f"parts in which the genes of instance {planned.index} were trained"
            found.append(Lowered(option=option, default=1, value=usage.parts, because=because))
    return found


def _asked_before(run: RunDir, plan: Plan) -> CombineOption | None:
    """The rule that was asked for when the ensemble in the run was made; None without one of this plan."""
    if not is_marked(run.ensemble):
        return None
    try:
        done = load(run.ensemble / MARKER, Done)
    except InputError:
        return None
    asked = done.inputs.get(COMBINE)
    known: tuple[CombineOption, ...] = ("auto", *COMBINATIONS)
    return next((rule for rule in known if rule == asked), None) if done.fingerprint == plan.fingerprint else None


def _is_current(run: RunDir, plan: Plan, inputs: dict[str, str]) -> bool:
    if not is_marked(run.ensemble):
        return False
    try:
        return check_stage(run.ensemble, stage="consolidate", fingerprint=plan.fingerprint).inputs == inputs
    except InputError:
        return False


def _rule(run: RunDir) -> Combination:
    return load(run.ensemble / BUNDLE_FILE, Bundle).combination


def _trained(run: RunDir) -> int:
    return int(pl.read_parquet(run.ensemble / "ledger.parquet")["gene_id"].n_unique())
