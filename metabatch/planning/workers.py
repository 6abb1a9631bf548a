"""One model over several workers in a plan: whether it can be had, and what it needs."""

from __future__ import annotations

import importlib.util
import math

from metabatch.resources.law import BESIDE_BYTES, PIECE_ROWS, WHOLE_GROUP_ROWS, MemoryLaw

DISTRIBUTED = "distributed"


def no_workers(genes: int, workers: int) -> str | None:
    """Why so many genes cannot be trained on by several workers here, or None."""
    if importlib.util.find_spec(DISTRIBUTED) is None:
        return "the package distributed is not installed (bin/_setup requirements-distributed.lock)"
    if genes < workers:
        return f"{genes} training genes are fewer than {workers} workers (--workers)"
    return None


def worker_memory(rows: int, workers: int, law: MemoryLaw, budget: int) -> tuple[int, int]:
    """Predicted peak of a worker, bytes, and the rows of a batch: in memory where that fits, else external memory."""
    peak = law.distributed(rows, workers)
    if peak + BESIDE_BYTES <= budget:
        return peak, WHOLE_GROUP_ROWS
    external = law.distributed(rows, workers, PIECE_ROWS, external=True)
    return (external, PIECE_ROWS) if external < peak else (peak, WHOLE_GROUP_ROWS)


def worker_pages(rows: int, workers: int, batch_rows: int, law: MemoryLaw) -> int:
    """Size of a worker's page files, bytes; 0 in memory."""
    return 0 if batch_rows == WHOLE_GROUP_ROWS else law.page_bytes(math.ceil(rows / workers * law.share_spread))
