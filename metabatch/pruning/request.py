"""What is asked of `prune-features`: the options that decide which features go."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import msgspec

from metabatch.errors import UsageError

Correlation = Literal["either", "pearson", "spearman"]


class PruneRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of a pruning, as written into pruned_features.json.

    keep : columns that are never dropped.
    max_correlation : |r| above this makes one of two features redundant; 1: none is.
    correlation : which of the two has to be above it.
    near_constant : a value that at least this part of all rows has makes a feature near-constant; 1: none is.
    max_corr_cols : most columns compared by correlation.
    sample_rows_per_shard : None: `SAMPLE_ROWS` over all shards.
    """

    keep: tuple[str, ...] = ()
    max_correlation: float = 0.98
    correlation: Correlation = "either"
    near_constant: float = 0.9999
    max_corr_cols: int = 5_000
    sample_rows_per_shard: int | None = None


def check_request(request: PruneRequest) -> PruneRequest:
    """Refuse what cannot be used.

    Raises
    ------
    UsageError
        Naming the option, the value and what it may be.
    """
    kinds: Any = get_args(Correlation)
    if request.correlation not in kinds:
        raise UsageError(f"--correlation {request.correlation} cannot be used", expected=" or ".join(kinds))
    for field in ("max_correlation", "near_constant"):
        value = getattr(request, field)
        if not (math.isfinite(value) and 0.5 <= value <= 1):
            raise UsageError(
                f"--{field.replace('_', '-')} {value:g} is out of range", expected="a number from 0.5 to 1 (1: off)"
            )
    if request.max_corr_cols < 0:
        raise UsageError(f"--max-corr-cols {request.max_corr_cols} is out of range", expected="0 (none) or more")
    if request.sample_rows_per_shard is not None and request.sample_rows_per_shard < 1:
        raise UsageError(
            f"--sample-rows-per-shard {request.sample_rows_per_shard} is out of range", expected="1 or more"
        )
    return request
