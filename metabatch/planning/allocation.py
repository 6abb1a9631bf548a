"""How many instances, and which genes in which: pure functions over the small gene table."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import polars as pl

from metabatch.data.partition import partition, seeded_rank, sizes_of, units_of

# Split groups are kept in one instance only while the largest is small beside an instance.
_UNIT_SHARE = 0.25
_SPREAD = 0.005
_MAX_SWAPS = 2_000


@dataclass(frozen=True)
class Allocation:
    """Genes per instance. `core[i]` and `overlap[i]` index rows of the gene table."""

    core: list[np.ndarray]
    overlap: list[np.ndarray]
    unit: str

    def rows(self, gene_rows: np.ndarray) -> np.ndarray:
        """Rows of each instance, shape (instances,)."""
        pairs = zip(self.core, self.overlap, strict=True)
        return np.array([gene_rows[c].sum() + gene_rows[o].sum() for c, o in pairs], dtype=np.int64)


def overlap_genes(genes_per_instance: int, overlap: float) -> int:
    """Genes an instance shares with others: floor(g x overlap), without float surprises."""
    return math.floor(genes_per_instance * overlap + 1e-9)


def instance_count(total: int, genes_per_instance: int, overlap: float, minimum: int) -> int:
    """max(minimum, 1 + ceil((total - g) / (g - floor(g*overlap)))): the first has no predecessor to share with.

    Source: SPEC 3 (the notes' own formula counts an overlap for the first instance too).
    """
    step = genes_per_instance - overlap_genes(genes_per_instance, overlap)
    return max(minimum, 1 + max(0, math.ceil((total - genes_per_instance) / step)))


def smallest_covering_size(total: int, instances: int, overlap: float) -> int:
    """The fewest genes per instance with which `instances` instances cover `total` genes."""
    low, high = 1, total
    while low < high:
        middle = (low + high) // 2
        if instance_count(total, middle, overlap, 1) <= instances:
            high = middle
        else:
            low = middle + 1
    return low


def allocate(
    genes: pl.DataFrame, classes: int, *, instances: int, genes_per_instance: int, overlap: float, by_split: bool,
    seed: int,
) -> Allocation:  # fmt: skip
    """Give every gene to one instance as core gene, balanced by rows, and fill up with overlap genes.

    Parameters
    ----------
    genes : polars.DataFrame
        Training genes, sorted by gene: gene, rows, n_0.., split.
    instances, genes_per_instance : int
        With instances x genes_per_instance >= number of genes.
    by_split : bool
        Keep split groups in one instance where the largest is small beside an instance.

    Returns
    -------
    Allocation
        Deterministic for a seed and a gene table; independent of the order of rows and shards.
    """
    rows = genes["rows"].to_numpy()
    units = units_of(genes, classes, by_split=by_split)
    unit_name = "split group" if by_split else "gene"
    most_rows, most_genes = int(units["rows"].to_numpy().max()), int(units["genes"].to_numpy().max())
    if most_rows > _UNIT_SHARE * rows.sum() / instances or most_genes > 1 + genes_per_instance // 20:
        units, unit_name = units_of(genes, classes, by_split=False), "gene"
    bins = _core_bins(units, classes, instances, genes_per_instance, seed)
    if (bins < 0).any():  # whole groups did not fit beside each other
        units, unit_name = units_of(genes, classes, by_split=False), "gene"
        bins = _core_bins(units, classes, instances, genes_per_instance, seed)
    place = {g: i for i, g in enumerate(genes["gene_id"])}
    unit_of = np.empty(genes.height, dtype=np.int64)
    for number, members in enumerate(units["members"]):
        for member in members:
            unit_of[place[member]] = number
    gene_bin = bins[unit_of]
    core = [np.flatnonzero(gene_bin == i) for i in range(instances)]
    room = [0 if overlap == 0 else max(0, genes_per_instance - len(c)) for c in core]
    extra = _overlap(core, room, rows, seeded_rank(genes["gene_id"].to_list(), seed + 1))
    return Allocation(core, extra, unit_name)


def _core_bins(units: pl.DataFrame, classes: int, instances: int, capacity: int, seed: int) -> np.ndarray:
    rank = seeded_rank(units["unit"].to_list(), seed)
    sizes = sizes_of(units, classes, class_weight=0.3)[:, 1:]  # rows first; gene counts may differ
    counts = units["genes"].to_numpy()
    bins = partition(sizes, [1 / instances] * instances, rank, capacity=np.full(instances, capacity), counts=counts)
    if (bins >= 0).all():
        _even_out(bins, units["rows"].to_numpy(), counts, instances)
    return bins


def _even_out(bins: np.ndarray, rows: np.ndarray, counts: np.ndarray, instances: int) -> None:
    """Swap units of equal gene count between the fullest and the emptiest bin until rows are even, in place."""
    load = np.bincount(bins, weights=rows, minlength=instances)
    for _ in range(_MAX_SWAPS):
        full, empty = int(load.argmax()), int(load.argmin())
        gap = load[full] - load[empty]
        if gap <= _SPREAD * load.mean():
            return
        best: tuple[float, int, int] | None = None
        for size in np.unique(counts):
            here = np.flatnonzero((bins == full) & (counts == size))
            there = np.flatnonzero((bins == empty) & (counts == size))
            if not len(here) or not len(there):
                continue
            there = there[np.argsort(rows[there], kind="stable")]
            slot = np.searchsorted(rows[there], rows[here] - gap / 2)
            for shift in (-1, 0):
                partner = there[np.clip(slot + shift, 0, len(there) - 1)]
                left = np.abs(gap - 2 * (rows[here] - rows[partner]))
                pick = int(left.argmin())
                if best is None or left[pick] < best[0]:
                    best = (float(left[pick]), int(here[pick]), int(partner[pick]))
        if best is None or best[0] >= gap:
            return
        _, a, b = best
        bins[a], bins[b] = empty, full
        load[full] -= rows[a] - rows[b]
        load[empty] += rows[a] - rows[b]


def _overlap(core: list[np.ndarray], room: list[int], rows: np.ndarray, rank: np.ndarray) -> list[np.ndarray]:
    """Genes of other instances that fill the free places; the least shared first, rows kept even."""
    if not any(room):
        return [np.empty(0, dtype=np.int64) for _ in core]
    shared = np.zeros(len(rows), dtype=np.int64)
    core_rows = np.array([rows[c].sum() for c in core], dtype=np.float64)
    # Every instance should end with the same rows; the free places take the mean gene.
    goal = core_rows.max() + rows.mean() * min(room)
    result = []
    for index, places in enumerate(room):
        own = np.zeros(len(rows), dtype=bool)
        own[core[index]] = True
        candidates = np.flatnonzero(~own)
        candidates = candidates[np.lexsort((rank[candidates], shared[candidates]))]
        picked = _pick(candidates, min(places, len(candidates)), goal - core_rows[index], rows)
        shared[picked] += 1
        result.append(np.sort(picked))
    return result


def _pick(candidates: np.ndarray, places: int, goal: float, rows: np.ndarray) -> np.ndarray:
    """`places` of the candidates whose rows add up to about `goal`: drawn in order, then exchanged."""
    picked, rest = candidates[:places].copy(), candidates[places:].copy()
    for _ in range(_MAX_SWAPS):
        over = rows[picked].sum() - goal
        if not len(rest) or not len(picked) or abs(over) <= max(1.0, 0.001 * goal):
            break
        order = np.argsort(rows[rest], kind="stable")
        slot = np.clip(np.searchsorted(rows[rest][order], rows[picked] - over), 0, len(rest) - 1)
        left = np.abs(over - (rows[picked] - rows[rest[order[slot]]]))
        best = int(left.argmin())
        if left[best] >= abs(over):
            break
        swap = order[slot[best]]
        picked[best], rest[swap] = rest[swap], picked[best]
    return picked
