"""`prune-features` under a hard 1 GiB: the reference table, and a table of 4,000 columns."""

from __future__ import annotations

import itertools
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reference_table import ROW_GROUP
from runs import run_limited

LIMIT = "1G"
# 196,608 rows in row groups of 32 genes.
COLUMNS, GENE_ROWS, FILES, GROUPS = 4_000, 512, 4, 3
# Of each hundred features: copies, a little noise on another one, one value, nearly one value. The rest is independent.
COPIES, NOISY, CONSTANT, RARE = 5, 10, 2, 3


def make_wide_table(folder: Path, seed: int = 1) -> None:
    """Shards of whole genes: scores (float32) and counts (uint8) in turn, with features to drop in each hundred."""
    folder.mkdir()
    for number in range(FILES):
        parts = (_row_group(number * GROUPS + group, seed) for group in range(GROUPS))
        first = next(parts)
        with pq.ParquetWriter(folder / f"part-{number}.parquet", first.schema, compression="zstd") as writer:
            for part in itertools.chain([first], parts):
                writer.write_table(part, row_group_size=ROW_GROUP)


def _row_group(number: int, seed: int) -> pa.Table:
    rng = np.random.default_rng([seed, number])
    at = np.arange(ROW_GROUP)
    label = np.where(at % GENE_ROWS < 4, 1 + at % 2, 0)
    gene = number * (ROW_GROUP // GENE_ROWS) + at // GENE_ROWS
    columns: dict[str, object] = {
        "gene_id": np.array([f"G{n:05d}" for n in gene]),
        "position": at % GENE_ROWS + 1_000 * gene,
        "splice_type": np.array(["neither", "donor", "acceptor"])[label],
        "donor_score": (0.5 * (label == 1) + 0.5 * rng.random(ROW_GROUP)).astype(np.float32),
        "acceptor_score": (0.5 * (label == 2) + 0.5 * rng.random(ROW_GROUP)).astype(np.float32),
    }
    features: list[np.ndarray] = []
    for i in range(COLUMNS - len(columns)):
        place, base = i % 100, len(features) - i % 100
        if place >= 100 - COPIES:
            features.append(features[base + place % 10])
        elif place >= 100 - COPIES - NOISY:
            of = features[base + place % 10]
            features.append((of + 0.02 * of.std() * rng.standard_normal(ROW_GROUP)).astype(np.float32))
        elif place >= 100 - COPIES - NOISY - CONSTANT:
            features.append(np.full(ROW_GROUP, 3, np.uint8))
        elif place >= 100 - COPIES - NOISY - CONSTANT - RARE:
            features.append((at < 10 * (number == 0)).astype(np.uint8))
        elif i % 2:
            features.append(rng.poisson(1.0, ROW_GROUP).astype(np.uint8))
        else:
            features.append(rng.random(ROW_GROUP, np.float32))
    columns |= {f"x{i}": values for i, values in enumerate(features)}
    return pa.table(columns)


def pruning_lines(reference: Path, place: Path) -> Iterator[str]:
    """Lines of a table; `reference`: the full reference table."""
    yield f"`prune-features` under a hard kernel limit of {LIMIT}; peak: anonymous memory of all processes.\n"
    yield "| table | rows | columns | peak MiB | s | dropped | oom kills |"
    yield "|---|---|---|---|---|---|---|"
    yield pruned_line("reference", reference, place)
    wide = place / "wide"
    make_wide_table(wide)
    yield pruned_line(f"{COLUMNS:,} columns", wide, place)
    shutil.rmtree(wide)


def pruned_line(what: str, data: Path, place: Path) -> str:
    out = place / "pruned"
    done = run_limited(LIMIT, place, "prune-features", data, out)
    record = json.loads((out / "pruned_features.json").read_text())
    shutil.rmtree(out)
    reasons = Counter(p["reason"] for p in record["pruned"])
    dropped = ", ".join(f"{n:,} {reason}" for reason, n in sorted(reasons.items())) or "none"
    return (
        f"| {what} | {record['rows']:,} | {record['columns']:,} | {done.kernel['peak_anon'] >> 20:,} "
        f"| {done.seconds:.0f} | {dropped} | {done.kernel['oom_kills']} |"
    )
