"""`evaluate --against`: several evaluated runs of the same data set, on the rows that all of them scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from metabatch.errors import InputError
from metabatch.evaluation.against_report import as_frame, render
from metabatch.evaluation.evaluated import Evaluated, check_comparable, open_evaluated
from metabatch.evaluation.side_by_side import compare_runs
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from metabatch.rundir.lease import tidy
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import save
from metabatch.rundir.markers import MARKER, check_stage, finish_stage, is_marked
from metabatch.rundir.publish import attempt_folder, sha256_file, write_bytes
from metabatch.rundir.tables import write_table

STAGE = "against"
_COMPARISON = "comparison.json"


@dataclass(frozen=True)
class AgainstResult:
    comparison: dict[str, Any]
    report: Path
    already: bool


def against(run: RunDir, others: Sequence[RunDir], *, force: bool = False) -> AgainstResult:
    """Compare a run with others and write RUN/against; the others are only read.

    Raises
    ------
    InputError
        A run that is not evaluated or of other data, classes or labels; or no gene that all of them scored.
    """
    check_others(run, others)
    runs = open_evaluated((run, *others))
    inputs = {f"{e.name}/evaluation": e.marker for e in runs}
    report = run.against / "report.html"
    fingerprint = runs[0].plan.fingerprint
    if not force and _is_current(runs, inputs):
        tidy(run.against)
        return AgainstResult(_read(run.against), report, already=True)
    comparison = compare_runs(runs)
    with hold_folder(run.against), attempt_folder(run.against) as folder:
        save(folder / _COMPARISON, comparison)
        comparison = _read(folder)  # so that the report is made of what a reader of the file gets
        write_table(folder / "comparison.parquet", as_frame(comparison))
        write_bytes(folder / "report.html", render(comparison, folder).encode())
        for e in runs:
            if sha256_file(e.run.evaluation / MARKER) != e.marker:
                raise InputError(
                    f"{e.run.root} was evaluated anew while it was compared", next_step="run the same command again"
                )
        finish_stage(folder, run.against, stage=STAGE, fingerprint=fingerprint, inputs=inputs)
    return AgainstResult(comparison, report, already=False)


def check_others(run: RunDir, others: Sequence[RunDir]) -> None:
    """Whether a run that may not be evaluated yet can be compared with `others` at all; errors as of `against`."""
    plan = open_plan(run)
    for other in others:
        check_comparable(run, plan, other, open_plan(other))
    open_evaluated(others)


def _read(folder: Path) -> dict[str, Any]:
    return dict(msgspec.json.decode((folder / _COMPARISON).read_bytes()))


def _is_current(runs: Sequence[Evaluated], inputs: dict[str, str]) -> bool:
    folder = runs[0].run.against
    if not is_marked(folder):
        return False
    try:
        done = check_stage(folder, stage=STAGE, fingerprint=runs[0].plan.fingerprint)
    except InputError:
        return False
    return done.inputs == inputs and [r["path"] for r in _read(folder)["runs"]] == [str(e.run.root) for e in runs]
