"""What is asked of `predict`: the options that decide its output."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import msgspec
import numpy as np

from metabatch.errors import UsageError

UNCERTAIN_LOW, UNCERTAIN_HIGH = 0.02, 0.80
Mode = Literal["meta_only", "hybrid", "base_only"]
Coverage = Literal["complete", "selective"]
Format = Literal["parquet", "tsv", "bedgraph"]


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The options of a prediction; None: not given.

    mode : whose score is the final one: the meta-model's, the base model's, or by the row (`hybrid`).
    uncertain_low, uncertain_high : the base model is uncertain where low <= its highest site score < high.
    coverage : `selective` writes the uncertain rows only.
    columns : further columns of the data for the output.
    position_base : number of a chromosome's first position, 0 or 1.
    """

    mode: Mode = "meta_only"
    uncertain_low: float | None = None
    uncertain_high: float | None = None
    coverage: Coverage = "complete"
    columns: tuple[str, ...] = ()
    format: Format = "parquet"
    position_base: int | None = None
    chrom_column: str | None = None
    position_column: str | None = None
    strand_column: str | None = None

    @property
    def selective(self) -> bool:
        return self.coverage == "selective"

    @property
    def zone(self) -> tuple[float, float] | None:
        """Low and high end of the uncertain zone; None where it decides nothing."""
        if self.mode != "hybrid" and not self.selective:
            return None
        low = UNCERTAIN_LOW if self.uncertain_low is None else self.uncertain_low
        high = UNCERTAIN_HIGH if self.uncertain_high is None else self.uncertain_high
        return low, high


@dataclass(frozen=True)
class GenomeAsked:
    """Positions of a genome.

    annotation or regions (BED) : which. scores : files of base scores. weights : of a network.
    gene_ids : the only genes taken, empty: all.
    """

    genome: Path
    annotation: Path | None = None
    regions: Path | None = None
    scores: tuple[Path, ...] = ()
    weights: tuple[Path, ...] = ()
    gene_ids: tuple[str, ...] = ()


def check_request(request: Request) -> None:
    """Refuse what cannot be used.

    Raises
    ------
    UsageError
        An unknown name, an empty zone, a column named twice, or an option that would decide nothing.
    """
    for field, kind in (("mode", Mode), ("coverage", Coverage), ("format", Format)):
        value: Any = getattr(request, field)
        if value not in get_args(kind):
            raise UsageError(f"--{field} {value} cannot be used", expected=" or ".join(get_args(kind)))
    _check_zone(request)
    twice = sorted({c for c in request.columns if request.columns.count(c) > 1})
    if twice:
        raise UsageError(f"--columns names {', '.join(twice)} twice", expected="each column once")
    for field in ("position_base", "chrom_column", "position_column", "strand_column"):
        if getattr(request, field) is not None and request.format != "bedgraph":
            raise UsageError(f"{_flag(field)} decides nothing here", expected="it beside --format bedgraph")
    if request.position_base not in (None, 0, 1):
        raise UsageError(f"--position-base {request.position_base} cannot be used", expected="0 or 1")


def _check_zone(request: Request) -> None:
    given = [f for f in ("uncertain_low", "uncertain_high") if getattr(request, f) is not None]
    if request.zone is None:
        if given:
            raise UsageError(
                f"{_flag(given[0])} decides nothing here", expected="it beside --mode hybrid or --coverage selective"
            )
        return
    low, high = request.zone
    # As float32, like the scores: two numbers that are one there have no zone between them.
    if not (math.isfinite(low) and math.isfinite(high) and np.float32(low) < np.float32(high)):
        raise UsageError(
            f"--uncertain-low {low:g} and --uncertain-high {high:g} leave no zone",
            expected="numbers with low < high",
        )


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"
