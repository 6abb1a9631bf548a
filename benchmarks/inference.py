"""Rows a second: members of 3 x 800 trees by `metabatch` and the usual way, and hybrid prediction.

The usual way is a pandas frame of all rows and one prediction per member and class, by the frame itself
(`inplace_predict`, what scikit-learn's wrapper does) or by a DMatrix made of it. All read the same parquet file with
all its features, and use two threads. Nothing is warmed up but the imports.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reference_table import REFERENCE_FEATURES, make_table
from runs import ROOT, make_plan, run_measured, train

GENES, MEMBERS, TREES, ROWS = 140, 7, 800, 16_384
NATURAL_ROWS, NATURAL_FILES, UNCERTAIN = 400_000, 4, 0.01


def ensemble_run(data: Path, place: Path) -> Path:
    """Seven members of 800 trees a class, without folds (trees are what is measured)."""
    run = place / "seven"
    make_plan(
        data, run, "--strategy", "multi-instance", "--min-instances", str(MEMBERS), "--max-instances", str(MEMBERS),
        "--instance-overlap", "0", "--n-estimators", str(TREES), "--n-folds", "0", "--calibration", "none",
    )  # fmt: skip
    for index in range(MEMBERS):
        train(run, index)
    subprocess.run([ROOT / "bin/consolidate", "--quiet", run], check=True, stdout=subprocess.DEVNULL)
    return run


def student_run(teacher: Path, place: Path) -> Path:
    """Distilled from the seven, its size chosen on a fold."""
    run = place / "student"
    subprocess.run(
        [
            ROOT / "bin/distill", "--quiet", "--analyses", "none", "--n-folds", "2", "--calibration", "platt",
            "--early-stopping-patience", "20", teacher, run,
        ],
        check=True, stdout=subprocess.DEVNULL,
    )  # fmt: skip
    return run


def rows_file(data: Path, place: Path, rows: int = ROWS) -> Path:
    """One file of so many rows: those of the first shard, over again where there are fewer."""
    table = _repeated(pq.read_table(min(data.glob("*.parquet"))), rows)
    target = place / "rows.parquet"
    pq.write_table(table, target, row_group_size=ROWS)
    return target


def _repeated(table: pa.Table, rows: int) -> pa.Table:
    return pa.concat_tables([table] * -(-rows // table.num_rows)).slice(0, rows)


def natural_file(source: Path, place: Path) -> Path:
    """Rows of which few are uncertain to the base model, scattered over all row groups."""
    whole = _repeated(pq.read_table(source), NATURAL_ROWS)
    rng = np.random.default_rng(0)
    for name in ("donor_score", "acceptor_score"):
        score = np.where(rng.random(NATURAL_ROWS) < UNCERTAIN / 2, rng.uniform(0.02, 0.8, NATURAL_ROWS), 1e-3)
        whole = whole.set_column(whole.schema.get_field_index(name), name, pa.array(score.astype(np.float32)))
    folder = place / "natural"
    folder.mkdir()
    pq.write_table(whole, folder / "part-0.parquet", row_group_size=16_384)
    for number in range(1, NATURAL_FILES):
        os.link(folder / "part-0.parquet", folder / f"part-{number}.parquet")
    return folder


def measured(what: str, model: Path, rows: Path, copies: int = 1) -> dict[str, Any]:
    """One way of predicting, in a process of its own: rows, seconds, digest of the donors' probabilities."""
    words = [sys.executable, __file__, what, str(model), str(rows), str(copies)]
    env = os.environ | {"OMP_NUM_THREADS": "2", "PYTHONPATH": str(ROOT)}
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True, env=env).stdout)


def inference_table(data: Path, place: Path) -> Iterator[str]:
    """Lines of the two tables."""
    model = ensemble_run(data, place)
    rows = rows_file(data, place)
    usual = measured("pandas", model, rows)
    ways = [
        ("usual way, DMatrix of the frame", "7", measured("dmatrix", model, rows)),
        ("usual way, the frame itself", "7", usual),
        ("metabatch", "1", measured("one", model, rows)),
        ("metabatch", "7", measured("metabatch", model, rows)),
        ("metabatch", "14", measured("metabatch", model, rows, 2)),
        ("metabatch, the student of the 7", "1", measured("metabatch", student_run(model, place), rows)),
    ]
    yield (
        f"{ROWS:,} rows x {REFERENCE_FEATURES:,} features from one parquet file, reading included; members of 3 x "
        f"{TREES} trees; 2 threads; against the usual way with 7 members on the frame itself.\n"
    )
    yield "| way | members | trees | seconds | rows/s | against the usual way |"
    yield "|---|---|---|---|---|---|"
    base = usual["seconds"]
    for name, members, found in ways:
        spent, rate = found["seconds"], found["rows"] / found["seconds"]
        yield f"| {name} | {members} | {found['trees']:,} | {spent:.1f} | {rate:,.0f} | {base / spent:.1f} |"
    yield ""
    yield from _hybrid(model, natural_file(rows, place), place)
    shutil.rmtree(model)
    yield ""
    yield from _memory(place)


def _hybrid(model: Path, data: Path, place: Path) -> Iterator[str]:
    seconds, rows = {}, NATURAL_ROWS * NATURAL_FILES
    for mode in ("meta_only", "hybrid", "base_only"):
        begun = time.perf_counter()
        subprocess.run(
            [ROOT / "bin/predict", "--quiet", "--mode", mode, model, data, place / mode], check=True,
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        seconds[mode] = time.perf_counter() - begun
    yield (
        f"`predict` on {rows:,} rows of which {UNCERTAIN:.0%} are uncertain, in all row groups; start of the "
        "process and checksums included.\n"
    )
    yield "| mode | seconds | rows/s | against meta_only |"
    yield "|---|---|---|---|"
    for mode, spent in seconds.items():
        yield f"| {mode} | {spent:.1f} | {rows / spent:,.0f} | {seconds['meta_only'] / spent:.1f} |"


def _memory(place: Path) -> Iterator[str]:
    """Peak memory of `predict` as the kernel has it (maximum resident set), for 10^5 to 10^7 rows."""
    data, run = place / "inference-narrow", place / "inference-narrow-run"
    make_table(data, 300, 20, 2, 5)
    make_plan(data, run, "--strategy", "single", "--n-estimators", "10", "--n-folds", "2")
    train(run)
    subprocess.run([ROOT / "bin/consolidate", "--quiet", run], check=True, stdout=subprocess.DEVNULL)
    table = pa.concat_tables([pq.read_table(f) for f in sorted(data.glob("*.parquet"))]).slice(0, 100_000)
    pq.write_table(table, place / "one.parquet", row_group_size=16_384)
    yield "Peak resident memory of `predict`, 20 features, 30 trees; files of 100,000 rows each.\n"
    yield "| rows | meta_only | hybrid |"
    yield "|---|---|---|"
    for files in (1, 10, 100):
        folder = place / f"files-{files}"
        folder.mkdir()
        for number in range(files):
            os.link(place / "one.parquet", folder / f"part-{number:03d}.parquet")
        peaks = []
        for mode in ("meta_only", "hybrid"):
            out = place / f"out-{files}-{mode}"
            peaks.append(f"{run_measured('predict', '--mode', mode, run, folder, out).peak_bytes / 2**20:.0f} MiB")
            shutil.rmtree(out)
        yield f"| {files * table.num_rows:,} | {peaks[0]} | {peaks[1]} |"


def _pandas(model: Path, rows: Path, *, dmatrix: bool) -> tuple[Callable[[], np.ndarray], int]:
    import pandas as pd  # type: ignore[import-untyped]
    import xgboost as xgb

    features = [f["name"] for f in json.loads((model / "features.json").read_text())["features"]]
    folders = sorted((model / "ensemble/members").iterdir())
    boosters = [
        [xgb.Booster({"nthread": 2}, model_file=d / f"{c}.ubj") for c in ("neither", "donor", "acceptor")]
        for d in folders
    ]

    def predict() -> np.ndarray:
        frame = pd.read_parquet(rows, columns=features)
        total = np.zeros((len(frame), 3))
        for member in boosters:
            own = [b.predict(xgb.DMatrix(frame)) if dmatrix else b.inplace_predict(frame) for b in member]
            proba = np.stack(own, axis=1)
            total += proba / proba.sum(axis=1, keepdims=True)
        return total[:, 1] / len(boosters)

    return predict, sum(b.num_boosted_rounds() for m in boosters for b in m)


def _metabatch(model: Path, rows: Path, copies: int, *, one: bool) -> tuple[Callable[[], np.ndarray], int]:
    import msgspec

    import metabatch
    from metabatch.ensemble.combining import equal
    from metabatch.ensemble.estimator import MetaModel

    loaded = metabatch.load(model)
    members = list(loaded.members)[:1] if one else list(loaded.members)
    for _ in range(copies - 1):  # boosters of their own, which share nothing
        members += metabatch.load(model).members
    rule = equal(len(members)) if one or copies > 1 else loaded.bundle.combination
    estimator = MetaModel(msgspec.structs.replace(loaded.bundle, combination=rule), members)
    estimator.set_threads(2)

    def predict() -> np.ndarray:
        table = pq.read_table(rows, columns=estimator.feature_names)
        return estimator.predict_proba(table)[:, 1]

    return predict, sum(b.num_boosted_rounds() for m in members for b in m.boosters.values())  # type: ignore[union-attr]


def main() -> None:
    what, model, rows, copies = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
    if what in ("pandas", "dmatrix"):
        predict, trees = _pandas(model, rows, dmatrix=what == "dmatrix")
    else:
        predict, trees = _metabatch(model, rows, copies, one=what == "one")
    begun = time.perf_counter()
    found = predict()
    seconds = time.perf_counter() - begun
    print(json.dumps({"rows": len(found), "seconds": seconds, "trees": trees, "mean": float(found.mean())}))


def make_data(place: Path) -> Path:
    data = place / "inference-data"
    make_table(data, GENES, REFERENCE_FEATURES, 2, 1)
    return data


if __name__ == "__main__":
    main()
