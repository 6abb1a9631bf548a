"""The memory law of a data set, from how XGBoost stores a matrix and what a probe of the real rows measured.

The bytes per cell come from `metabatch.data.layout`; the other constants were measured with
``benchmarks/memory_law.py`` (xgboost 3.4, CPU hist, two threads).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from metabatch.analysis.bounds import importance_bytes, shap_bytes
from metabatch.data.batches import joined
from metabatch.data.layout import cell_bytes
from metabatch.data.schema import wide_kmers
from metabatch.data.shards import READ_BUFFER, open_parquet
from metabatch.options import Options
from metabatch.resources.law import JOINED_ROWS, PIECE_ROWS, WHOLE_GROUP_ROWS, MemoryLaw
from metabatch.rundir.manifests import FeatureSet, ProbeResult

# Interpreter and libraries as the probe found them, where it cannot run; and the step to which they are rounded up,
# so that a few pages more or less do not make another plan.
BASELINE_BYTES, BASELINE_ANONYMOUS_BYTES, BASELINE_STEP = 256 << 20, 128 << 20, 32 << 20
READING_STEP = 8 << 20
# A matrix smaller than this tells nothing of the bytes per cell; a ratio closer to 1 than this is noise.
TELLING_BYTES, NOISE = 16 << 20, 0.05
# While the matrix is built: row offset, label and gene, some of them twice.
BUILDING_ROW_BYTES = 28
# Beside the matrix: row offset, gradients here and in XGBoost, prediction, order of the rows, label, weight, gene and
# number in it (see benchmarks/RESULTS.md); with folds also scores and temporaries of the stopping metric, 4 B a class.
ROW_BYTES, FOLD_ROW_BYTES = 76, 78
# Soft labels of a student, a class: held from the reading of the rows until the calibration.
SOFT_BYTES = 4
# After it: sorted copies in float64 for metrics and calibration; 12 B a class are the scores.
SCORING_ROW_BYTES = 104
SCORE_BYTES, CALIBRATED_BYTES = 4, 8
# Analyses. Beside each row: labels, genes, units and which rows are drawn; each scored row in memory and its sorted
# copies; libraries (figures, statistics), of which the mapped files count in memory only.
ANALYSIS_ROW_BYTES, SCORED_ROW_BYTES, SCORED_CLASS_BYTES = 40, 150, 24
ANALYSIS_BYTES, ANALYSIS_FILE_BYTES = 48 << 20, 40 << 20
# Gradient and hessian in double precision, and a tenth for the threads' own buffers.
HISTOGRAM_BYTES_PER_BIN = 16 * 1.1
# External memory: heaps of the threads that read pages ahead.
PAGE_THREADS_BYTES = 24 << 20
# Pages are written at this size by Arrow and polars.
PAGE_BYTES = 1 << 20
# Of them in the matrix itself: row offset and label.
XGBOOST_ROW_BYTES = 12


@dataclass(frozen=True)
class GroupSize:
    """Reading row groups: bytes held beside the decoded rows of one, rows of the largest batch, and of the average one.

    small_rows : rows decoded at once with small batches.
    large : file and row group that take most, among those that are not decoded whole.
    """

    bytes: int
    rows: int
    page_rows: int
    small_rows: int
    large: tuple[str, int] | None = None


def memory_law(
    features: FeatureSet, options: Options, classes: int, group: GroupSize, probe: ProbeResult | None,
    *, soft: bool = False, share_spread: float = 1.0,
) -> MemoryLaw:  # fmt: skip
    """The law for a data set.

    Parameters
    ----------
    classes : int
        Number of classes (out-of-fold scores are held for each).
    probe : ProbeResult, optional
        Corrects the bytes per cell where it measured others, and gives the size of the libraries.
    soft : bool
        Soft labels are trained on.
    share_spread : float
        As in the law.
    """
    taught = SOFT_BYTES * classes if soft else 0
    ratio = 1.0 if probe is None else _cell_ratio(probe, len(features.features))
    count = len(features.features)
    widths = [4 if f.dtype.endswith("32") else 2 if f.dtype.endswith("16") else 1 for f in features.features]
    return MemoryLaw(
        cell_bytes=ratio
        * cell_bytes(features.densities, has_missing=features.has_missing, most_bins=max(features.bins)),
        fixed_bytes=BASELINE_BYTES if probe is None else _rounded_up(probe.resident_bytes),
        fixed_anonymous_bytes=PAGE_THREADS_BYTES
        + (BASELINE_ANONYMOUS_BYTES if probe is None else _rounded_up(probe.anonymous_bytes)),
        building_row_bytes=BUILDING_ROW_BYTES + taught,
        row_bytes=taught + (FOLD_ROW_BYTES + SCORE_BYTES * classes if options.n_folds else ROW_BYTES),
        scoring_row_bytes=taught + SCORING_ROW_BYTES + (SCORE_BYTES + CALIBRATED_BYTES) * classes
        if options.n_folds else 0,
        group_bytes=group.bytes if probe is None else _reading(group, probe, sum(widths)),
        group_rows=group.rows,
        page_rows=group.page_rows,
        small_group_rows=group.small_rows,
        row_width=sum(widths),
        node_bytes=round(sum(features.bins) * HISTOGRAM_BYTES_PER_BIN),
        max_depth=options.max_depth,
        features=count,
        linear_width=_linear_width(features, options),
        stored_fraction=sum(features.densities) / count,
        analysis_row_bytes=ANALYSIS_ROW_BYTES if options.analyses else 0,
        scored_row_bytes=SCORED_ROW_BYTES + SCORED_CLASS_BYTES * classes if options.analyses else 0,
        analysis_bytes=_analysis_bytes(options.analyses, count, classes, sum(widths)),
        analysis_file_bytes=ANALYSIS_FILE_BYTES if options.analyses else 0,
        share_spread=share_spread,
        per_gene_bytes=None if options.memory_per_gene_mb is None else options.memory_per_gene_mb * 2**20,
    )  # fmt: skip


def _analysis_bytes(analyses: Sequence[str], features: int, classes: int, width: float) -> int:
    """What the widest analysis holds, and libraries; they come one after the other."""
    if not analyses:
        return 0
    shap = shap_bytes(features, classes, width) if "shap" in analyses else 0
    return ANALYSIS_BYTES + max(shap, importance_bytes(width) if "importance" in analyses else 0)


def _linear_width(features: FeatureSet, options: Options) -> int:
    count = len(features.features)
    if not options.hash_kmers:
        return count
    return count - len(wide_kmers([f.name for f in features.features])) + options.hash_kmers


def room_per_cell(budget: int, rows: int, features: int, options: Options) -> float:
    """Bytes per cell that `budget` leaves for a matrix, less a tenth for what is not known before the law is."""
    left = budget - BASELINE_BYTES - rows * (ROW_BYTES if not options.n_folds else FOLD_ROW_BYTES)
    return max(0.0, 0.9 * left / (rows * features))


def _cell_ratio(probe: ProbeResult, features: int) -> float:
    """Measured over expected bytes per cell, from the growth between the two sizes tried."""
    rows, grown = probe.rows[-1] - probe.rows[0], probe.matrix_bytes[-1] - probe.matrix_bytes[0]
    if rows <= 0 or grown < TELLING_BYTES:
        return 1.0
    ratio = (grown / rows - XGBOOST_ROW_BYTES) / (features * probe.expected_cell_bytes)
    return 1.0 if abs(ratio - 1) < NOISE else ratio


def _reading(group: GroupSize, probe: ProbeResult, row_width: int) -> int:
    """What a large row group held when it was tried; the footers tell little of the size of its pages."""
    if not probe.reading_bytes:
        return group.bytes
    return _rounded_up(max(0, probe.reading_bytes - JOINED_ROWS * row_width), READING_STEP)


def _rounded_up(size: int, step: int = BASELINE_STEP) -> int:
    return -(-size // step) * step


def largest_group(files: Sequence[Path], features: FeatureSet) -> GroupSize:
    """Look through the footers for what reading a row group takes at most (see `metabatch.data.batches.Reader`).

    Of one that is decoded whole, its compressed bytes; of a larger one, a page and a buffer of every column.
    """
    names = {f.name for f in features.features}
    held, small, most = 0, PIECE_ROWS, 0
    tables: list[int] = []
    large = None
    for file in files:
        with open_parquet(file) as parquet:
            chosen = [i for i, n in enumerate(parquet.schema_arrow.names) if n in names]
            for i in range(parquet.num_row_groups):
                group = parquet.metadata.row_group(i)
                columns = [group.column(c) for c in chosen]
                if group.num_rows <= WHOLE_GROUP_ROWS:
                    tables.append(group.num_rows)
                    small = max(small, group.num_rows)
                    held = max(held, sum(c.total_compressed_size for c in columns))
                else:
                    whole, rest = divmod(group.num_rows, JOINED_ROWS)
                    tables += [JOINED_ROWS] * whole + [rest] * (rest > 0)
                    pages = sum(min(c.total_uncompressed_size, PAGE_BYTES) + READ_BUFFER for c in columns)
                    if pages > most:
                        most, large = pages, (str(file), i)
    batches = [sum(batch) for batch in joined(tables)] or [0]
    return GroupSize(max(held, most), max(batches), max(1, sum(batches) // len(batches)), small, large)
