"""The same genes, folds and trees by others: peak memory, time and out-of-fold AP beside metabatch's.

    uv pip install lightgbm pandas
    PYTHONPATH=. python benchmarks/compare.py --sections peers [--trees 10] [--repeat 3]

Every peer runs in a process of its own and fits five folds and a final model for each of three classes, as an
instance does, with the same folds, depth, learning rate and number of trees; no early stopping on any side. "usual" is
what people write: polars -> pandas -> float64 -> XGBClassifier, one fit per fold and class. Memory is VmHWM.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from runs import make_plan, train

PEERS = ("usual", "lightgbm", "hgb")
CLASSES = ("neither", "donor", "acceptor")
DEPTH, RATE, THREADS = 6, 0.1, 2


def peak_rss() -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM:"))


def usual_table(data: Path, folds: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The table as people load it: one pandas frame, features as one float64 array."""
    frame = pl.read_parquet(data / "*.parquet").join(pl.read_parquet(folds), on="gene_id").to_pandas()
    names = [c for c in frame.columns if c not in ("gene_id", "chrom", "position", "splice_type", "fold")]
    return frame[names].to_numpy(dtype=np.float64), frame["splice_type"].to_numpy(), frame["fold"].to_numpy()


def estimator(peer: str, trees: int) -> Any:
    if peer == "usual":
        from xgboost import XGBClassifier

        return XGBClassifier(n_estimators=trees, max_depth=DEPTH, learning_rate=RATE, subsample=0.8,
                             colsample_bytree=0.8, n_jobs=THREADS, tree_method="hist")  # fmt: skip
    if peer == "lightgbm":
        from lightgbm import LGBMClassifier

        return LGBMClassifier(n_estimators=trees, max_depth=DEPTH, num_leaves=2**DEPTH, learning_rate=RATE,
                              subsample=0.8, subsample_freq=1, colsample_bytree=0.8, n_jobs=THREADS,
                              verbose=-1)  # fmt: skip
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=trees, max_depth=DEPTH, max_leaf_nodes=2**DEPTH, learning_rate=RATE,
                                          early_stopping=False)  # fmt: skip


def run_peer(peer: str, data: Path, folds: Path, trees: int) -> dict[str, Any]:
    """Fit everything in this process; seconds by step, peak memory, AP per class."""
    from sklearn.metrics import average_precision_score

    start = time.perf_counter()
    features, label, fold = usual_table(data, folds)
    loaded = time.perf_counter()
    ap, fitting, scoring = {}, 0.0, 0.0
    for name in CLASSES:
        positive, scores = label == name, np.full(len(label), np.nan)
        for number in [*np.unique(fold), None]:
            begin = time.perf_counter()
            kept = np.ones(len(fold), bool) if number is None else fold != number
            model = estimator(peer, trees).fit(features[kept], positive[kept])
            fitted = time.perf_counter()
            fitting += fitted - begin
            if number is not None:
                scores[~kept] = model.predict_proba(features[~kept])[:, 1]
            scoring += time.perf_counter() - fitted
            del model
        ap[name] = float(average_precision_score(positive, scores))
    steps = {"load": loaded - start, "fit (with its own binning each time)": fitting, "score": scoring}
    return {"peer": peer, "peak": peak_rss(), "seconds": time.perf_counter() - start, "ap": ap, "steps": steps}


def run_metabatch(data: Path, run: Path, trees: int, strategy: str) -> dict[str, Any]:
    """Plan and train one instance; the time is that of both."""
    start = time.perf_counter()
    make_plan(data, run, "--strategy", strategy, "--n-estimators", str(trees), "--n-folds", "5", "--threads",
              str(THREADS), "--learning-rate", str(RATE), "--max-depth", str(DEPTH))  # fmt: skip
    planned = time.perf_counter()
    done = train(run)
    metrics = json.loads((run / "instances/00/metrics.json").read_text())["classes"]
    return {
        "peer": f"metabatch, {strategy}", "peak": done.usage["measured_peak_bytes"],
        "seconds": time.perf_counter() - start, "ap": {c: metrics[c]["before_calibration"]["ap"] for c in CLASSES},
        "steps": {"plan": planned - start} | {p["name"]: p["seconds"] for p in done.usage["phases"]},
    }  # fmt: skip


def peers_table(data: Path, place: Path, trees: int, repeat: int, peers: Sequence[str] = PEERS) -> Iterator[str]:
    """Lines of a table: everybody on the same genes, folds and trees, `repeat` times in turn; medians."""
    runs: dict[str, list[dict[str, Any]]] = {}
    folds = place / "folds.parquet"
    for turn in range(repeat):
        for strategy in ("single", "external"):
            run = place / f"{strategy}-{turn}"
            result = run_metabatch(data, run, trees, strategy)
            runs.setdefault(result["peer"], []).append(result)
            pl.read_parquet(run / "instances/00/oof.parquet", columns=["gene_id", "fold"]).unique().write_parquet(folds)
        for peer in peers:
            command = [sys.executable, __file__, peer, str(data), str(folds), str(trees)]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            runs.setdefault(peer, []).append(json.loads(done.stdout.splitlines()[-1]))
    yield (
        f"{trees} trees a class, 5 folds and a final model: 18 boosters; medians of {repeat} run(s). Peak: VmHWM; of "
        "external memory, whose mapped pages count as resident, anonymous memory.\n"
    )
    yield "| who | peak MiB | usual / it | seconds | usual / it | AP donor | AP acceptor | seconds by step |"
    yield "|---|---|---|---|---|---|---|---|"
    usual = {key: _median(runs["usual"], key) for key in ("peak", "seconds")}
    for name, results in runs.items():
        peak, seconds, ap = _median(results, "peak"), _median(results, "seconds"), results[0]["ap"]
        steps = ", ".join(f"{k} {v:.0f}" for k, v in results[0]["steps"].items() if v >= 1)
        yield (
            f"| {name} | {peak / 2**20:,.0f} | {usual['peak'] / peak:.1f} | {seconds:.0f} "
            f"| {usual['seconds'] / seconds:.1f} | {ap['donor']:.3f} | {ap['acceptor']:.3f} | {steps} |"
        )


def _median(results: list[dict[str, Any]], key: str) -> float:
    return statistics.median(r[key] for r in results)


def main() -> None:
    """One peer, in this process; its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("data", type=Path)
    parser.add_argument("folds", type=Path, help="gene_id, fold")
    parser.add_argument("trees", type=int)
    given = parser.parse_args()
    print(json.dumps(run_peer(given.peer, given.data, given.folds, given.trees)))


if __name__ == "__main__":
    main()
