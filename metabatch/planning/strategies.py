"""Which strategy fits the budget: single, multi-instance, external; the fastest that fits, or a refusal."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import polars as pl

from metabatch.data.index import class_column
from metabatch.errors import BudgetError
from metabatch.options import Options
from metabatch.planning.allocation import Allocation, allocate, instance_count, smallest_covering_size
from metabatch.planning.duration import Speed, instance_seconds
from metabatch.planning.linear import INCREMENTAL, batch_that_fits, incremental_seconds
from metabatch.planning.workers import DISTRIBUTED, no_workers, worker_memory
from metabatch.resources.law import BESIDE_BYTES, WHOLE_GROUP_ROWS, MemoryLaw
from metabatch.resources.limits import cpu_count
from metabatch.rundir.manifests import Alternative, Budget, Columns

DEFAULT_CAP_GB = 15.0
# Another kind of model, and other machines: not for `auto` to choose.
ASKED_FOR = (INCREMENTAL, DISTRIBUTED)
GIB = 1 << 30
_ON_DISK = "pages on disk are trained on by the CPU"


@dataclass(frozen=True)
class Choice:
    """A strategy with its instances and prediction; `refusal` says why it cannot be had.

    seconds : expected duration of each instance. batch_rows : rows of a batch in which it reads.
    """

    strategy: str
    allocation: Allocation | None
    peak: int | None
    seconds: tuple[float, ...] = ()
    refusal: str | None = None
    hint: str | None = None
    batch_rows: int = WHOLE_GROUP_ROWS


def choose(
    genes: pl.DataFrame, columns: Columns, options: Options, law: MemoryLaw, budget: Budget, speed: Speed,
    *, one_model: bool = False,
) -> tuple[Choice, str, tuple[Alternative, ...]]:  # fmt: skip
    """Decide the strategy; with `one_model` several instances are none.

    Returns
    -------
    choice : Choice
    why : str
    alternatives : tuple of Alternative
        All of them, so that a person sees the trade.

    Raises
    ------
    BudgetError
        When the forced strategy, or every strategy, would exceed the budget; says what would work.
    """
    choices = {
        "single": _single(genes, law, budget),
        "multi-instance": _multi(genes, columns, options, law, budget),
        "external": _external(genes, options, law, budget),
        INCREMENTAL: _incremental(genes, options, law, budget),
        DISTRIBUTED: _distributed(genes, options, law, budget),
    }
    if one_model:
        del choices["multi-instance"], choices[INCREMENTAL], choices[DISTRIBUTED]
    choices = {name: _timed(c, genes, options, law, budget, speed) for name, c in choices.items()}
    single = sum(choices["single"].seconds)
    if options.strategy != "auto":
        chosen = choices[options.strategy]
        if chosen.refusal is not None:
            _refuse(choices, budget, options, f"--strategy {options.strategy} does not fit: {chosen.refusal}", chosen)
        why = f"--strategy {options.strategy}"
    else:
        fitting = [c for c in choices.values() if c.refusal is None and c.strategy not in ASKED_FOR]
        if not fitting:
            _refuse(choices, budget, options, "no strategy fits the budget", choices["external"])
        # In order of speed, by their nature and not by the clock: a plan must not depend on a busy machine.
        chosen = fitting[0]
        passed = [f"{c.strategy}: {c.refusal}" for c in choices.values() if c.refusal and c.strategy not in ASKED_FOR]
        why = "fastest that fits the budget" + (f" ({'; '.join(passed)})" if passed else "")
    alternatives = tuple(
        Alternative(
            strategy=c.strategy,
            instances=len(c.allocation.core) if c.allocation else 0,
            predicted_peak_bytes=c.peak,
            page_cache_bytes=law.page_bytes(int(genes["rows"].sum())) if c.strategy == "external" else 0,
            relative_time=round(sum(c.seconds) / single, 2) if c.seconds else None,
            why_not=None if c is chosen else c.refusal or _passed_over(c, options),
        )
        for c in choices.values()
    )  # fmt: skip
    return chosen, why, alternatives


def _single(genes: pl.DataFrame, law: MemoryLaw, budget: Budget) -> Choice:
    rows = int(genes["rows"].sum())
    peak = law.in_memory(rows, genes.height)
    refusal = _over(peak, budget)
    return Choice("single", _everything(genes), peak, refusal=refusal)


def _external(genes: pl.DataFrame, options: Options, law: MemoryLaw, budget: Budget) -> Choice:
    rows = int(genes["rows"].sum())
    batch = law.batch_rows(rows, budget.bytes)
    peak = law.external(rows, batch)
    refusal = _ON_DISK if options.device == "cuda" else _over(peak, budget)
    return Choice("external", _everything(genes), peak, refusal=refusal, batch_rows=batch)


def _incremental(genes: pl.DataFrame, options: Options, law: MemoryLaw, budget: Budget) -> Choice:
    rows = int(genes["rows"].sum())
    batch = batch_that_fits(rows, options, law, budget.bytes)
    peak = law.incremental(rows, batch)
    return Choice(INCREMENTAL, _everything(genes), peak, refusal=_over(peak, budget), batch_rows=batch)


def _distributed(genes: pl.DataFrame, options: Options, law: MemoryLaw, budget: Budget) -> Choice:
    rows = int(genes["rows"].sum())
    peak, batch = worker_memory(rows, options.workers, law, budget.bytes)
    beside = BESIDE_BYTES
    refusal = no_workers(genes.height, options.workers) or _over(peak + beside, budget)
    if options.device == "cuda" and batch != WHOLE_GROUP_ROWS:
        refusal = refusal or _ON_DISK
    more = math.ceil(options.workers * peak / max(1, budget.bytes - law.fixed_bytes - beside))
    hint = f"--workers {more}, or --max-memory-per-instance-gb {_up(peak + beside)}" if budget.bytes > beside else None
    return Choice(DISTRIBUTED, _everything(genes), peak, refusal=refusal, hint=hint, batch_rows=batch)


def _passed_over(choice: Choice, options: Options) -> str:
    """Why a strategy that fits is not the chosen one."""
    if options.strategy != "auto":
        return f"--strategy {options.strategy} was asked for"
    if choice.strategy == DISTRIBUTED:
        return f"{options.workers} workers, only when asked for"
    return "linear models, only when asked for" if choice.strategy == INCREMENTAL else "not the fastest that fits"


def _timed(
    choice: Choice, genes: pl.DataFrame, options: Options, law: MemoryLaw, budget: Budget, speed: Speed
) -> Choice:
    if choice.allocation is None:
        return choice
    rows = choice.allocation.rows(genes["rows"].to_numpy())
    if choice.strategy == INCREMENTAL:
        own = incremental_seconds(law, int(rows.sum()), options, options.threads or cpu_count())
        return replace(choice, seconds=(own,))
    external = choice.strategy == "external" or choice.batch_rows != WHOLE_GROUP_ROWS
    shares = options.workers if choice.strategy == DISTRIBUTED else 1  # each on a machine like this one
    seconds = tuple(
        instance_seconds(law, speed, math.ceil(r / shares), options, external=external, budget_bytes=budget.bytes)
        for r in rows
    )
    return replace(choice, seconds=seconds)


def _everything(genes: pl.DataFrame) -> Allocation:
    index = pl.int_range(genes.height, eager=True).to_numpy()
    return Allocation([index], [index[:0]], "gene")


def _over(peak: int, budget: Budget) -> str | None:
    if peak <= budget.bytes:
        return None
    return f"needs {_gb(peak)}, {100 * peak / budget.bytes:.0f} % of the budget of {_gb(budget.bytes)}"


def _multi(genes: pl.DataFrame, columns: Columns, options: Options, law: MemoryLaw, budget: Budget) -> Choice:
    total = genes.height
    if total < options.min_instances:
        return _no(f"{total} training genes are fewer than {options.min_instances} instances")
    capacity = law.rows_that_fit(budget.bytes)
    size = _genes_that_fit(genes, options, law, budget, capacity)
    if size < 1:
        need = law.in_memory(int(genes["rows"].min()), 1)  # type: ignore[arg-type]
        return _no(f"not even one gene fits {_gb(budget.bytes)}", f"--max-memory-per-instance-gb {_up(need)}")
    giant = genes.sort("rows", "gene_id", descending=[True, False]).row(0, named=True)
    if law.per_gene_bytes is None and giant["rows"] > capacity:
        need = law.in_memory(giant["rows"], 1)
        return _no(
            f"gene {giant['gene_id']} alone has {giant['rows']:,} rows and needs {_gb(need)} of {_gb(budget.bytes)}",
            f"--max-memory-per-instance-gb {_up(need)}",
        )
    while size >= 1:
        count = instance_count(total, size, options.instance_overlap, options.min_instances)
        if count > options.max_instances:
            return _too_many(genes, options, law, budget, size, count)
        fitted = size
        if count == options.min_instances and options.instance_overlap > 0:
            # More instances than needed: share no more genes than the overlap asks for.
            fitted = min(size, smallest_covering_size(total, count, options.instance_overlap))
        allocation = allocate(
            genes, len(columns.classes), instances=count, genes_per_instance=fitted,
            overlap=options.instance_overlap, by_split=columns.split is not None, seed=options.seed,
        )  # fmt: skip
        rows = allocation.rows(genes["rows"].to_numpy())
        peaks = [
            law.in_memory(int(r), len(c) + len(o))
            for r, c, o in zip(rows, allocation.core, allocation.overlap, strict=True)
        ]
        if max(peaks) <= budget.bytes:
            problem = _untrainable(genes, columns, options, allocation)
            if problem is not None:
                return _no(problem, "--strategy single or --strategy external")
            return Choice("multi-instance", allocation, max(peaks))
        if not options.auto_adjust_instance_size:
            break
        size = min(size - 1, int(size * budget.bytes / max(peaks)))
    return _no(
        f"an instance of {options.genes_per_instance} genes needs more than {_gb(budget.bytes)}",
        "leave out --no-auto-adjust-instance-size, or raise --max-memory-per-instance-gb",
    )


def _genes_that_fit(genes: pl.DataFrame, options: Options, law: MemoryLaw, budget: Budget, capacity: int) -> int:
    """Genes per instance: the wish, or as many as the budget holds."""
    wish = options.genes_per_instance
    if not options.auto_adjust_instance_size:
        return min(wish, genes.height)
    fits = capacity / _mean_rows(genes) if law.per_gene_bytes is None else budget.bytes / law.per_gene_bytes
    return min(wish, math.floor(fits + 1e-9), genes.height)


def _mean_rows(genes: pl.DataFrame) -> float:
    return int(genes["rows"].sum()) / genes.height


def _too_many(genes: pl.DataFrame, options: Options, law: MemoryLaw, budget: Budget, size: int, count: int) -> Choice:
    needed = smallest_covering_size(genes.height, options.max_instances, options.instance_overlap)
    rows = math.ceil(needed * _mean_rows(genes) * 1.02)
    peak = law.in_memory(rows, needed)
    room = []
    if needed > options.genes_per_instance:
        room.append(f"--genes-per-instance {needed}")
    if peak > budget.bytes:
        room.append(f"--max-memory-per-instance-gb {_up(peak)}")
    return _no(
        f"{genes.height:,} genes at {size:,} genes per instance ({_gb(budget.bytes)}) need {count} instances, "
        f"above --max-instances {options.max_instances}",
        f"--max-instances {count}" + (f", or {' with '.join(room)} ({needed:,} genes per instance)" if room else ""),
    )


def _untrainable(genes: pl.DataFrame, columns: Columns, options: Options, allocation: Allocation) -> str | None:
    units_needed = 2 if options.n_folds else 1
    unit, column = (columns.split, "split") if columns.split else ("gene", "gene_id")
    for index, (core, overlap) in enumerate(zip(allocation.core, allocation.overlap, strict=True)):
        part = genes[[*core.tolist(), *overlap.tolist()]]
        if part[column].n_unique() < options.n_folds:
            return f"instance {index} would have {part[column].n_unique()} {unit}(s) for {options.n_folds} folds"
        for code, name in enumerate(columns.classes):
            units = part.filter(pl.col(class_column(code)) > 0)[column].n_unique()
            if units < units_needed:
                return (
                    f"instance {index} would have {units} {unit}(s) with class {name}; "
                    f"{units_needed} are needed to train and cross-validate it"
                )
    return None


def _no(refusal: str, hint: str | None = None) -> Choice:
    return Choice("multi-instance", None, None, refusal=refusal, hint=hint)


def _refuse(choices: dict[str, Choice], budget: Budget, options: Options, what: str, chosen: Choice) -> None:
    works = [
        f"--strategy {c.strategy} ({_gb(c.peak)}{' a worker' if c.strategy == DISTRIBUTED else ''})"
        for c in choices.values()
        if c.refusal is None and c.peak is not None
    ]
    if chosen.hint:
        works.insert(0, chosen.hint)
    elif chosen.peak is not None:
        works.insert(0, f"--max-memory-per-instance-gb {_up(chosen.peak)}")
    if not works or options.strategy == "auto":
        peaks = [c.peak for c in choices.values() if c.peak is not None]
        works.append(f"--max-memory-per-instance-gb {_up(min(peaks))}")
    raise BudgetError(
        what,
        expected=f"at most {_gb(budget.bytes)} per instance ({budget.source})",
        next_step="any of: " + "; ".join(dict.fromkeys(works)),
    )


def _gb(amount: int) -> str:
    return f"{amount / GIB:.2f} GB"


def _up(amount: int) -> str:
    return f"{math.ceil(amount / GIB * 100) / 100:g}"
