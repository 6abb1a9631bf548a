"""pruned_features.json: which features were dropped, and why."""

from __future__ import annotations

from typing import Literal

import msgspec

from metabatch.pruning.request import PruneRequest
from metabatch.rundir.layout import FORMAT_VERSION

Reason = Literal["constant", "near-constant", "duplicate", "correlated", "excluded"]
RECORD = "pruned_features.json"


class Pruned(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A dropped feature.

    against : the feature that is kept and says the same; None where it says nothing itself.
    statistic, value : the number that decided (`share` of the rows with the most frequent value, `pearson`,
        `spearman`); None for a duplicate, which agrees in every row, and for what the user named.
    rows : rows it was seen on: all, or those of the sample; 0 for what the user named.
    said : the same in words; of two why it is not the other that went.
    """

    feature: str
    reason: Reason
    against: str | None
    statistic: Literal["share", "pearson", "spearman"] | None
    value: float | None
    rows: int
    said: str


class Sampled(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whole genes drawn over all shards. rows_of_genes : theirs; rows : those kept of them, evenly spread."""

    genes: int
    shards: int
    rows_per_shard: int
    rows_of_genes: int
    rows: int


class PrunedFeatures(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The record.

    inputs : sha256 of each shard pruned. columns, rows : of the data set as it was.
    protected : column -> why it is kept whatever it holds.
    not_correlated : features that the correlation did not look at, which are kept: those that vary least, beyond
        --max-corr-cols, and those with one value in the sample; all of them when it is off.
    """

    format_version: int = FORMAT_VERSION
    metabatch_version: str
    seed: int
    request: PruneRequest
    inputs: dict[str, str]
    columns: int
    rows: int
    sample: Sampled
    protected: dict[str, str]
    pruned: tuple[Pruned, ...]
    not_correlated: tuple[str, ...]
    notes: tuple[str, ...]
