"""Groups of features that say the same kind of thing, finer than those of the plan; told by the name alone.

base scores           the base model's scores at the position itself
neighbouring scores   a score column followed by _m or _p and a distance: donor_score_m3, acceptor_score_p10
derived scores        other columns named after a class that has a score (donor_peak_fraction, acceptor_max_up300),
                      and splice_probability, splice_neither_logodds, probability_entropy
3-mers, 5-mers, …     k-mer counts, by k
nucleotides           base_m12 … base_0 … base_p12
sequence composition  gc_content, sequence_complexity
context               everything else: gene length, distances, columns of one's own
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from metabatch.rundir.manifests import Feature

# Groups that come from the base scores.
SCORE_GROUPS = frozenset({"base scores", "neighbouring scores", "derived scores"})
_DERIVED = {"splice_probability", "splice_neither_logodds", "probability_entropy"}
_COMPOSITION = {"gc_content", "sequence_complexity"}
_NEIGHBOUR = re.compile(r"(.+)_[mp]\d+")
_NUCLEOTIDE = re.compile(r"base_(0|[mp]\d+)")


def group_of(feature: Feature, score_columns: Sequence[str]) -> str:
    """The group of a feature; see the module. `score_columns`: base score columns, whether features or not."""
    name = feature.name
    if feature.group == "kmer":
        return f"{name.partition('mer_')[0]}-mers"
    if feature.group == "score":
        return "base scores"
    neighbour = _NEIGHBOUR.fullmatch(name)
    if neighbour and neighbour[1] in score_columns:
        return "neighbouring scores"
    stems = tuple(f"{column.removesuffix('_score')}_" for column in score_columns)
    if name in _DERIVED or name.startswith(stems):
        return "derived scores"
    if _NUCLEOTIDE.fullmatch(name):
        return "nucleotides"
    return "sequence composition" if name in _COMPOSITION else "context"
