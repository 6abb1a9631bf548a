"""The reference table under hard kernel limits, an instance that has to go down the ladder, and ten sampled genes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from runs import NO_FOLDS, Trained, make_plan, train

FOLDED_TREES = 4
LADDER_GENES = 3500


def limits_table(data: Path, place: Path, instances: list[int]) -> Iterator[str]:
    """Lines of a table.

    Parameters
    ----------
    data : Path
        The full reference table.
    instances : list of int
        Which of the instances of 1,500 genes to train.
    """
    yield "Peaks in MiB: anonymous memory of all under the limit, supervisor included; VmHWM of the training process.\n"
    columns = ("what", "limit", "rows", "trees a class", "predicted", "anonymous", "VmHWM", "bytes/cell", "matrix s",
               "all s", "oom kills")  # fmt: skip
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"
    # Pages that do not fit the limit are read from disk for every tree: one tree there.
    for strategy, limit, gb, trees in (("single", "12G", "12", "3"), ("external", "2G", "2", "1")):
        run = place / f"full-{strategy}"
        plan = make_plan(
            data, run, *NO_FOLDS, "--n-estimators", trees, "--strategy", strategy, "--max-memory-per-instance-gb", gb
        )
        yield _line(f"{strategy}, all genes", limit, plan, 0, train(run, limit=limit))
        shutil.rmtree(run)
    run = place / "instances"
    words = ("--strategy", "multi-instance", "--genes-per-instance", "1500", "--n-estimators", str(FOLDED_TREES))
    plan = make_plan(data, run, *words, "--max-memory-per-instance-gb", "2.2")
    for index in instances:
        yield _line(f"instance {index} of {plan['instances'][index]['genes']:,} genes, 5 folds", "2252M", plan, index,
                    train(run, index, limit="2252M"))  # fmt: skip
    shutil.rmtree(run)


def ladder_lines(data: Path, place: Path) -> Iterator[str]:
    """An instance planned for 4 GiB in memory under 1 GiB, against the same one with all the memory it wants."""
    words = ("--sample-genes", str(LADDER_GENES), "--strategy", "single", *NO_FOLDS, "--n-estimators", "3",
             "--max-memory-per-instance-gb", "4")  # fmt: skip
    runs = [place / "ladder", place / "free"]
    plan = make_plan(data, runs[0], *words)
    make_plan(data, runs[1], *words)
    short, free = train(runs[0], limit="1G"), train(runs[1])
    models = [{p.name: p.read_bytes() for p in sorted((r / "instances/00/model").iterdir())} for r in runs]
    yield "| rung | outcome | predicted MiB | measured MiB |"
    yield "|---|---|---|---|"
    for line in (runs[0] / "instances/00/attempts.jsonl").read_text().splitlines():
        attempt = json.loads(line)
        measured = attempt["measured_peak_bytes"]
        yield (f"| {attempt['rung']} | {attempt['outcome']} | {attempt['predicted_peak_bytes'] >> 20:,} "
               f"| {'' if measured is None else measured >> 20} |")  # fmt: skip
    yield (
        f"\n{plan['instances'][0]['genes']:,} genes, {plan['instances'][0]['rows']:,} rows, planned at "
        f"{plan['instances'][0]['predicted_peak_bytes'] >> 20:,} MiB, under a hard 1 GiB: anonymous peak "
        f"{short.kernel['peak_anon'] >> 20} MiB, {short.kernel['oom_kills']} oom kills, {short.seconds:.0f} s against "
        f"{free.seconds:.0f} s in memory ({free.usage['measured_peak_bytes'] >> 20:,} MiB). The models are "
        f"{'the same, byte for byte' if models[0] == models[1] else 'DIFFERENT'}."
    )
    for run in runs:
        shutil.rmtree(run)


def sample_lines(data: Path, place: Path) -> Iterator[str]:
    """Rows read and rows asked for in each phase with --sample-genes 10."""
    run = place / "sample"
    plan = make_plan(data, run, "--sample-genes", "10", "--n-folds", "2", "--n-estimators", "3", "--strategy", "single")
    done = train(run)
    yield f"Ten genes have {plan['instances'][0]['rows']:,} of {_rows_of(data):,} rows.\n"
    yield "| phase | rows asked for | rows read (their row groups) |"
    yield "|---|---|---|"
    for phase in done.usage["phases"]:
        if phase["rows_asked"]:
            yield f"| {phase['name']} | {phase['rows_asked']:,} | {phase['rows_read']:,} |"
    shutil.rmtree(run)


def _rows_of(data: Path) -> int:
    import polars as pl

    return pl.scan_parquet(data / "*.parquet").select(pl.len()).collect().item()


def _line(what: str, limit: str, plan: dict[str, object], index: int, done: Trained) -> str:
    planned = plan["instances"][index]  # type: ignore[index]
    anonymous, resident = done.kernel["peak_anon"], done.usage["peak_rss_bytes"]
    cells = planned["rows"] * plan["dataset"]["features"]  # type: ignore[index]
    return (
        f"| {what} | {limit} | {planned['rows']:,} | {plan['options']['n_estimators']} "  # type: ignore[index]
        f"| {done.usage['predicted_peak_bytes'] >> 20:,} | {anonymous >> 20:,} | {resident >> 20:,} "
        f"| {max(anonymous, resident) / cells:.2f} | {done.phase('matrix'):.0f} | {done.seconds:.0f} "
        f"| {done.kernel['oom_kills']} |"
    )
