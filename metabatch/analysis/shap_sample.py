"""A few rows kept while all rows stream by, the same whatever the chunks: for the plots of contributions."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from metabatch.analysis.sampling import quotas


@dataclass(frozen=True)
class Sample:
    """Rows kept, in the order of the data.

    row : number of each row in the stream. label : positions in the classes.
    values : float32, shape (n, d); NaN where missing. contributions : float32, shape (n, d); log-odds.
    """

    row: np.ndarray
    label: np.ndarray
    values: np.ndarray
    contributions: np.ndarray

    def __len__(self) -> int:
        return len(self.row)


class KeptRows:
    """Keeps at most `most` rows, of every class alike: those with the smallest of random keys.

    The keys come in the order of the rows from one generator, so that neither a chunk's size nor what came before it
    decides. Until all rows were seen up to one row a class more is kept, for the shares of the classes are not known.

    Parameters
    ----------
    classes, features : int
        For every row its values and, of every class's booster, its contributions are kept: float32.
    """

    def __init__(self, most: int, classes: int, features: int, seed: int) -> None:
        size = most + classes
        self._most, self._rng, self._seen = most, np.random.default_rng(seed), 0
        self._counts = np.zeros(classes, dtype=np.int64)
        self._key, self._label, self._row = np.full(size, np.inf), np.full(size, -1), np.full(size, -1)
        self._values = np.empty((size, features), dtype=np.float32)
        self._contributions = np.empty((classes, size, features), dtype=np.float32)

    def admit(self, label: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Look at the next rows; returns which of them are kept, and the places that `put` is to fill.

        Parameters
        ----------
        label : ndarray of int, shape (n,)
        values : ndarray of float32, shape (n, features)
        """
        self._counts += np.bincount(label, minlength=len(self._counts))
        # A class's share only falls while rows are added; the largest one is that of any class that is not whole.
        keys = np.concatenate([self._key, self._rng.random(len(label))])
        codes = np.concatenate([self._label, label.astype(np.int64)])
        stays = self._smallest(keys, codes, np.full(len(self._counts), quotas(self._counts, self._most).max()))
        size = len(self._key)
        self._label[~stays[:size]] = -1
        came = np.flatnonzero(stays[size:])
        places = np.flatnonzero(~stays[:size])[: len(came)]
        self._key[places], self._label[places] = keys[size + came], label[came]
        self._row[places], self._values[places] = self._seen + came, values[came]
        self._seen += len(label)
        return came, places

    def put(self, code: int, places: np.ndarray, contributions: np.ndarray) -> None:
        """Contributions of a class's booster for the rows that `admit` named, shape (len(places), features)."""
        self._contributions[code, places] = contributions

    def sample(self, code: int, features: np.ndarray) -> Sample:
        """The rows kept with the contributions of a class's booster, of some features."""
        chosen = np.flatnonzero(self._smallest(self._key, self._label, quotas(self._counts, self._most)))
        chosen = chosen[np.argsort(self._row[chosen])]
        cells = np.ix_(chosen, features)
        return Sample(self._row[chosen], self._label[chosen], self._values[cells], self._contributions[code][cells])

    @staticmethod
    def _smallest(keys: np.ndarray, codes: np.ndarray, quota: np.ndarray) -> np.ndarray:
        """Whether a row is among the `quota` of its class with the smallest keys, shape (n,)."""
        found = np.zeros(len(keys), dtype=bool)
        for code, most in enumerate(quota):
            here = np.flatnonzero(codes == code)
            found[here[np.argsort(keys[here], kind="stable")[:most]]] = True
        return found
