"""pandas is installed for shap's plots; nothing else here needs it.

xgboost, scikit-learn and pyarrow import it wherever they find it, for 30 MB and a quarter of a process's start. The
executables (bin/_run sets METABATCH_WITHOUT_PANDAS) do not let them find it until those plots are drawn. A program that
imports metabatch keeps its pandas.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec


class _NotFound(MetaPathFinder):
    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        if fullname == "pandas":
            raise ModuleNotFoundError("pandas is kept out of this process", name="pandas")
        return None


_FINDER = _NotFound()


def keep_pandas_out() -> None:
    """From now on pandas is not found, as if it were not installed; no use where it was imported before."""
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


def let_pandas_in() -> None:
    """Let it be found again."""
    if _FINDER in sys.meta_path:
        sys.meta_path.remove(_FINDER)
