"""Where every file of a run lies (the run-directory contract, format_version 1)."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from metabatch.errors import InputError

FORMAT_VERSION = 1
# What is being made, until it gets its name by one rename; and the lock of whoever is making it.
ATTEMPT_PREFIX, TEMPORARY, LOCK = ".attempt-", ".tmp", ".lease.lock"

_OURS = {
    "plan.json",
    "genes.parquet",
    "assignments.parquet",
    "features.json",
    "cuts.parquet",
    "segments.parquet",
    "leakage.parquet",
    "soft_labels.parquet",
    "submissions.jsonl",
}
_STAGES = {"instances", "ensemble", "evaluation", "against", "logs"}


@dataclass(frozen=True)
class InstanceDir:
    """The files of one instance."""

    root: Path
    index: int

    @property
    def lease(self) -> Path:
        return self.root / "lease.json"

    @property
    def attempts(self) -> Path:
        return self.root / "attempts.jsonl"

    @property
    def progress(self) -> Path:
        return self.root / "progress.json"

    @property
    def orders(self) -> Path:
        """What the workers of a distributed attempt are told."""
        return self.root / f".orders{TEMPORARY}"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"


@dataclass(frozen=True)
class RunDir:
    """The files of a run."""

    root: Path

    @property
    def plan(self) -> Path:
        return self.root / "plan.json"

    @property
    def genes(self) -> Path:
        return self.root / "genes.parquet"

    @property
    def assignments(self) -> Path:
        return self.root / "assignments.parquet"

    @property
    def features(self) -> Path:
        return self.root / "features.json"

    @property
    def cuts(self) -> Path:
        return self.root / "cuts.parquet"

    @property
    def segments(self) -> Path:
        return self.root / "segments.parquet"

    @property
    def leakage(self) -> Path:
        return self.root / "leakage.parquet"

    @property
    def soft_labels(self) -> Path:
        return self.root / "soft_labels.parquet"

    @property
    def instances(self) -> Path:
        return self.root / "instances"

    @property
    def submissions(self) -> Path:
        return self.root / "submissions.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def ensemble(self) -> Path:
        return self.root / "ensemble"

    @property
    def evaluation(self) -> Path:
        return self.root / "evaluation"

    @property
    def against(self) -> Path:
        return self.root / "against"

    def instance(self, index: int) -> InstanceDir:
        return InstanceDir(self.instances / f"{index:02d}", index)


def foreign_entries(root: Path) -> list[str]:
    """Names in `root` that metabatch did not put there (a new run must not be mixed with them)."""
    if not root.exists():
        return []
    names = (entry.name for entry in root.iterdir())
    return sorted(n for n in names if n not in _OURS | _STAGES and not is_passing(n))


def is_passing(name: str) -> bool:
    """Whether a file or folder of this name is there only while a process is at work, or was when it was killed."""
    return name.startswith((LOCK, ATTEMPT_PREFIX)) or (name.startswith(".") and name.endswith(TEMPORARY))


def require_run(path: str | os.PathLike[str]) -> RunDir:
    """The run directory at `path`; an InputError says what lies there instead."""
    root = Path(path)
    run = RunDir(root)
    if not root.is_dir():
        raise InputError(
            f"{path} is not a directory",
            expected="a run directory made by `plan DATASET RUN`",
            next_step=f"bin/plan DATASET {quote(str(path))}",
        )
    if not run.plan.is_file():
        raise InputError(
            f"{path} has no plan.json",
            expected="a run directory made by `plan DATASET RUN` (plan.json is written last)",
            next_step=f"bin/plan DATASET {quote(str(path))}",
        )
    return run


def class_stems(classes: Sequence[str]) -> list[str]:
    """A file name part per class: the class itself, or ``class.0`` where that is no safe name of its own.

    Plain names have no dot, so a numbered one can never be another class's; names that differ in case only
    (one file on some file systems) are numbered.
    """
    lowered = [c.lower() for c in classes]
    return [
        c if re.fullmatch(r"[A-Za-z0-9_-]{1,80}", c) and lowered.count(c.lower()) == 1 else f"class.{i}"
        for i, c in enumerate(classes)
    ]


def parse_instance_index(text: str) -> int | None:
    """``"3"`` or ``"03"`` -> 3; anything else -> None."""
    return int(text) if re.fullmatch(r"\d{1,7}", text) else None
