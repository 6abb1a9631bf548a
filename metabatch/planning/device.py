"""What a plan says of the GPU that its instances are to be trained on."""

from __future__ import annotations

from collections.abc import Sequence

from metabatch.errors import BudgetError
from metabatch.options import Options
from metabatch.resources.gpu import NO_CUDA, cuda_is_built_in, device_bytes, visible_gpu
from metabatch.rundir.manifests import Alternative, FeatureSet, PlannedInstance


def check_cuda(options: Options) -> None:
    """Refuse `--device cuda` where nothing installed could use a GPU.

    Raises
    ------
    BudgetError
        Saying so.
    """
    if options.device == "cuda" and not cuda_is_built_in():
        raise BudgetError(
            f"--device cuda cannot be had: {NO_CUDA}",
            next_step="plan in the image for GPUs, or with --device auto or cpu",
        )


def gpu_alternative(options: Options, features: FeatureSet, rows: int) -> Alternative:
    """`single` on a GPU, beside the strategies on the CPU; its memory is the GPU's, its time was never measured."""
    needed = device_bytes(rows, features.bins, options.max_depth, missing=features.has_missing)
    gpu, why_not = visible_gpu()
    if gpu is not None:
        if needed > gpu.free_bytes:
            why_not = f"too large for {gpu.name}, {gpu.free_bytes / 2**30:.1f} GB free"
        else:
            why_not = "only when asked for" if cuda_is_built_in() else NO_CUDA
    return Alternative(
        strategy="single, --device cuda", instances=1, predicted_peak_bytes=needed, page_cache_bytes=0,
        relative_time=None, why_not=f"memory of the GPU, by its layout; {why_not}",
    )  # fmt: skip


def gpu_notes(options: Options, features: FeatureSet, instances: Sequence[PlannedInstance]) -> list[str]:
    """What the largest instance needs of a GPU, and whether one is here."""
    if options.device == "cpu":
        return []
    rows = max(p.rows for p in instances)
    needed = device_bytes(rows, features.bins, options.max_depth, missing=features.has_missing)
    gpu, why = visible_gpu()
    here = why if gpu is None else f"here: {gpu.name}, {gpu.free_bytes / 2**30:.1f} GB free"
    size = f"about {needed / 2**30:.1f} GB of a GPU's memory (by its layout, not measured)"
    return [f"--device {options.device}: {size}; {here}"]
