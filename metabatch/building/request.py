"""What is asked of `build-dataset`: the options that decide its output."""

from __future__ import annotations

from typing import Any, Literal, get_args

import msgspec

from metabatch.building.features import FeatureSpec
from metabatch.building.genes import Sites
from metabatch.building.rows import RowSampling
from metabatch.errors import UsageError

SubsetPolicy = Literal["all", "random", "errors"]
HOLDOUT_FRACTION = 0.1


class BuildRequest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The options of a data set.

    sites : of all transcripts, or of the canonical one. gene_types, gene_ids : the only ones taken; empty: all.
    subset_policy : how `n_genes` of them are taken: at random, or those in which the base model misses
    most sites.
    holdout_fraction, holdout_chrom : genes a base model that is fitted here (pwm) does not see; None: the default.
    rows_per_shard : rows expected of a shard, whole loci.
    """

    features: FeatureSpec = FeatureSpec()
    sampling: RowSampling = RowSampling()
    sites: Sites = "all"
    gene_types: tuple[str, ...] = ()
    gene_ids: tuple[str, ...] = ()
    n_genes: int | None = None
    subset_policy: SubsetPolicy = "all"
    holdout_fraction: float | None = None
    holdout_chrom: tuple[str, ...] = ()
    rows_per_shard: int = 100_000
    seed: int = 42


def check_request(request: BuildRequest, *, fits_base: bool) -> None:
    """Refuse what cannot be used.

    Parameters
    ----------
    fits_base : bool
        Whether the base model is fitted on genes of this data set.

    Raises
    ------
    UsageError
        An unknown name, a number out of range, or an option that would decide nothing.
    """
    for field, kind in (("sites", Sites), ("subset_policy", SubsetPolicy)):
        value: Any = getattr(request, field)
        if value not in get_args(kind):
            raise UsageError(f"{_flag(field)} {value} cannot be used", expected=" or ".join(get_args(kind)))
    for field, least in (("n_genes", 1), ("rows_per_shard", 1), ("seed", 0)):
        number = getattr(request, field)
        if number is not None and number < least:
            raise UsageError(f"{_flag(field)} {number} cannot be used", expected=f"{least} or more")
    if (request.n_genes is None) != (request.subset_policy == "all"):
        raise UsageError(
            f"--subset-policy {request.subset_policy} {'without' if request.n_genes is None else 'with'} --n-genes",
            expected="--n-genes N with --subset-policy random or errors, or neither of them",
        )
    for field in ("holdout_fraction", "holdout_chrom"):
        if getattr(request, field) not in (None, ()) and not fits_base:
            raise UsageError(
                f"{_flag(field)} decides nothing here: no base model is fitted",
                expected="it beside --base-model pwm; else give it to `plan`",
            )
    fraction = request.holdout_fraction
    if fraction is not None and not 0 < fraction < 1:
        raise UsageError(f"--holdout-fraction {fraction:g} cannot be used", expected="above 0 and below 1")
    if fraction is not None and request.holdout_chrom:
        raise UsageError("--holdout-fraction and --holdout-chrom", expected="one of them")


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"
