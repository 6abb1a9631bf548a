"""The same genes, folds and trees by others: peak memory, time and out-of-fold AP beside metabatch's.

    uv pip install lightgbm pandas
    PYTHONPATH=. python benchmarks/peers.py [--genes 1000] [--features 1167] [--trees 10] [--peers usual,lightgbm,hgb]

Every peer runs in a process of its own and fits five folds and a final model for each of three classes, as an
instance does, with the same folds, depth, learning rate and number of trees; no early stopping on any side. "usual" is
what people write: polars -> pandas -> float64 -> XGBClassifier, one fit per fold and class. Memory is VmHWM.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl
from reference_table import make_table

ROOT = Path(__file__).resolve().parents[1]
CLASSES = ("neither", "donor", "acceptor")
DEPTH, RATE, THREADS = 6, 0.1, 2


def peak_rss() -> int:
    text = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) << 10 for line in text.splitlines() if line.startswith("VmHWM:"))


def usual_table(data: Path, folds: Path) -> tuple[object, np.ndarray, np.ndarray]:
    """The table as people load it: one pandas frame, features as one float64 array."""
    frame = pl.read_parquet(data / "*.parquet").join(pl.read_parquet(folds), on="gene_id").to_pandas()
    names = [c for c in frame.columns if c not in ("gene_id", "chrom", "position", "splice_type", "fold")]
    return frame[names].to_numpy(dtype=np.float64), frame["splice_type"].to_numpy(), frame["fold"].to_numpy()


def estimator(peer: str, trees: int) -> object:
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


def run_peer(peer: str, data: Path, folds: Path, trees: int) -> dict[str, object]:
    """Fit everything in this process; seconds by step, peak memory, AP per class."""
    from sklearn.metrics import average_precision_score

    start = time.perf_counter()
    features, label, fold = usual_table(data, folds)
    loaded = time.perf_counter()
    fits, ap = 0, {}
    for name in CLASSES:
        positive, scores = label == name, np.full(len(label), np.nan)
        for number in [*np.unique(fold), None]:
            kept = np.ones(len(fold), bool) if number is None else fold != number
            model = estimator(peer, trees).fit(features[kept], positive[kept])  # type: ignore[attr-defined]
            fits += 1
            if number is not None:
                scores[~kept] = model.predict_proba(features[~kept])[:, 1]
            del model
        ap[name] = float(average_precision_score(positive, scores))
    done = time.perf_counter()
    return {"peer": peer, "peak": peak_rss(), "seconds": done - start, "load": loaded - start, "fits": fits, "ap": ap}


def run_metabatch(data: Path, place: Path, trees: int, strategy: str) -> dict[str, object]:
    """Plan and train one instance; the time is that of both."""
    env = os.environ | {"METABATCH_PYTHON": sys.executable, "TMPDIR": str(place)}
    run = place / f"run-{strategy}"
    words = ["--strategy", strategy, "--holdout-fraction", "0", "--n-estimators", str(trees), "--n-folds", "5",
             "--early-stopping-patience", "0", "--learning-rate", str(RATE), "--threads", str(THREADS)]  # fmt: skip
    start = time.perf_counter()
    for command in (["plan", "--quiet", *words, str(data), str(run)], ["train-instance", "--quiet", str(run), "0"]):
        subprocess.run([ROOT / "bin" / command[0], *command[1:]], env=env, check=True, stdout=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    metrics = json.loads((run / "instances/00/metrics.json").read_text())["classes"]
    steps = {p["name"]: p["seconds"] for p in usage["phases"]}
    ap = {c: metrics[c]["before_calibration"]["ap"] for c in CLASSES}
    return {"peer": f"metabatch, {strategy}", "peak": usage["measured_peak_bytes"], "seconds": seconds, "fits": 18,
            "ap": ap, "steps": steps, "oof": str(run / "instances/00/oof.parquet")}  # fmt: skip


def main() -> None:
    """Run the peers one after the other and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--genes", type=int, default=1000)
    parser.add_argument("--features", type=int, default=1167)
    parser.add_argument("--trees", type=int, default=10)
    parser.add_argument("--peers", default="usual,lightgbm,hgb")
    parser.add_argument("--data", type=Path, help="a table made before")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        peer, data, folds = given.child
        print(json.dumps(run_peer(peer, Path(data), Path(folds), given.trees)))
        return
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        data = given.data or place / "data"
        if given.data is None:
            make_table(data, given.genes, given.features, 2, 1)
        results = [run_metabatch(data, place, given.trees, s) for s in ("single", "external")]
        folds = place / "folds.parquet"
        oof = pl.read_parquet(str(results[0]["oof"]), columns=["gene_id", "fold"])
        oof.unique().write_parquet(folds)
        for peer in given.peers.split(","):
            command = [sys.executable, __file__, "--child", peer, str(data), str(folds), "--trees", str(given.trees)]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))
        _print(results)


def _print(results: list[dict[str, object]]) -> None:
    usual = next((r for r in results if r["peer"] == "usual"), results[0])
    print(
        "| who | peak MiB | usual / it | seconds | usual / it | AP donor | AP acceptor |\n|---|---|---|---|---|---|---|"
    )
    for r in results:
        ap: dict[str, float] = r["ap"]  # type: ignore[assignment]
        memory, seconds = (float(usual[k]) / float(r[k]) for k in ("peak", "seconds"))  # type: ignore[arg-type]
        print(f"| {r['peer']} | {int(r['peak']) >> 20} | {memory:.1f} | {r['seconds']:.0f} | {seconds:.1f} "  # type: ignore[call-overload]
              f"| {ap['donor']:.3f} | {ap['acceptor']:.3f} |")  # fmt: skip
    for r in results:
        print(f"{r['peer']}: {r.get('steps') or {'load': r.get('load'), 'fits': r['fits']}}")


if __name__ == "__main__":
    main()
