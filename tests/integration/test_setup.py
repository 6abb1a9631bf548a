"""The first use of a checkout makes its environment, once, also when two start at once."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the tracked files, without any environment."""
    names = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    for name in filter(None, names.decode().split("\0")):
        if (ROOT / name).is_file():
            target = tmp_path / "checkout" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target)
    return tmp_path / "checkout"


def surroundings(**more: str) -> dict[str, str]:
    drop = ("METABATCH_PYTHON", "PYTHONPATH", "VIRTUAL_ENV")
    return {k: v for k, v in os.environ.items() if k not in drop} | more


def test_two_first_uses_at_once_make_one_environment_and_the_next_is_instant(checkout: Path) -> None:
    words = [checkout / "bin" / "run-all", "--version"]
    both = [
        subprocess.Popen(words, env=surroundings(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    told = [p.communicate() for p in both]
    assert [p.returncode for p in both] == [0, 0], told
    assert all(out.startswith("metabatch ") for out, _ in told)
    assert sum("making .venv" in err for _, err in told) == 1
    assert sum("waiting for another set-up" in err for _, err in told) == 1
    environments = [p for p in checkout.glob(".venv-*") if p.is_dir()]
    assert len(environments) == 1
    assert (checkout / ".venv").resolve() == environments[0]
    third = subprocess.run(words, env=surroundings(), capture_output=True, text=True, check=True)
    assert third.stderr == ""


def test_without_a_python_it_says_what_is_missing(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("sh", "dirname", "readlink", "cmp", "flock", "cat"):
        (tools / name).symlink_to(str(shutil.which(name)))
    env = {"PATH": str(tools), "HOME": str(tmp_path)}
    if any(Path(p).exists() for p in ("/usr/bin/python3.12", "/usr/bin/python3.13", "/usr/local/bin/python3.12")):
        pytest.skip("a system-wide Python 3.12 or newer is found here wherever PATH points")
    done = subprocess.run(
        [checkout / "bin" / "plan", "--version"], env=env, capture_output=True, text=True, check=False
    )
    assert done.returncode == 3
    assert "no Python 3.12 or newer" in done.stderr
    assert "METABATCH_SETUP_PYTHON" in done.stderr
    assert not list(checkout.glob(".venv-*"))
