"""The GPU that a process would train on: which one, the memory it has free, and what a matrix needs there.

Nothing here was measured on a GPU: the sizes follow from XGBoost's own layout, and are there to refuse what cannot fit.
"""

from __future__ import annotations

import math
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

# The CUDA context with XGBoost's kernels, and per row: gradients as floats and as integers, predictions, labels,
# weights, and two lists of rows by node.
CONTEXT_BYTES, ROW_BYTES = 700 << 20, 64
_HISTOGRAM_ENTRY = 16  # two sums of eight bytes a bin
_ASK_SECONDS = 20.0
NO_CUDA = "this XGBoost is built for the CPU (the image's --build-arg DEVICE=gpu has the other one)"


@dataclass(frozen=True)
class Gpu:
    """What nvidia-smi says of it."""

    name: str
    free_bytes: int


def visible_gpu() -> tuple[Gpu | None, str]:
    """The first GPU this process may use, and, when there is none, why."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None and visible.strip() in ("", "-1"):
        return None, "CUDA_VISIBLE_DEVICES hides every GPU"
    chosen = [] if visible is None else [f"--id={visible.split(',')[0].strip()}"]
    command = ["nvidia-smi", *chosen, "--query-gpu=name,memory.free", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=_ASK_SECONDS)
        name, _, free = done.stdout.splitlines()[0].rpartition(",")
        return Gpu(name.strip(), int(free) << 20), ""
    except FileNotFoundError:
        return None, "no GPU is to be seen (there is no nvidia-smi)"
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as error:
        return None, f"no GPU is to be seen: {error}"


def cuda_is_built_in() -> bool:
    """Whether the installed XGBoost can use a GPU at all."""
    import xgboost as xgb  # not for a process that only looks at limits

    return bool(xgb.build_info().get("USE_CUDA"))


def device_bytes(rows: int, bins: Sequence[int], max_depth: int, *, missing: bool) -> int:
    """Memory of a booster and its matrix on the GPU, bytes.

    XGBoost's Ellpack page (src/data/ellpack_page.cu, CalcNumSymbols) has a symbol a cell: of as many bits as the bins
    of the largest feature need, or, where cells are missing and rows have different lengths, the bins of all features
    together. Here every row counts as long as there are features.

    Parameters
    ----------
    bins : sequence of int
        Bins of each feature.
    """
    symbols = sum(bins) + 1 if missing else max(bins)
    cell_bits = max(1, math.ceil(math.log2(max(2, symbols))))
    nodes = min(2**max_depth, max(1, rows // 16))
    page = rows * len(bins) * cell_bits / 8
    return round(CONTEXT_BYTES + page + rows * ROW_BYTES + nodes * sum(bins) * _HISTOGRAM_ENTRY)
