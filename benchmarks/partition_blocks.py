"""What XGBoost holds beside the matrix to sort the rows of each page of external memory into the nodes of a tree.

    python benchmarks/partition_blocks.py [--rows 1000000]

Prints bytes a page beyond those of one single page, and the part of a block (32 KiB; one a node of the deepest level
that is split, and one per 2,048 rows) that was touched: BLOCK_BYTES of metabatch/resources/law.py is the most of it.
Random labels make nodes of equal size, which touch most.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import xgboost as xgb

FEATURES, TREES = 20, 3
DEPTHS, PAGES = (3, 6, 8), (4_096, 8_192, 16_384, 32_768)


class Noise(xgb.DataIter):
    """Random numbers and labels in batches of `page` rows."""

    def __init__(self, rows: int, page: int, folder: str) -> None:
        self._rows, self._page, self._at = rows, page, 0
        super().__init__(cache_prefix=f"{folder}/pages", on_host=False)

    def reset(self) -> None:
        self._at = 0

    def next(self, input_data: Callable[..., None]) -> bool:
        size = min(self._page, self._rows - self._at)
        if size <= 0:
            return False
        rng = np.random.default_rng(self._at)
        values = rng.random((size, FEATURES), dtype=np.float32)
        input_data(data=values, label=(rng.random(size) < 0.5).astype(np.float32))
        self._at += size
        return True


def grown(rows: int, page: int, depth: int) -> int:
    """Growth of this process's anonymous memory by a few trees, bytes."""
    from metabatch.resources.usage import anonymous_bytes, trim_memory

    with tempfile.TemporaryDirectory() as folder:
        source = Noise(rows, page, folder)
        matrix = xgb.ExtMemQuantileDMatrix(source, nthread=2)
        trim_memory()
        before = anonymous_bytes()
        booster = xgb.train({"tree_method": "hist", "max_depth": depth, "nthread": 2}, matrix, TREES)
        after = anonymous_bytes()
        del booster, matrix, source
    return after - before


def main() -> None:
    """Each measurement in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--one", nargs=2, type=int, metavar=("PAGE", "DEPTH"))
    given = parser.parse_args()
    if given.one:
        print(grown(given.rows, *given.one))
        return

    def measured(page: int, depth: int) -> int:
        words = [sys.executable, str(Path(__file__)), "--rows", str(given.rows), "--one", str(page), str(depth)]
        return int(subprocess.run(words, check=True, capture_output=True, text=True).stdout)

    print("| depth | rows a page | KiB a page | of a block KiB |\n|---|---|---|---|")
    for depth in DEPTHS:
        single = measured(given.rows, depth)
        for page in PAGES:
            pages = given.rows / page
            # A single page has blocks too: 32 KiB per 2,048 rows.
            more = (measured(page, depth) - single + given.rows * 16) / pages / 1024
            print(f"| {depth} | {page:,} | {more:,.0f} | {more / (2 ** (depth - 1) + page / 2048):.1f} |", flush=True)


if __name__ == "__main__":
    main()
