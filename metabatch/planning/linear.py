"""Linear models out of core in a plan: the batch that fits, memory, time, and which options are theirs."""

from __future__ import annotations

from collections.abc import Collection, Sequence

import msgspec

from metabatch.data.schema import WIDE_BASES, wide_kmers
from metabatch.errors import UsageError
from metabatch.options import Options, flag
from metabatch.planning.workers import DISTRIBUTED
from metabatch.resources.law import LINEAR_ROWS, MemoryLaw
from metabatch.rundir.manifests import Lowered

INCREMENTAL = "incremental"
_OF_LINES = ("model_spec", "batch_size", "epochs", "alpha", "hash_kmers")
_OF_TREES = (
    "n_estimators", "learning_rate", "max_depth", "subsample", "colsample_bytree", "max_bin", "early_stopping_patience",
    "missing_policy",
)  # fmt: skip
_BATCH = "batch_size"
# Strategies whose matrix a GPU can hold; nothing gives workers that train together a GPU each yet.
_ON_A_GPU = ("auto", "single", "multi-instance")
_STEP = 1_000
# Seconds per cell on two cores, estimated and not yet measured: of a pass of reading, and of a step of a model.
READ_SECONDS, STEP_SECONDS = 2.0e-8, 1.5e-9


def check_model_options(options: Options, explicit: Collection[str]) -> None:
    """Refuse options of the other kind of model, which would decide nothing.

    Raises
    ------
    UsageError
        Naming them.
    """
    if "workers" in explicit and options.strategy != DISTRIBUTED:
        raise UsageError("--workers decides nothing", next_step=f"leave it out, or add --strategy {DISTRIBUTED}")
    if options.device != "cpu" and options.strategy not in _ON_A_GPU:
        raise UsageError(
            f"--device {options.device} cannot be had with --strategy {options.strategy}",
            expected=f"--strategy {', '.join(_ON_A_GPU)}",
            next_step="leave out --device, or choose another strategy",
        )
    linear = options.strategy == INCREMENTAL
    if "memory_per_gene_mb" in explicit and options.strategy in (INCREMENTAL, DISTRIBUTED):
        raise UsageError(
            f"--memory-per-gene-mb decides nothing for --strategy {options.strategy}", next_step="leave it out"
        )
    idle = [flag(name) for name in (_OF_TREES if linear else _OF_LINES) if name in explicit]
    if idle:
        kind = "linear models (--strategy incremental)" if linear else f"trees (--strategy {options.strategy})"
        raise UsageError(
            f"{', '.join(idle)} {'decides' if len(idle) == 1 else 'decide'} nothing for {kind}",
            next_step="leave it out" + ("" if linear else ", or add --strategy incremental"),
        )


def check_hashing(options: Options, names: Sequence[str]) -> None:
    """Refuse hashing that would not make the table of these features narrower.

    Raises
    ------
    UsageError
        Naming how many k-mers there are to hash.
    """
    wide = len(wide_kmers(names))
    if options.hash_kmers and options.hash_kmers >= wide:
        raise UsageError(
            f"--hash-kmers {options.hash_kmers} decides nothing: {wide} feature(s) are k-mers of {WIDE_BASES} bases or "
            "more",
            next_step=f"ask for fewer than {wide}" if wide > 1 else "leave it out",
        )


def batch_that_fits(rows: int, options: Options, law: MemoryLaw, budget: int) -> int:
    """Rows of a batch: as asked for, or as many as the budget has room for, in thousands; at least one step's."""
    asked = min(options.batch_size, rows)
    if law.incremental(rows, asked) <= budget:
        return options.batch_size
    room = budget - law.incremental(rows, 0)
    return max(LINEAR_ROWS, int(room / law.incremental_row_bytes) // _STEP * _STEP)


def incremental_seconds(law: MemoryLaw, rows: int, options: Options, threads: int) -> float:
    """Expected duration, seconds."""
    cells = rows * law.features
    learned = rows * law.linear_width
    passes = options.epochs + 1 + bool(options.n_folds)
    models = len(options.classes) * (options.n_folds + 1) / min(max(1, threads), len(options.classes))
    return cells * passes * READ_SECONDS * 2 / max(1, threads) + learned * options.epochs * models * STEP_SECONDS


def with_batch(options: Options, batch_rows: int, budget: int) -> tuple[Options, tuple[Lowered, ...]]:
    """Options with the batch that fits, and the record of it where it is smaller than asked for."""
    if batch_rows >= options.batch_size:
        return options, ()
    because = f"so many rows fit the budget of {budget / 2**30:.2f} GB"
    lowered = Lowered(option=_BATCH, default=options.batch_size, value=batch_rows, because=because)
    return msgspec.structs.replace(options, batch_size=batch_rows), (lowered,)


def batch_as_planned(asked: Options, lowered: Collection[Lowered]) -> Options:
    """Options as they would be planned again: with the batch that this plan made smaller."""
    for x in lowered:
        if x.option == _BATCH and x.default == asked.batch_size:
            return msgspec.structs.replace(asked, batch_size=int(x.value))
    return asked
