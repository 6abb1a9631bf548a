"""One model of all genes, external memory, members, combinations and the student, on genes that none of them saw."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from inference import measured, rows_file
from reference_table import REFERENCE_FEATURES, make_table
from runs import ROOT, make_plan

from metabatch.options import COMBINATIONS

HOLDOUT, TREES = "0.25", 120
_RATE_ROWS = 131_072
_MEMBERS = {
    "3 members overlap 0": (3, "0"),
    "3 members overlap 0.1": (3, "0.1"),
    "7 members overlap 0": (7, "0"),
    "7 members overlap 0.1": (7, "0.1"),
}
TEACHER = "7 members overlap 0.1"
STUDENT = "distilled from 7 members"


def data_sets(place: Path) -> dict[str, Path]:
    """The demo, a table of the reference shape, and a narrow one of other genes."""
    wide, narrow = place / "wide", place / "narrow"
    make_table(wide, 300, REFERENCE_FEATURES, 2, 3)
    make_table(narrow, 400, 160, 2, 11)
    return {
        "real demo (37 genes, 16,392 rows)": ROOT / "examples/hg19-demo",
        f"reference shape, 300 genes x {REFERENCE_FEATURES:,}": wide,
        "400 genes x 160": narrow,
    }


def ensembles_lines(place: Path) -> Iterator[str]:
    """Lines of a table for each data set, and the rules of combination on all of them."""
    rules: list[str] = []
    for title, data in data_sets(place).items():
        runs = place / "runs"
        runs.mkdir()
        yield f"### {title}\n"
        yield from _table(data, runs)
        rules += _rules(title, runs)
        shutil.rmtree(runs)
        yield ""
    yield "### Rules of combination (7 members overlap 0): holdout macro AP less that of the mean, 95 % interval\n"
    yield "| data | " + " | ".join(COMBINATIONS[1:]) + " | auto takes | auto |"
    yield "|---" * (len(COMBINATIONS) + 2) + "|"
    yield from rules


def student_lines(place: Path) -> Iterator[str]:
    """A table: the student against the seven members that teach it, on each data set."""
    yield (
        "7 members (overlap 0.1) and the student of them: holdout AP, the student's macro AP less the members' (95 % "
        f"interval), and rows a second of a first call of `predict_proba` on {_RATE_ROWS:,} rows, with reading: the "
        "best of five.\n"
    )
    yield (
        "| data | model | features | trees | donor AP | acceptor AP | macro AP | log loss | training CPU s | rows/s | "
        "times as fast |"
    )
    yield "|---" * 11 + "|"
    for title, data in data_sets(place).items():
        runs = place / "runs"
        runs.mkdir()
        _members(data, runs, TEACHER)
        _student(runs)
        _command("evaluate", "--against", str(runs / STUDENT), runs / TEACHER)
        found = json.loads((runs / TEACHER / "against/comparison.json").read_text())
        rows = rows_file(data, runs, _RATE_ROWS)
        rates = {run["name"]: 0.0 for run in found["runs"]}
        for name in [*rates] * 5:  # in turns: these machines are noisy
            spent = measured("metabatch", runs / name, rows)
            rates[name] = max(rates[name], spent["rows"] / spent["seconds"])
        for run in found["runs"]:
            features = len(json.loads((runs / run["name"] / "features.json").read_text())["features"])
            apart = "" if run["difference"] is None else _signed(run["difference"]["macro"])
            aps = " | ".join(f"{run['classes'][c]['ap']:.3f}" for c in ("donor", "acceptor"))
            yield (
                f"| {title} | {run['name']} | {features:,} | {run['cost']['trees']:,} | {aps} | {apart} "
                f"| {run['macro']['log_loss']:.2e} | {run['cost']['training_cpu_seconds']:.0f} "
                f"| {rates[run['name']]:,.0f} | {rates[run['name']] / rates[TEACHER]:.1f} |"
            )
        shutil.rmtree(runs)


def _plan(data: Path, run: Path, *words: str) -> None:
    make_plan(
        data, run, "--holdout-fraction", HOLDOUT, "--n-estimators", str(TREES), "--n-folds", "2",
        "--early-stopping-patience", "20", *words,
    )  # fmt: skip


def _command(*words: str | Path) -> None:
    subprocess.run([ROOT / "bin" / words[0], "--quiet", *words[1:]], check=True, stdout=subprocess.DEVNULL)


def _finish(run: Path) -> None:
    for planned in json.loads((run / "plan.json").read_text())["instances"]:
        _command("train-instance", run, str(planned["index"]))
    _command("consolidate", run)
    _command("evaluate", run)


def _members(data: Path, runs: Path, name: str) -> None:
    count, overlap = _MEMBERS[name]
    number = str(count)
    _plan(
        data, runs / name, "--strategy", "multi-instance", "--min-instances", number, "--max-instances", number,
        "--instance-overlap", overlap,
    )  # fmt: skip
    _finish(runs / name)


def _student(runs: Path) -> None:
    _command(
        "distill", "--analyses", "none", "--n-folds", "2", "--early-stopping-patience", "20", runs / TEACHER,
        runs / STUDENT,
    )  # fmt: skip


def _table(data: Path, runs: Path) -> Iterator[str]:
    for name in ("single", "external"):
        _plan(data, runs / name, "--strategy", name)
        _finish(runs / name)
    for name in _MEMBERS:
        _members(data, runs, name)
    _student(runs)
    others = ",".join(str(runs / name) for name in ("external", *_MEMBERS, STUDENT))
    _command("evaluate", "--against", others, runs / "single")
    found = json.loads((runs / "single/against/comparison.json").read_text())
    rows = rows_file(data, runs)
    rates = {}
    for run in found["runs"]:
        spent = measured("metabatch", runs / run["name"], rows)
        rates[run["name"]] = spent["rows"] / spent["seconds"]
    yield (
        f"{found['genes']} holdout genes, {found['rows']:,} rows; base model: donor AP "
        f"{found['base']['classes']['donor']['ap']:.3f}, acceptor {found['base']['classes']['acceptor']['ap']:.3f}.\n"
    )
    yield (
        "| run | donor AP | acceptor AP | macro AP against single | ECE donor | log loss | trees | MB | rows/s | "
        "training CPU s | peak of an instance |"
    )
    yield "|---" * 11 + "|"
    for run in found["runs"]:
        yield _line(run, rates[run["name"]])
    yield f"\n{found['recommendation']['text']}"
    estimate = json.loads((runs / TEACHER / "evaluation/metrics.json").read_text())
    for name in ("donor", "acceptor"):
        other, own = estimate["out_of_instance"]["meta"][name], estimate["meta"][name]
        low, high = own["ci95"]["ap"]
        inside = "within" if low <= other["ap"] <= high else "NOT within"
        yield (
            f"\nEstimate by other members on training genes ({TEACHER}), {name}: {other['ap']:.3f}, {inside} the "
            f"holdout's {low:.3f} to {high:.3f}."
        )


def _line(run: dict[str, Any], rate: float) -> str:
    cost, classes = run["cost"], run["classes"]
    aps = [
        f"{classes[c]['ap']:.3f} ({classes[c]['ci95']['ap'][0]:.3f} to {classes[c]['ci95']['ap'][1]:.3f})"
        for c in ("donor", "acceptor")
    ]
    apart = "" if run["difference"] is None else _signed(run["difference"]["macro"])
    return (
        f"| {run['name']} | {aps[0]} | {aps[1]} | {apart} | {classes['donor']['ece']:.1e} | "
        f"{run['macro']['log_loss']:.2e} | {cost['trees']:,} | {cost['model_bytes'] / 1e6:.1f} | "
        f"{rate:,.0f} | {cost['training_cpu_seconds']:.0f} | "
        f"{cost['peak_anonymous_bytes'] / 2**20:.0f} MiB |"
    )


def _signed(difference: dict[str, Any]) -> str:
    if difference["ci95"] is None:
        return f"{difference['ap']:+.4f} (no interval)"
    low, high = difference["ci95"]
    return f"{difference['ap']:+.4f} ({low:+.4f} to {high:+.4f})"


def _rules(title: str, runs: Path) -> list[str]:
    """A line: what each rule and `auto` come to on the holdout, paired with the mean."""
    source = runs / "7 members overlap 0"
    judged = json.loads((source / "ensemble/combination.json").read_text())["judged"]
    rules = [line["method"] for line in judged]
    copies = {}
    for rule in (*rules, "auto"):
        copies[rule] = runs / rule
        shutil.copytree(source, copies[rule])
        _command("consolidate", "--combine", rule, copies[rule])
        _command("evaluate", copies[rule])
    mean = copies.pop("mean")
    _command("evaluate", "--against", ",".join(str(c) for c in copies.values()), mean)
    found = json.loads((mean / "against/comparison.json").read_text())
    cells = {run["name"]: _signed(run["difference"]["macro"]) for run in found["runs"][1:]}
    taken = json.loads((copies["auto"] / "ensemble/bundle.json").read_text())["combination"]["method"]
    shown = [cells.get(rule, "no feature of the whole gene") for rule in COMBINATIONS[1:]]
    return [f"| {title} | " + " | ".join(shown) + f" | {taken} | {cells['auto']} |"]
