"""The images: built from the checkout as it is, small, and at work without network, read-only, as anybody."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import QUICK, ROOT, succeed
from tests.hpc.conftest import BASE_IMAGE, USER, models

RUN = ("run-all", "--quiet", "--demo", *QUICK)
EXECUTABLES = sorted(p.name for p in (ROOT / "bin").iterdir() if not p.name.startswith("_") and p.name != "test")


@pytest.fixture(scope="module")
def natively(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The demo's models without a container."""
    run = tmp_path_factory.mktemp("natively") / "run"
    succeed(*RUN, run)
    return models(run)


@pytest.fixture
def place() -> Iterator[Path]:
    """Where anybody may write; the tests' own folder is closed to other users."""
    with tempfile.TemporaryDirectory(prefix="hpc-of-metabatch-") as name:
        Path(name).chmod(0o777)
        yield Path(name)


def in_podman(image: str, *words: str | Path, place: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["podman", "run", "--rm", "--network=none", "--read-only", "--read-only-tmpfs=false", "--tmpfs=/tmp",
         "--user=12345:12345", "--cap-drop=all", f"--volume={place}:/data", image, *map(str, words)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_demo_runs_in_the_image_without_network_read_only_as_an_arbitrary_user(
    image: str, place: Path, natively: dict[str, str]
) -> None:
    done = in_podman(image, *RUN, "/data/run", place=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert models(place / "run") == natively
    assert (place / "run/evaluation/report.html").stat().st_uid == 12345
    usage = json.loads((place / "run/instances/00/resource_usage.json").read_text())
    assert usage["measured_peak_bytes"] > 0


def test_every_executable_is_on_the_path_of_both_images(image: str, sif: Path, place: Path) -> None:
    assert len(EXECUTABLES) >= 9
    script = "\n".join(f"{name} --version" for name in EXECUTABLES)
    version = re.search(r'__version__ = "(.+)"', (ROOT / "metabatch/__init__.py").read_text())
    assert version is not None
    said = in_podman(image, "sh", "-ec", script, place=place)
    assert (said.returncode, said.stdout.count(version[1])) == (0, len(EXECUTABLES)), said.stderr
    said = subprocess.run(["apptainer", "exec", sif, "sh", "-ec", script], capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout.count(version[1])) == (0, len(EXECUTABLES)), said.stderr


def test_the_demo_runs_from_the_sif_without_network_as_an_ordinary_user(
    sif: Path, installed: tuple[Path, Path, dict[str, str]], place: Path, natively: dict[str, str]
) -> None:
    """`--containall`: no home, no environment; a SIF is always read-only. `unshare --net`: no interface at all."""
    subprocess.run(["apptainer", "test", sif], check=True, capture_output=True)
    words = ["unshare", "--net", "runuser", "-u", USER, "--", "apptainer", "exec", "--containall", "--no-home",
             "--bind", f"{place}:/data", "--pwd", "/data", str(sif), *RUN, "/data/run"]  # fmt: skip
    done = subprocess.run(words, cwd=place, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert models(place / "run") == natively


def test_the_readme_states_what_the_image_weighs(image: str) -> None:
    """Without its base, which is another one here; a tenth of difference is allowed for."""
    stated = re.search(r"image adds (\d+) MB", (ROOT / "README.md").read_text())
    assert stated is not None
    added = (size_of(image) - size_of(BASE_IMAGE)) / 1e6
    assert added == pytest.approx(float(stated[1]), rel=0.1)


def size_of(image: str) -> int:
    asked = ["podman", "image", "inspect", "--format", "{{.Size}}", image]
    return int(subprocess.run(asked, check=True, capture_output=True, text=True).stdout)
