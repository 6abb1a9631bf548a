"""A truncated or bit-flipped artefact is named by the stage that reads it next."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Outcome, start


def truncated(data: bytes) -> bytes:
    return data[: len(data) // 2]


def flipped(data: bytes) -> bytes:
    """One bit of a byte in the middle; of a letter it makes another one, so that JSON stays JSON."""
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


DAMAGE = pytest.mark.parametrize("damage", [truncated, flipped])


def damaged(run: Path, name: str, damage: Callable[[bytes], bytes], *command: str) -> Outcome:
    file = run / name
    good = file.read_bytes()
    file.write_bytes(damage(good))
    outcome = start(*command[:1], *command[1:2], run, *command[2:])
    file.write_bytes(good)
    return outcome


@DAMAGE
def test_of_the_plan_by_training(
    trained: Path, copy_of: Callable[[Path], Path], damage: Callable[[bytes], bytes]
) -> None:
    run = copy_of(trained)
    shutil.rmtree(run / "instances")
    for name in (
        "plan.json",
        "genes.parquet",
        "assignments.parquet",
        "features.json",
        "cuts.parquet",
        "segments.parquet",
    ):
        outcome = damaged(run, name, damage, "train-instance", "--quiet", "0")
        assert outcome.code == 3, (name, outcome.err)
        assert name in outcome.err
        assert "Traceback" not in outcome.err
    assert not list((run / "instances").rglob("*.ubj"))


@DAMAGE
def test_of_an_instance_by_consolidate(
    trained: Path, copy_of: Callable[[Path], Path], damage: Callable[[bytes], bytes]
) -> None:
    run = copy_of(trained)
    folder = run / "instances/00"
    names = [str(p.relative_to(run)) for p in folder.rglob("*") if p.is_file() and p.name != "attempts.jsonl"]
    assert len(names) >= 8
    for name in names:
        outcome = damaged(run, name, damage, "consolidate", "--quiet", "--force")
        assert outcome.code == 3, (name, outcome.err)
        assert "instance 0" in outcome.err
        assert Path(name).name in outcome.err
        assert "Traceback" not in outcome.err


@DAMAGE
def test_of_the_ensemble_by_evaluate(
    trained: Path, copy_of: Callable[[Path], Path], damage: Callable[[bytes], bytes]
) -> None:
    run = copy_of(trained)
    names = [str(p.relative_to(run)) for p in (run / "ensemble").rglob("*") if p.is_file()]
    assert len(names) >= 7
    for name in names:
        outcome = damaged(run, name, damage, "evaluate", "--quiet", "--force")
        assert outcome.code == 3, (name, outcome.err)
        assert Path(name).name in outcome.err
        assert "Traceback" not in outcome.err
