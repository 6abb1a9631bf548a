"""`consolidate`: check every instance, then make the one bundle out of them."""

from __future__ import annotations

import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import msgspec
import polars as pl
import xgboost as xgb

from metabatch import __version__
from metabatch.analysis.frame import write_table
from metabatch.analysis.scored import best_thresholds, load_out_of_fold
from metabatch.ensemble.bundle import BUNDLE_FILE, member_folder
from metabatch.ensemble.combination import learn_combination, save_combination
from metabatch.ensemble.combining import equal
from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import InputError
from metabatch.models.member import load_member
from metabatch.options import CombineOption
from metabatch.resources.limits import cpu_count
from metabatch.resources.usage import ResourceUsage
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lease import tidy
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import Bundle, BundleMember, Combination, Done, Lowered, Plan, load, save
from metabatch.rundir.markers import MARKER, check_stage, finish_stage, is_marked
from metabatch.rundir.publish import attempt_folder, sha256_file
from metabatch.rundir.tables import instance_genes, read_features

# Among the marker's inputs: what was asked for, beside what it was made from.
_COMBINE = "combine"


@dataclass(frozen=True)
class ConsolidateResult:
    members: int
    genes: int
    combination: Combination
    already: bool


def consolidate(run: RunDir, *, combine: CombineOption | None = None, force: bool = False) -> ConsolidateResult:
    """Validate all instances and write ensemble/.

    Parameters
    ----------
    combine : str, optional
        How the members are combined, instead of what the plan says.

    Raises
    ------
    InputError
        Listing every instance that is missing, failed, altered, or trained on other genes than planned.
    """
    plan = open_plan(run)
    dones = check_instances(run, plan)
    asked = combine or plan.options.combine
    inputs = instance_markers(run, plan) | {_COMBINE: asked}
    if not force and _is_current(run, plan, inputs):
        tidy(run.ensemble)
        return ConsolidateResult(len(dones), _trained(run), _rule(run), already=True)
    with hold_folder(run.ensemble), attempt_folder(run.ensemble) as folder:
        for index in dones:
            _copy(run.instance(index).root / "model", member_folder(folder, index))
        members = [load_member(member_folder(folder, i), cpu_count()) for i in dones]
        bundle = _bundle(run, plan)
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
    return ConsolidateResult(len(dones), genes, bundle.combination, already=False)


def _copy(source: Path, target: Path) -> None:
    """All files below `source`; unlike shutil.copytree's, an error says what was wrong (a full disk, say)."""
    for file in sorted(p for p in source.rglob("*") if p.is_file()):
        place = target / file.relative_to(source)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)


def instance_markers(run: RunDir, plan: Plan) -> dict[str, str]:
    """sha256 of every instance's marker: what an ensemble was made from."""
    return {f"instances/{p.index:02d}": sha256_file(run.instance(p.index).root / MARKER) for p in plan.instances}


def check_instances(run: RunDir, plan: Plan) -> dict[int, Done]:
    """The markers of all planned instances, or one error that lists every bad one."""
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
    if problems:
        listed = "; ".join(f"instance {i}: {text}" for i, text in problems)
        indices = ",".join(str(i) for i, _ in problems)
        raise InputError(
            f"{len(problems)} of {len(plan.instances)} instances cannot be used: {listed}",
            expected="every planned instance done and unaltered",
            where=str(run.instances),
            next_step=f"train them (again): sbatch --array={indices} jobs/train.sh {quote(str(run.root))}, "
            f"or bin/train-instance {quote(str(run.root))} N for each",
        )
    return dones


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


def check_made_from(run: RunDir, plan: Plan, made_from: dict[str, str]) -> None:
    """Check all instances, and that the ensemble was made from these (`made_from`: its `ensemble_inputs`)."""
    check_instances(run, plan)
    if instance_markers(run, plan) != {name: value for name, value in made_from.items() if name != _COMBINE}:
        raise InputError(
            "the ensemble was made from other instances than those now in the run",
            where=str(run.ensemble),
            next_step=f"bin/consolidate {quote(str(run.root))}",
        )


def _bundle(run: RunDir, plan: Plan) -> Bundle:
    return Bundle(
        metabatch_version=__version__,
        xgboost_version=xgb.__version__,
        fingerprint=plan.fingerprint,
        strategy=plan.strategy if plan.teacher is None else "distilled",
        combination=equal(len(plan.instances)),
        columns=plan.columns,
        features=read_features(run).features,
        members=tuple(BundleMember(index=p.index, genes=p.genes, rows=p.rows) for p in plan.instances),
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
