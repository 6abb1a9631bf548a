"""The features of a position: one module for training tables and for prediction, so that the two cannot differ.

Every value depends on the gene's sequence and scores and on the row's own place, on nothing else: which other rows
are asked for, in what batches and on how many threads leaves every bit as it is.
"""

from __future__ import annotations

from functools import lru_cache

import msgspec
import numpy as np
import pyarrow as pa

from metabatch.building.kmers import MOST_K, kmer_counts, kmer_names
from metabatch.building.score_features import score_features
from metabatch.building.sequence_features import composition, nucleotides, span_features
from metabatch.errors import InputError, UsageError

# Of the formulas: another one for any value of the same specification, scores and sequence, of a feature or of the
# built-in base model (pwm.py), is another version. Models of one version are not used with another.
FEATURES_VERSION = 1
# Cells (rows times columns) computed at once, and the fewest and most rows.
_CELLS, _FEWEST_ROWS, _MOST_ROWS = 20_000_000, 256, 8_192
_MOST_COUNT = np.iinfo(np.uint16).max
_ARROW = {np.dtype(name): pa.from_numpy_dtype(name) for name in ("uint8", "uint16", "int32", "float32")}


class FeatureSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which features a table has. All reaches are nt on each side.

    kmer_sizes : k of the k-mers counted, () for no counts. kmer_window : nt, odd; of k-mers, GC content and complexity.
    score_context : of the neighbours' scores that are columns. peak_context : of the local maximum.
    reach : of the highest score up- and downstream (0: none). nucleotides : of the bases that are columns.
    """

    kmer_sizes: tuple[int, ...] = (3,)
    kmer_window: int = 201
    score_context: int = 2
    peak_context: int = 10
    reach: int = 300
    nucleotides: int = 12

    def __post_init__(self) -> None:
        """Refuse what cannot be reckoned.

        Raises
        ------
        UsageError
            k outside of 1 to 6 or given twice, a window without a middle or shorter than k, a negative reach.
        """
        for k in self.kmer_sizes:
            if not 1 <= k <= MOST_K:
                raise UsageError(f"k-mers of {k} nt", expected=f"1 to {MOST_K} nt (none at all: no k-mer sizes)")
        if len(set(self.kmer_sizes)) != len(self.kmer_sizes):
            raise UsageError(f"k-mer sizes {self.kmer_sizes}", expected="each size once")
        window, k = self.kmer_window, max(self.kmer_sizes, default=1)
        if window % 2 == 0 or not k <= window <= _MOST_COUNT:
            raise UsageError(
                f"a k-mer window of {window} nt", expected=f"an odd number, {k} to {_MOST_COUNT}: the row is its middle"
            )
        for name, least in (("score_context", 0), ("peak_context", 1), ("reach", 0), ("nucleotides", 0)):
            if getattr(self, name) < least:
                raise UsageError(f"{name} = {getattr(self, name)} nt", expected=f"at least {least} nt on each side")


def feature_flank(spec: FeatureSpec) -> int:
    """nt of sequence needed on both sides of the gene."""
    return max(spec.kmer_window // 2, spec.nucleotides)


@lru_cache(maxsize=16)
def feature_schema(spec: FeatureSpec) -> pa.Schema:
    """The feature columns in order, in narrow types."""
    codes = np.zeros(1 + 2 * feature_flank(spec), np.uint8)
    columns = _columns(spec, codes, np.zeros((1, 3), np.float32), np.zeros(0, np.int64))
    return pa.schema([(name, _ARROW[values.dtype]) for name, values in columns.items()])


def rows_at_once(spec: FeatureSpec) -> int:
    """Rows to compute together: fewer of many columns, so that memory is bounded whatever the specification."""
    return min(max(_CELLS // len(feature_schema(spec)), _FEWEST_ROWS), _MOST_ROWS)


def feature_batch(spec: FeatureSpec, codes: np.ndarray, scores: np.ndarray, index: np.ndarray) -> pa.RecordBatch:
    """As `feature_columns`, for Arrow; columns as in `feature_schema`."""
    columns = feature_columns(spec, codes, scores, index)
    return pa.RecordBatch.from_arrays([arrow_array(values) for values in columns], names=feature_schema(spec).names)


def arrow_array(values: np.ndarray) -> pa.Array:
    """A column without a copy and without a look at its values.

    `pa.array` takes most of the time, with a thousand columns and few rows a gene.
    """
    return pa.Array.from_buffers(_ARROW[values.dtype], len(values), [None, pa.py_buffer(values)], 0)


def feature_columns(spec: FeatureSpec, codes: np.ndarray, scores: np.ndarray, index: np.ndarray) -> list[np.ndarray]:
    """The features of some positions of a gene, in the order of `feature_schema`.

    Parameters
    ----------
    codes : uint8, shape (length + 2 * feature_flank(spec),)
        Nucleotides on the transcript strand: A 0, C 1, G 2, T 3, N 4 (beyond the contig too).
    scores : float32, shape (length, 3)
        Base scores: neither, donor, acceptor, in transcript direction.
    index : int64, shape (n,)
        Rows wanted, 0 to length - 1 in transcript direction.

    Raises
    ------
    InputError
        As many scores as the sequence has positions are not there, or they are no probabilities.
    """
    length = len(codes) - 2 * feature_flank(spec)
    if scores.shape != (length, 3):
        raise InputError(f"base scores of shape {scores.shape}", expected=f"({length}, 3), as the gene is long")
    if len(index) and not (index.min() >= 0 and index.max() < length):
        raise IndexError(f"rows {index.min()} to {index.max()} of a gene of {length} nt")
    return list(_columns(spec, codes, scores, index).values())


def _columns(spec: FeatureSpec, codes: np.ndarray, scores: np.ndarray, index: np.ndarray) -> dict[str, np.ndarray]:
    at = index + feature_flank(spec)
    columns = score_features(
        scores, index, score_context=spec.score_context, peak_context=spec.peak_context, reach=spec.reach
    )
    columns |= nucleotides(codes, at, spec.nucleotides)
    counts = kmer_counts(codes, at - spec.kmer_window // 2, spec.kmer_window, {1, *spec.kmer_sizes})
    columns |= composition(counts[1])
    columns |= span_features(len(scores), index)
    for k in spec.kmer_sizes:
        columns |= zip(kmer_names(k), counts[k], strict=True)
    return columns
