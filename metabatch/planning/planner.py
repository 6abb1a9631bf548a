"""`plan`: from a data set and options to plan.json and its tables."""

from __future__ import annotations

import logging
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from metabatch import __version__
from metabatch.data.batches import RowCount
from metabatch.data.index import build_index, pieces_for
from metabatch.data.missing import Wish
from metabatch.data.roles import classify, resolve_columns
from metabatch.data.schema import union_schema
from metabatch.data.shards import find_parquet, scan_shards
from metabatch.data.shares import share_spread
from metabatch.data.statistics import measure_features
from metabatch.options import Options, validate
from metabatch.planning.advice import prefer_exact
from metabatch.planning.allocation import Allocation
from metabatch.planning.decision import decide
from metabatch.planning.device import check_cuda, gpu_alternative, gpu_notes
from metabatch.planning.existing import existing_plan
from metabatch.planning.holdout import fitted_problems, planned_genes, training_problems
from metabatch.planning.learning import learned_law
from metabatch.planning.linear import INCREMENTAL, check_hashing, check_model_options
from metabatch.planning.memory import largest_group, memory_law, room_per_cell
from metabatch.planning.probing import run_probe
from metabatch.planning.profiles import apply_profile, tier_of
from metabatch.planning.screening import screen_leaks
from metabatch.planning.strategies import DEFAULT_CAP_GB, GIB, Choice
from metabatch.planning.student import Student
from metabatch.planning.workers import DISTRIBUTED, worker_memory, worker_pages
from metabatch.planning.writing import Decided, write_plan
from metabatch.resources.law import BESIDE_BYTES, MemoryLaw
from metabatch.resources.limits import cpu_count, memory_limits
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lease import tidy
from metabatch.rundir.manifests import (
    Booster,
    Budget,
    Columns,
    Dataset,
    Holdout,
    Plan,
    PlannedInstance,
)
from metabatch.rundir.recipe import read_built, refuse_other_shards

log = logging.getLogger(__name__)
REQUEST_STEP = 32 << 20


@dataclass(frozen=True)
class PlanResult:
    """`plan.json` as decided, and whether it was there already."""

    plan: Plan
    already: bool


def make_plan(
    dataset: Path, run: RunDir, options: Options, explicit: Collection[str] = (), *, force: bool = False,
    student: Student | None = None,
) -> PlanResult:  # fmt: skip
    """Decide everything and write the run directory; plan.json comes last.

    Parameters
    ----------
    explicit : collection of str
        Option fields the user gave (they win over a profile).
    force : bool
        Replace another plan in `run`, and discard what was trained under it.
    student : Student, optional
        Plan one model to be trained on a teacher's soft labels, with its genes and features.

    Raises
    ------
    InputError, BudgetError
        Nothing is written then.
    """
    validate(options)
    check_model_options(options, explicit)
    check_cuda(options)
    budget, memory = decide_budget(options)
    place = dataset.resolve()
    shards = scan_shards(place)
    teacher = None if student is None else student.teacher
    existing = existing_plan(run, options, explicit, shards, force=force, teacher=teacher)
    if existing is not None:
        tidy(run.root)
        return PlanResult(existing, already=True)
    built = read_built(place)
    refuse_other_shards(place, built, {s.name: (s.bytes, s.sha256) for s in shards})
    tier = tier_of(options, memory)
    options, lowered = apply_profile(options, explicit, tier)

    by_name = {p.name: p for p in find_parquet(place)}
    files = [by_name[s.name] for s in shards]
    schema = union_schema(files)
    columns = resolve_columns(schema, options)
    candidates, excluded = classify(schema, columns, options)
    index = build_index(files, [s.row_groups for s in shards], columns)
    if student is not None:
        candidates, excluded = student.without_excluded(candidates, excluded)
    genes, held, how = planned_genes(index.genes, columns, options, explicit, student, place, built)
    training = genes.filter(~held)
    problems = training_problems(training, columns, options)
    screened = screen_leaks(training, index.segments, files, candidates, excluded, columns, options)
    candidates = screened.candidates
    count = RowCount()
    pieces = pieces_for(index.segments, genes["gene_id"].to_list(), files)
    features, cuts, notes = measure_features(
        pieces, int(genes["rows"].sum()), candidates, screened.excluded, columns.group,
        training["gene_id"].to_list(), count, options.max_bin, options.threads or cpu_count(),
        Wish(
            options.missing_policy == "native" or options.strategy == INCREMENTAL,  # to a line, zero is a number
            _rooms(training, len(candidates), options, budget),
        ),
    )  # fmt: skip
    check_hashing(options, [f.name for f in features.features])
    log.info("feature scan: %s rows read for %s asked", f"{count.read:,}", f"{count.asked:,}")
    booster = _booster(columns)
    group = largest_group(files, features)
    probe, unprobed = run_probe(
        pieces, features, cuts, columns, options, booster, options.threads or cpu_count(), int(training["rows"].sum()),
        group.large,
    )  # fmt: skip
    warnings = [
        *index.warnings,
        *screened.warnings,
        *notes,
        *problems,
        *fitted_problems(genes, held, place, built),
        *([] if student is None else student.warnings(options)),
        *([] if unprobed is None else [unprobed]),
    ]

    def law_of(chosen: Options) -> MemoryLaw:
        law = memory_law(
            features, chosen, len(columns.classes), group, probe, soft=student is not None,
            share_spread=share_spread(training, index.segments, chosen.workers),
        )  # fmt: skip
        return law if chosen.learn_from is None else learned_law(law, chosen.learn_from, shards, chosen)

    decision = decide(training, columns, options, explicit, budget, probe, law_of, one_model=student is not None)
    options, law, choice = decision.options, decision.law, decision.choice
    allocation = choice.allocation
    if allocation is None:
        raise RuntimeError("a chosen strategy has no allocation")
    instances = _instances(training, allocation, choice, law, budget, options.workers)
    warnings += [
        *prefer_exact(choice.strategy, decision.alternatives, budget),
        *gpu_notes(options, features, instances),
    ]

    listed = options.device == "cpu" and student is None
    plan = Plan(
        metabatch_version=__version__,
        fingerprint="",
        seal="",
        dataset=Dataset(
            path=str(place), genes=genes.height, positions=int(genes["rows"].sum()),
            features=len(features.features), shards=tuple(shards),
        ),
        columns=columns,
        strategy=choice.strategy,  # type: ignore[arg-type]
        why=decision.why,
        alternatives=(
            *decision.alternatives,
            *([gpu_alternative(options, features, int(training["rows"].sum()))] if listed else []),
        ),
        budget=budget,
        memory_law=law,
        probe=probe,
        seed=options.seed,
        holdout=Holdout(genes=int(held.sum()), rows=int(genes.filter(held)["rows"].sum() or 0), how=how),
        coverage=_coverage(allocation, training.height),
        allocation_unit=allocation.unit,
        instances=instances,
        options=options,
        profile=tier,
        lowered=(*lowered, *decision.lowered),
        booster=booster,
        warnings=tuple(warnings),
        tables={},
        teacher=teacher,
        recipe=built.recipe,
    )  # fmt: skip
    write_soft = None if student is None else student.write_soft_labels
    decided = Decided(genes, held, training, index.segments, allocation, features, cuts, screened.table, write_soft)
    return PlanResult(write_plan(run, plan, decided, force=force), already=False)


def decide_budget(options: Options) -> tuple[Budget, int]:
    """The memory one instance may use, and the memory by which a profile is chosen, bytes.

    An explicit cap is the budget of the jobs, whatever this (login) node has; without one it is the
    smaller of the default cap and safety factor x the memory that can be had here.
    """
    if options.max_memory_per_instance_gb is not None:
        size = round(options.max_memory_per_instance_gb * GIB)
        return Budget(bytes=size, source=f"--max-memory-per-instance-gb {options.max_memory_per_instance_gb:g}"), size
    limit = memory_limits()[0]
    available = round(limit.bytes * options.safety_factor)
    cap = round(DEFAULT_CAP_GB * GIB)
    if cap <= available:
        return Budget(bytes=cap, source=f"default cap of {DEFAULT_CAP_GB:g} GB per instance"), limit.bytes
    source = f"{options.safety_factor:g} x {limit.bytes / GIB:.1f} GB ({limit.source})"
    return Budget(bytes=available, source=source), limit.bytes


def _rooms(training: pl.DataFrame, features: int, options: Options, budget: Budget) -> tuple[float, ...]:
    """Bytes per cell that the budget has for the matrix of all genes, and of an instance of the size wished for."""
    rows = int(training["rows"].sum())
    instance = math.ceil(rows * min(1.0, options.genes_per_instance / training.height))
    if options.strategy == "external":  # its pages need no memory
        return (math.inf,)
    sizes = {"auto": (rows, instance), "multi-instance": (instance,)}.get(options.strategy, (rows,))
    return tuple(room_per_cell(budget.bytes, size, features, options) for size in sizes)


def _booster(columns: Columns) -> Booster:
    if columns.weight:
        return Booster(
            base_score=0.5, min_child_weight=0.1,
            because=f"weights of {columns.weight} on their own scale: rare classes keep theirs",
        )  # fmt: skip
    return Booster(base_score=0.5, min_child_weight=1.0, because="no weights")


def _coverage(allocation: Allocation, total: int) -> float:
    covered = {int(g) for part in allocation.core for g in part}
    if len(covered) != total:
        raise RuntimeError(f"allocation covers {len(covered)} of {total} genes")
    return 1.0


def _instances(
    genes: pl.DataFrame, allocation: Allocation, choice: Choice, law: MemoryLaw, budget: Budget, workers: int
) -> tuple[PlannedInstance, ...]:
    rows = allocation.rows(genes["rows"].to_numpy())
    external, linear = choice.strategy == "external", choice.strategy == INCREMENTAL
    planned = []
    for index, (core, overlap) in enumerate(zip(allocation.core, allocation.overlap, strict=True)):
        size, count = int(rows[index]), len(core) + len(overlap)
        beside = 0
        if choice.strategy == DISTRIBUTED:
            peak, beside = worker_memory(size, workers, law, budget.bytes)[0], BESIDE_BYTES
        elif linear:
            peak = law.incremental(size, choice.batch_rows)
        else:
            peak = law.external(size, choice.batch_rows) if external else law.in_memory(size, count)
        pages = law.page_bytes(size) if external else 0
        if choice.strategy == DISTRIBUTED:
            pages = worker_pages(size, workers, choice.batch_rows, law)
        # The page cache counts as the job's memory: without room for it every tree is read from disk.
        # In steps, so that instances that differ by some rows can be tasks of one array.
        request = min(
            budget.bytes, -(-(round(peak * 1.1) + (128 << 20) + beside + pages) // REQUEST_STEP) * REQUEST_STEP
        )
        planned.append(
            PlannedInstance(
                index=index,
                genes=count,
                core_genes=len(core),
                overlap_genes=len(overlap),
                rows=size,
                predicted_peak_bytes=peak,
                mem_request_mb=math.ceil(request / (1 << 20)),
                expected_seconds=round(choice.seconds[index], 1),
                page_bytes=pages,
                batch_rows=choice.batch_rows,
            )
        )
    return tuple(planned)
