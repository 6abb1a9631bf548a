"""Linear models out of core in a plan: the batch that fits, memory, time, and which options are theirs."""

from __future__ import annotations

from collections.abc import Collection

import msgspec

from metabatch.errors import UsageError
from metabatch.options import Options, flag
from metabatch.resources.law import LINEAR_ROWS, MemoryLaw
from metabatch.rundir.manifests import Lowered

INCREMENTAL = "incremental"
_OF_LINES = ("model_spec", "batch_size", "epochs", "alpha")
_OF_TREES = (
    "n_estimators", "learning_rate", "max_depth", "subsample", "colsample_bytree", "max_bin", "early_stopping_patience",
    "missing_policy",
)  # fmt: skip
_BATCH = "batch_size"
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
    linear = options.strategy == INCREMENTAL
    idle = [flag(name) for name in (_OF_TREES if linear else _OF_LINES) if name in explicit]
    if idle:
        kind = "linear models (--strategy incremental)" if linear else f"trees (--strategy {options.strategy})"
        raise UsageError(
            f"{', '.join(idle)} {'decides' if len(idle) == 1 else 'decide'} nothing for {kind}",
            next_step="leave it out" + ("" if linear else ", or add --strategy incremental"),
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
    passes = options.epochs + 1 + bool(options.n_folds)
    models = len(options.classes) * (options.n_folds + 1) / min(max(1, threads), len(options.classes))
    return cells * (passes * READ_SECONDS * 2 / max(1, threads) + options.epochs * models * STEP_SECONDS)


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
