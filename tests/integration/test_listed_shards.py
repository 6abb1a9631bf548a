"""Shards other than the dataset.json beside them lists are not taken for the data set that was built."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from tests.conftest import DEMO, NO_ANALYSES, start, succeed

FIRST, SECOND = "positions-00000.parquet", "positions-00001.parquet"


@pytest.fixture
def listed(tmp_path: Path) -> Path:
    """The demo, with a description of its shards."""
    folder = tmp_path / "data"
    shutil.copytree(DEMO, folder)
    shards = {
        f.name: {"bytes": f.stat().st_size, "sha256": hashlib.sha256(f.read_bytes()).hexdigest()}
        for f in folder.glob("*.parquet")
    }
    (folder / "dataset.json").write_text(json.dumps({"format_version": 1, "recipe": {"own": 1}, "shards": shards}))
    return folder


def missing(folder: Path) -> str:
    (folder / FIRST).unlink()
    return f"{FIRST} is missing"


def foreign(folder: Path) -> str:
    pl.read_parquet(folder / FIRST).head(100).write_parquet(folder / "more.parquet")
    return "more.parquet is not listed"


def replaced(folder: Path) -> str:
    size = (folder / FIRST).stat().st_size
    pl.read_parquet(folder / FIRST).head(500).write_parquet(folder / FIRST)
    return f"{FIRST} has {(folder / FIRST).stat().st_size} bytes, listed with {size}"


def altered(folder: Path) -> str:
    """As many bytes, and readable: another value in the footer's own free text."""
    raw = (folder / FIRST).read_bytes()
    at = raw.rindex(b"parquet-cpp")
    (folder / FIRST).write_bytes(raw[:at] + b"Parquet-cpp" + raw[at + 11 :])
    return f"{FIRST} has other content than listed (sha256)"


@pytest.mark.parametrize("spoil", [missing, foreign, replaced, altered])
def test_plan_and_prune_refuse_shards_that_are_not_those_listed(
    spoil: Callable[[Path], str], listed: Path, tmp_path: Path
) -> None:
    said = spoil(listed)
    for words in (("plan", *NO_ANALYSES), ("prune-features",)):
        out = tmp_path / words[0]
        refused = start(words[0], "--quiet", *words[1:], listed, out)
        assert refused.code == 3, refused.err
        assert f"1 shard(s) are not as dataset.json says: {said}" in refused.err
        assert "next:" in refused.err
        assert not out.exists()
    problems = succeed("inspect-dataset", "--quiet", "--json", "--no-leakage", listed).json["problems"]
    errors = [p["what"] for p in problems if p["severity"] == "error" and "dataset.json" in p["what"]]
    # By name and size: the content is not read for this.
    assert errors == ([] if spoil is altered else [f"1 shard(s) are not as dataset.json says: {said}"])


def test_listed_shards_are_taken_and_one_alone_too(listed: Path, tmp_path: Path) -> None:
    problems = succeed("inspect-dataset", "--quiet", "--json", "--no-leakage", listed).json["problems"]
    assert not [p for p in problems if p["severity"] == "error"]
    quick = ("plan", "--quiet", "--n-folds", "2", *NO_ANALYSES)
    succeed(*quick, listed, tmp_path / "all")
    missing(listed)
    succeed(*quick, listed / SECOND, tmp_path / "one")
    plan = json.loads((tmp_path / "one/plan.json").read_text())
    assert plan["recipe"] == {"own": 1}


def test_a_description_that_cannot_be_read_is_an_error_of_the_data_set(listed: Path, tmp_path: Path) -> None:
    (listed / "dataset.json").write_bytes(b'{"shards": "\xff"}')
    problems = succeed("inspect-dataset", "--quiet", "--json", "--no-leakage", listed).json["problems"]
    assert any(p["severity"] == "error" and "dataset.json cannot be read" in p["what"] for p in problems)
    refused = start("plan", "--quiet", listed, tmp_path / "run")
    assert refused.code == 3
    assert "dataset.json cannot be read" in refused.err
