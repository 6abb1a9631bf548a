"""Feature hashing of wide k-mers: thousands of columns as a few hundred sums, of which each k-mer is in one.

Each k-mer is added to, or by its hash subtracted from, one of the sums (scikit-learn's `FeatureHasher`; K. Weinberger
and others, "Feature hashing for large scale multitask learning", ICML 2009). The sums are linear in the counts, so a
line over them is a line over the k-mers, too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction import FeatureHasher

from metabatch.data.schema import wide_kmers


class Hasher:
    """Preprocessed rows with their wide k-mers hashed.

    Parameters
    ----------
    names : sequence of str
        d features, some of them wide k-mers.
    sums : int
        How many columns stand for these.

    Attributes
    ----------
    names, features : list of str
        Of the rows before and after: w names, the features that are left as they are and then `kmer_hash_0` ….
    own, wide : ndarray of int
        Positions of both kinds among the d.
    signs : scipy.sparse.csr_matrix of float32, shape (len(wide), sums)
        One number a row, 1 or -1.
    """

    def __init__(self, names: Sequence[str], sums: int) -> None:
        self.names = list(names)
        kmers = wide_kmers(names)
        among = set(kmers)
        self.own = np.array([i for i, name in enumerate(names) if name not in among], dtype=np.int64)
        self.wide = np.array([i for i, name in enumerate(names) if name in among], dtype=np.int64)
        self.features = [*(self.names[i] for i in self.own), *(f"kmer_hash_{i}" for i in range(sums))]
        self.signs = FeatureHasher(sums, input_type="string", dtype=np.float32).transform([name] for name in kmers)

    def hashed(self, batch: np.ndarray) -> np.ndarray:
        """Float32, shape (n, d), NaN where missing, to shape (n, w). A missing k-mer counts as 0."""
        found = np.empty((len(batch), len(self.features)), dtype=np.float32)
        found[:, : len(self.own)] = batch[:, self.own]
        counts = batch[:, self.wide]
        np.nan_to_num(counts, copy=False, nan=0.0)
        found[:, len(self.own) :] = counts @ self.signs
        return found
