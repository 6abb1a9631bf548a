"""A real Slurm of three nodes on this machine, an ordinary user on it, and metabatch where that user can read it."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import ROOT, Outcome, own_cluster

SCRIPTS = Path(os.environ.get("METABATCH_HPC", ROOT.parent / "shared" / "hpc"))
USER = "hpcuser"
BASE_IMAGE = "docker.io/library/python:3.12-slim-bookworm"
MISSING = next(
    (
        text
        for wrong, text in (
            (os.geteuid() != 0, "needs root (starts Slurm daemons and builds images)"),
            (not (SCRIPTS / "slurm-up.sh").is_file(), f"no {SCRIPTS}/slurm-up.sh (METABATCH_HPC names another place)"),
        )
        if wrong
    ),
    None,
)


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if MISSING and here in Path(item.path).parents:
            item.add_marker(pytest.mark.skip(reason=MISSING))


@dataclass(frozen=True)
class Cluster:
    """The cluster as its ordinary user sees it. `place`: where that user works; `house`: the checkout it uses."""

    place: Path
    house: Path
    env: dict[str, str]

    def sh(self, command: str, *, image: Path | None = None) -> Outcome:
        """A shell command of the user in `place`."""
        more = {} if image is None else {"METABATCH_IMAGE": str(image)}
        words = ["runuser", "-u", USER, "--", "bash", "-c", command]
        done = subprocess.run(words, cwd=self.place, env=os.environ | self.env | more, capture_output=True, text=True,
                              check=False)  # fmt: skip
        return Outcome(done.returncode, done.stdout, done.stderr)

    def ok(self, command: str, *, image: Path | None = None) -> Outcome:
        """As `sh`, and fail the test when it did not end well."""
        outcome = self.sh(command, image=image)
        assert outcome.code == 0, f"{command}\n{outcome.out}\n{outcome.err}"
        return outcome

    def job(self, number: str) -> dict[str, str]:
        """What Slurm says of a job or array task."""
        text = self.ok(f"scontrol --oneliner show job {number}").out
        return dict(re.findall(r"(\w+)=(\S*)", text))

    def wait(self, there: Callable[[], bool], what: str, seconds: float = 180) -> None:
        deadline = time.monotonic() + seconds
        while not there():
            if time.monotonic() > deadline:
                logs = "\n".join(p.read_text()[-3000:] for p in sorted(self.place.rglob("*.log")))
                raise AssertionError(f"{what} did not come\n{self.sh('squeue --states=all').out}\n{logs}")
            time.sleep(0.5)

    def wait_for_state(self, number: str, states: set[str], seconds: float = 180) -> None:
        self.wait(lambda: self.job(number)["JobState"] in states, f"{number} in {states}", seconds)


@pytest.fixture(scope="session")
def installed() -> Iterator[tuple[Path, Path, dict[str, str]]]:
    """Copies of metabatch and of this Python that an ordinary user can read."""
    place = Path(tempfile.mkdtemp(prefix="hpc-of-metabatch-"))
    place.chmod(0o755)
    house = place / "house"
    house.mkdir()
    for name in ("bin", "jobs", "metabatch", "examples"):
        shutil.copytree(ROOT / name, house / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "requirements.lock", house)
    skipped = shutil.ignore_patterns("__pycache__", "test", "site-packages")
    shutil.copytree(sys.base_prefix, place / "python", symlinks=True, ignore=skipped)
    packages = next(Path(p) for p in sys.path if p.endswith("site-packages"))
    shutil.copytree(packages, place / "packages", symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    env = {
        "METABATCH_PYTHON": str(place / "python/bin" / Path(sys.executable).resolve().name),
        "LD_LIBRARY_PATH": str(place / "python/lib"),
        "PYTHONPATH": str(place / "packages"),
    }
    yield place, house, env
    shutil.rmtree(place, ignore_errors=True)


def models(run: Path) -> dict[str, str]:
    """sha256 of every model file of the instances."""
    files = sorted((run / "instances").glob("*/model/*"))
    return {str(f.relative_to(run)): hashlib.sha256(f.read_bytes()).hexdigest() for f in files}


def tool(*words: str | Path) -> None:
    """One of the scripts that set up real tools; what it says when it fails is the test's error."""
    done = subprocess.run([SCRIPTS / words[0], *words[1:]], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          check=False)  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]


@pytest.fixture(scope="session")
def image() -> str:
    """The image of this checkout."""
    tool("image-build.sh", "python", "3.12")
    tool("image-build.sh", "build", "localhost/metabatch:test", ROOT)
    return "localhost/metabatch:test"


@pytest.fixture(scope="session")
def sif(image: str, installed: tuple[Path, Path, dict[str, str]]) -> Path:
    """The same for Apptainer, where an ordinary user can read it."""
    place, _, _ = installed
    archive, file = place / "image.tar", place / "metabatch.sif"
    tool("apptainer-get.sh")
    tool("image-build.sh", "archive", image, archive)
    subprocess.run(
        ["apptainer", "build", "--build-arg", "BOOTSTRAP=docker-archive", "--build-arg", f"FROM={archive}", file,
         ROOT / "apptainer.def"],
        env=os.environ | {"APPTAINER_MKSQUASHFS_ARGS": "-comp lz4"}, check=True, capture_output=True,
    )  # fmt: skip
    archive.unlink()
    return file


@pytest.fixture(scope="session")
def slurm() -> Iterator[None]:
    """Three nodes; started for the tests and stopped after them."""
    del os.environ["SLURM_CONF"]  # of the tests that have no cluster
    if own_cluster is not None:
        os.environ["SLURM_CONF"] = own_cluster
    tool("slurm-up.sh")
    yield
    subprocess.run([SCRIPTS / "slurm-down.sh"], capture_output=True, check=False)


@pytest.fixture
def cluster(slurm: None, installed: tuple[Path, Path, dict[str, str]]) -> Iterator[Cluster]:
    place, house, env = installed
    work = Path(tempfile.mkdtemp(prefix="work-", dir=place))
    shutil.chown(work, USER)
    yield Cluster(work, house, env)
    subprocess.run(["scancel", f"--user={USER}"], check=False)
    empty = f'until [ -z "$(squeue --noheader --user={USER})" ]; do sleep 0.5; done'
    subprocess.run(["bash", "-c", empty], check=False, timeout=60)
