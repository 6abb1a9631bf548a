"""The memory law: what an instance will need, from rows, features and the data's own density.

    peak = baseline + matrix + rows x c + max(sketch + batch, histograms)

(building the matrix and growing trees do not overlap, so the larger of the two transients counts).

The bytes per cell come from `metabatch.data.layout`; the other constants were measured with
``benchmarks/memory_law.py`` (xgboost 3.4, CPU hist, two threads).
"""

from __future__ import annotations

from dataclasses import dataclass

from metabatch.data.batches import WHOLE_GROUP_ROWS
from metabatch.data.layout import bin_counts, cell_bytes
from metabatch.options import Options
from metabatch.rundir.manifests import FeatureSet

# Interpreter and libraries with the pages of them that training touches: 236 to 296 MiB were seen.
BASELINE_BYTES = 285 << 20
SKETCH_BYTES_PER_FEATURE = 90 << 10
HISTOGRAM_BYTES_PER_BIN = 16
ROW_BYTES = 90
# Seconds per cell and tree on two cores: dense and zero-as-missing (FIELD_NOTES: 0.75 s and 0.16 s for
# 408k x 1,167), and per cell of matrix construction.
DENSE_TREE_SECONDS = 1.6e-9
STORED_TREE_SECONDS = 1.8e-9
BUILD_SECONDS = 1.0e-7
EXTERNAL_SLOWDOWN = 2.6


@dataclass(frozen=True)
class MemoryLaw:
    """Bytes for one data set and one set of options."""

    cell_bytes: float
    fixed_bytes: int
    build_bytes: int
    row_bytes: int
    features: int
    stored_fraction: float
    max_depth: int
    node_bytes: int
    per_gene_bytes: float | None
    page_rows: int = WHOLE_GROUP_ROWS

    def in_memory(self, rows: int, genes: int) -> int:
        """Predicted peak of an instance that holds its matrix in memory, bytes."""
        if self.per_gene_bytes is not None:
            return round(genes * self.per_gene_bytes)
        return round(self._common(rows) + rows * self.features * self.cell_bytes)

    def external(self, rows: int) -> int:
        """Predicted peak of anonymous memory with the matrix in pages on disk, bytes."""
        page = min(rows, self.page_rows) * self.features * self.cell_bytes
        return round(self._common(rows) + 2 * page)

    def page_bytes(self, rows: int) -> int:
        """Size of the page files on disk, bytes (FIELD_NOTES: 11.5 GB for 3.73M x 1,167)."""
        return round(rows * self.features * max(self.cell_bytes, 1.0) * 1.3)

    def rows_that_fit(self, budget: int) -> int:
        """The most rows an in-memory instance may have within `budget` bytes; 0 when none."""
        if self._common(0) >= budget:
            return 0
        low, high = 0, budget
        while low < high:
            middle = (low + high + 1) // 2
            if self._common(middle) + middle * self.features * self.cell_bytes <= budget:
                low = middle
            else:
                high = middle - 1
        return low

    def seconds(self, rows: int, options: Options, *, external: bool, threads: int) -> float:
        """Rough expected duration of one instance, seconds."""
        cells = rows * self.features
        per_tree = cells * (
            DENSE_TREE_SECONDS if self.stored_fraction >= 1 else STORED_TREE_SECONDS * self.stored_fraction
        )
        boosters = len(options.classes) * (options.n_folds + 1)
        trees = options.n_estimators * (0.5 if options.n_folds and options.early_stopping_patience else 1.0)
        slow = EXTERNAL_SLOWDOWN if external else 1.0
        return (
            5 + cells * BUILD_SECONDS * 2 / max(threads, 1) + slow * boosters * trees * per_tree * 2 / max(threads, 1)
        )

    def _common(self, rows: int) -> int:
        # A tree of depth d has at most 2^d leaves, and no more nodes than a few rows each allow.
        nodes = min(2**self.max_depth, max(1, rows // 16))
        return self.fixed_bytes + rows * self.row_bytes + max(self.build_bytes, nodes * self.node_bytes)

    def describe(self) -> dict[str, float]:
        """The law's numbers for plan.json."""
        return {
            "cell_bytes": round(self.cell_bytes, 4),
            "fixed_bytes": self.fixed_bytes,
            "build_bytes": self.build_bytes,
            "row_bytes": self.row_bytes,
            "histogram_node_bytes": self.node_bytes,
            "stored_fraction": round(self.stored_fraction, 6),
            **({} if self.per_gene_bytes is None else {"per_gene_bytes": self.per_gene_bytes}),
        }


def memory_law(
    features: FeatureSet, options: Options, classes: int, *, largest_batch: int = 0, batch_rows: int = WHOLE_GROUP_ROWS
) -> MemoryLaw:
    """The law for a data set.

    Parameters
    ----------
    classes : int
        Number of classes (out-of-fold scores are held for each).
    largest_batch : int
        Bytes of the largest decoded batch plus its compressed row group.
    batch_rows : int
        Rows of that batch; a page of external memory holds one.
    """
    count = len(features.features)
    bins = bin_counts(features.distinct_at_most, options.max_bin)
    return MemoryLaw(
        cell_bytes=cell_bytes(features.densities, has_missing=features.has_missing, most_bins=max(bins)),
        fixed_bytes=BASELINE_BYTES,
        build_bytes=count * SKETCH_BYTES_PER_FEATURE + largest_batch,
        row_bytes=ROW_BYTES + 8 * classes,
        features=count,
        stored_fraction=sum(features.densities) / count,
        max_depth=options.max_depth,
        node_bytes=sum(bins) * HISTOGRAM_BYTES_PER_BIN,
        page_rows=batch_rows,
        per_gene_bytes=None if options.memory_per_gene_mb is None else options.memory_per_gene_mb * 2**20,
    )
