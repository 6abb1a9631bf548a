"""How long an instance will take, roughly: from the probe's own speeds, on the machine that plans."""

from __future__ import annotations

from dataclasses import dataclass

from metabatch.options import Options
from metabatch.resources.law import MemoryLaw
from metabatch.rundir.manifests import ProbeResult

# Without a probe: seconds per cell and tree on two cores, dense and zero-as-missing (FIELD_NOTES: 0.75 s and 0.16 s
# for 408k x 1,167), and per cell of matrix construction.
DENSE_TREE_SECONDS = 1.6e-9
STORED_TREE_SECONDS = 1.8e-9
BUILD_SECONDS = 2.5e-8
START_SECONDS = 5.0
# A tree with its pages in the page cache against one in memory (430,907 x 1,167: 1.4 dense, 1.7 zero-as-missing). And
# pages read from disk, bytes a second and tree: 187 s for the 7.5 GB that a hard limit of 2 GiB did not hold of 9.7.
EXTERNAL_SLOWDOWN = 1.6
DISK_BYTES_PER_SECOND = 4e7


@dataclass(frozen=True)
class Speed:
    """Seconds to build a matrix and to grow a tree, by rows."""

    build_per_row: float
    tree_per_row: float
    tree_start: float = 0.0


def speed_of(law: MemoryLaw, probe: ProbeResult | None, threads: int) -> Speed:
    """From the two sizes the probe tried; from constants where there is none, or its rows were too few to tell."""
    cores = 2 / max(threads, 1)
    stored = DENSE_TREE_SECONDS if law.stored_fraction >= 1 else STORED_TREE_SECONDS * law.stored_fraction
    known = Speed(law.features * BUILD_SECONDS * cores, law.features * stored * cores)
    if probe is None or probe.rows[-1] < 2 * probe.rows[0]:
        return known
    rows = probe.rows[-1] - probe.rows[0]
    tree = (probe.tree_seconds[-1] - probe.tree_seconds[0]) / rows
    build = (probe.build_seconds[-1] - probe.build_seconds[0]) / rows
    if tree <= 0 or build <= 0:
        return known
    return Speed(build, tree, max(0.0, probe.tree_seconds[0] - probe.rows[0] * tree))


def instance_seconds(
    law: MemoryLaw, speed: Speed, rows: int, options: Options, *, external: bool, budget_bytes: int
) -> float:
    """Expected duration of one instance, seconds.

    Parameters
    ----------
    budget_bytes : int
        What external memory does not need of it is left for the page cache; pages beyond are read from disk for
        every tree.
    """
    tree = speed.tree_start + rows * speed.tree_per_row
    if external:
        uncached = max(0.0, law.page_bytes(rows) - max(0, budget_bytes - law.external(rows)))
        tree = tree * EXTERNAL_SLOWDOWN + uncached / DISK_BYTES_PER_SECOND
    boosters = len(options.classes) * (options.n_folds + 1)
    trees = options.n_estimators * (0.5 if options.n_folds and options.early_stopping_patience else 1.0)
    return START_SECONDS + rows * speed.build_per_row + boosters * trees * tree
