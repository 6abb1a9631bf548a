"""Where the boosters of an attempt are trained: on the CPU, or on a GPU that has room for them."""

from __future__ import annotations

import logging

import msgspec

from metabatch.errors import BudgetError
from metabatch.resources.gpu import NO_CUDA, cuda_is_built_in, device_bytes, visible_gpu
from metabatch.rundir.manifests import FeatureSet, Plan
from metabatch.training.ladder import Rung

log = logging.getLogger(__name__)


def on_its_device(plan: Plan, features: FeatureSet, rows: int, rung: Rung) -> tuple[Plan, str]:
    """The plan with the device that its boosters get, and why it is that one.

    Raises
    ------
    BudgetError
        `--device cuda`, and no GPU can be had or it is too small.
    """
    asked = plan.options.device
    if asked == "cpu":
        return plan, "--device cpu"
    lacking, found = _lacking(plan, features, rows, rung)
    if lacking is None:
        log.info("trained on the GPU: %s", found)
        return _with(plan, "cuda"), found
    if asked == "auto":
        log.warning("trained on the CPU: %s", lacking)
        return _with(plan, "cpu"), lacking
    raise BudgetError(
        f"--device cuda cannot be had: {lacking}",
        expected="a GPU that this process may use, with room for the matrix",
        next_step="submit with --gres=gpu:1 to nodes that have one, or plan again with --device auto or cpu",
    )


def _lacking(plan: Plan, features: FeatureSet, rows: int, rung: Rung) -> tuple[str | None, str]:
    """What a GPU lacks, or None; and the GPU."""
    if rung.external:
        return "pages on disk are trained on by the CPU", ""
    if not cuda_is_built_in():
        return NO_CUDA, ""
    gpu, why = visible_gpu()
    if gpu is None:
        return why, ""
    needed = device_bytes(rows, features.bins, plan.options.max_depth, missing=features.has_missing)
    text = f"{gpu.name}, {gpu.free_bytes / 2**30:.1f} GB free, {needed / 2**30:.1f} GB needed"
    return (None if needed <= gpu.free_bytes else f"too little memory on {text}"), text


def _with(plan: Plan, device: str) -> Plan:
    return msgspec.structs.replace(plan, options=msgspec.structs.replace(plan.options, device=device))
