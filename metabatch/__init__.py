"""metabatch: gradient-boosted meta-models on tables larger than the memory a job is given."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from metabatch.lean import keep_pandas_out

if TYPE_CHECKING:
    from metabatch.ensemble.estimator import MetaModel

if os.environ.get("METABATCH_WITHOUT_PANDAS"):  # an executable: see metabatch/lean.py
    keep_pandas_out()

__version__ = "0.1.0"
__all__ = ["__version__", "load"]


def load(path: Any, *, fill_missing_kmers: bool = False) -> MetaModel:
    """Load a trained model as one scikit-learn style classifier.

    Parameters
    ----------
    path : str or pathlib.Path
        A run directory, its ``ensemble`` folder, or a copy of that folder.
    fill_missing_kmers : bool
        Let k-mer count columns that the data lacks be 0 instead of an error.

    Returns
    -------
    MetaModel
        With ``predict_proba(X) -> (n, n_classes)``, ``predict(X)``, ``classes_``
        (sorted), ``feature_names``.

    Raises
    ------
    metabatch.errors.InputError
        When no complete bundle lies there or a file differs from its recorded checksum.
    """
    from metabatch.ensemble.bundle import load_bundle  # xgboost is imported only when a model is

    return load_bundle(path, fill_missing_kmers=fill_missing_kmers)
