"""Imports go one way: no stage imports another stage, and what they share imports none of them."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import metabatch

PACKAGE = Path(metabatch.__file__).parent
# A part may import parts of lower rank, and itself.
RANK = {
    "errors": 0, "lean": 0, "options": 0, "resources": 1, "rundir": 2, "data": 3, "metrics": 3, "models": 4,
    "analysis": 5, "planning": 6, "cluster": 6, "training": 6, "ensemble": 6, "inference": 7, "evaluation": 7,
    "building": 5, "pruning": 6, "commands": 8,
}  # fmt: skip


def imports_of(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("metabatch."):
            names.add(node.module.split(".")[1])
    return names


@pytest.mark.parametrize("file", sorted(PACKAGE.glob("*/*.py")), ids=lambda p: f"{p.parent.name}/{p.name}")
def test_imports_go_down(file: Path) -> None:
    part = file.parent.name
    for other in imports_of(file) - {part}:
        # progress.json is read by the survey of a run, which is why rundir stands above resources
        assert RANK[other] < RANK[part], f"{part} imports {other}"
