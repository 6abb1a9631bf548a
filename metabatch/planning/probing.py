"""Starting the probe: a child process that tries a few thousand real rows (`metabatch.training.probe`)."""

from __future__ import annotations

import logging
import math
import os
import sys
from collections.abc import Sequence

import msgspec
import numpy as np

from metabatch.data.batches import Piece
from metabatch.data.cuts import cut_table
from metabatch.options import Options
from metabatch.resources.limits import memory_limits
from metabatch.resources.signals import stop_on_signal
from metabatch.resources.supervise import supervise
from metabatch.rundir.manifests import Booster, Columns, FeatureSet, ProbeResult, save
from metabatch.rundir.probing import Request
from metabatch.rundir.scratch import private_folder

log = logging.getLogger(__name__)
# Two sizes, a multiple of the probe's batches; the growth between them tells the bytes per cell.
PROBE_ROWS = [4_096, 20_480]
# Below this a matrix takes less than the libraries vary.
SMALLEST_CELLS = 8_000_000


def run_probe(
    pieces: Sequence[Piece], features: FeatureSet, cuts: Sequence[np.ndarray], columns: Columns, options: Options,
    booster: Booster, threads: int, rows: int, large: tuple[str, int] | None,
) -> tuple[ProbeResult | None, str | None]:  # fmt: skip
    """Try rows from row groups spread over `pieces`, and reading the `large` one (file and row group).

    Returns
    -------
    result : ProbeResult or None
        None also for a table whose matrix is so small that its memory is that of the libraries.
    warning : str or None
        Why a trial failed; the law then stands on its formulas alone.
    """
    if rows * len(features.features) < SMALLEST_CELLS:
        return None, None
    # As many row groups as give enough rows when each gives a batch, spread over the data set.
    wanted = math.ceil(PROBE_ROWS[-1] / max(1, min(PROBE_ROWS[0], rows // len(pieces)))) + 1
    chosen = [pieces[round(x)] for x in np.linspace(0, len(pieces) - 1, min(len(pieces), wanted))]
    with private_folder("probe") as folder, stop_on_signal() as stop:
        request = Request(
            parent=os.getpid(), pieces=[(str(p.file), p.row_group) for p in chosen], rows=PROBE_ROWS,
            large=large, columns=columns, options=msgspec.structs.replace(options, device="cpu"), booster=booster,
            threads=threads,
        )  # fmt: skip
        save(folder / "request.json", request)
        save(folder / "features.json", features)
        cut_table([f.name for f in features.features], cuts).write_parquet(folder / "cuts.parquet")
        end = supervise([sys.executable, "-m", "metabatch.training.probe", str(folder)], memory_limits()[0].bytes, stop,
                        lambda: False)  # fmt: skip
        stop.check()
    if end.code != 0:
        how = "ran out of memory" if end.out_of_memory or end.over_budget else f"ended with status {end.code}"
        return None, f"the memory probe {how}: the prediction stands on formulas alone"
    result = msgspec.json.decode(end.output, type=ProbeResult)
    log.info("memory probe: %d rows, %.2f s to build, %.3f s a tree", result.rows[-1], result.build_seconds[-1],
             result.tree_seconds[-1])  # fmt: skip
    return result, None
