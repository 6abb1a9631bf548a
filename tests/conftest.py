"""Fixtures: the shipped real data, the executables as a user starts them, trained runs, small tables."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import psutil
import pytest

from metabatch.rundir.publish import sha256_file

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "examples" / "hg19-demo"
# Genomes that are not part of the project lie beside a checkout, where there are any.
GENOMES = ROOT.parent / "shared" / "data"
# A cluster that nobody runs, for the tests that need none; and what the environment said before.
NO_CLUSTER, own_cluster = Path(__file__).with_name("no-cluster.conf"), os.environ.get("SLURM_CONF")
# For tests of something else.
NO_ANALYSES = ("--analyses", "none")
# Few trees and folds: these tests are about behaviour, not about the model.
QUICK = (
    "--n-estimators", "25", "--n-folds", "3", "--learning-rate", "0.3", "--early-stopping-patience", "5", *NO_ANALYSES,
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Give every parallel worker CPUs of its own: two XGBoosts on the same cores slow each other severalfold."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker is not None:
        cpus = sorted(os.sched_getaffinity(0))
        workers = int(os.environ["PYTEST_XDIST_WORKER_COUNT"])
        mine = cpus[int(worker.removeprefix("gw")) % len(cpus) :: workers]
        os.sched_setaffinity(0, mine)
    # Slurm's commands, where they are installed, wait for a controller that is not there; tests/hpc has a real one.
    os.environ["SLURM_CONF"] = str(NO_CLUSTER)
    # Threads that wait must not spin (libgomp): a test that asks for several has one CPU here.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")


@dataclass(frozen=True)
class Outcome:
    """What an executable did."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


def start(*words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> Outcome:
    """Start bin/COMMAND ARGUMENT... with the interpreter of the tests."""
    command = [str(ROOT / "bin" / words[0]), *map(str, words[1:])]
    surroundings = os.environ | {"METABATCH_PYTHON": sys.executable} | (env or {})
    done = subprocess.run(command, capture_output=True, text=True, env=surroundings, cwd=cwd, check=False)
    return Outcome(done.returncode, done.stdout, done.stderr)


def succeed(*words: str | Path, env: dict[str, str] | None = None, cwd: Path | None = None) -> Outcome:
    """`start`, and fail the test with the command's own words when it did not end well."""
    outcome = start(*words, env=env, cwd=cwd)
    assert outcome.code == 0, f"{words}\n{outcome.out}\n{outcome.err}"
    return outcome


def at_work(*words: str | Path, env: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    """An executable started and left to work."""
    command = [str(ROOT / "bin" / words[0]), *map(str, words[1:])]
    surroundings = os.environ | {"METABATCH_PYTHON": sys.executable} | (env or {})
    return subprocess.Popen(command, env=surroundings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def kill_tree(process: subprocess.Popen[bytes]) -> None:
    """SIGKILL an executable and all that it started, at once."""
    tree = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for part in tree:
        with contextlib.suppress(psutil.NoSuchProcess):
            part.kill()
    process.wait()
    psutil.wait_procs(tree, timeout=10)


def wait_for(path: Path) -> None:
    wait_until(path.exists, str(path))


def wait_until(there: Callable[[], bool], what: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, f"{what} did not appear"
        time.sleep(0.02)


def plan_of(run: Path) -> dict[str, Any]:
    return json.loads((run / "plan.json").read_text())


def snapshot(run: Path) -> dict[str, tuple[int, int]]:
    """Time of change and size of every file."""
    files = (p for p in run.rglob("*") if p.is_file())
    return {str(p.relative_to(run)): (p.stat().st_mtime_ns, p.stat().st_size) for p in files}


def train_all(run: Path) -> None:
    for planned in plan_of(run)["instances"]:
        succeed("train-instance", "--quiet", run, str(planned["index"]))


def models(run: Path) -> dict[str, str]:
    """The sha256 of every file of instance 0's model, and of its out-of-fold scores where there are any."""
    instance = run / "instances/00"
    files = [*(instance / "model").iterdir(), *instance.glob("oof.parquet")]
    return {f.name: sha256_file(f) for f in files}


def write_table(folder: Path, frame: pl.DataFrame, shards: int = 2, row_group: int = 500) -> Path:
    """Write a frame as shards of whole genes."""
    folder.mkdir(parents=True, exist_ok=True)
    genes = frame["gene_id"].unique(maintain_order=True)
    for number in range(shards):
        part = frame.filter(pl.col("gene_id").is_in(genes.gather_every(shards, number).implode()))
        part.write_parquet(folder / f"part-{number}.parquet", row_group_size=row_group)
    return folder


def small_table(genes: int = 24, rows: int = 60, seed: int = 0) -> pl.DataFrame:
    """A generated splice-like table: two informative features, counts, all three classes in every gene."""
    rng = np.random.default_rng(seed)
    n = genes * rows
    label = np.where(np.arange(n) % rows < 4, 1, np.where(np.arange(n) % rows < 8, 2, 0))
    return pl.DataFrame(
        {
            "gene_id": np.repeat([f"G{i:03d}" for i in range(genes)], rows),
            "position": np.tile(np.arange(rows), genes),
            "splice_type": np.array(["neither", "donor", "acceptor"])[label],
            "donor_score": np.clip(0.4 * (label == 1) + rng.random(n) * 0.6, 0, 1).astype(np.float32),
            "acceptor_score": np.clip(0.4 * (label == 2) + rng.random(n) * 0.6, 0, 1).astype(np.float32),
            "signal": (label + rng.normal(0, 0.7, n)).astype(np.float32),
            "3mer_AAA": rng.poisson(0.2, n).astype(np.uint8),
            "3mer_CGA": rng.poisson(0.1, n).astype(np.uint8),
            "gc_content": rng.random(n).astype(np.float32),
        }
    )


@pytest.fixture
def demo() -> Path:
    return DEMO


def genome_folder(name: str) -> Path:
    if not (GENOMES / name).is_dir():
        pytest.skip(f"{GENOMES / name} is not there")
    return GENOMES / name


@pytest.fixture(scope="session")
def hg19_windows() -> Path:
    """Three human windows: genome.fa.gz, annotation.gtf.gz, base_scores.parquet."""
    return genome_folder("hg19-windows")


@pytest.fixture(scope="session")
def worm() -> Path:
    """1 % of C. elegans: genome.fa.gz, annotation.gff3.gz."""
    return genome_folder("worm")


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A finished single-model run on the demo. Do not change it: take `copy_of` for that."""
    run = tmp_path_factory.mktemp("trained") / "run"
    succeed("run-all", "--quiet", "--holdout-fraction", "0.3", *QUICK, DEMO, run)
    before = snapshot(run)
    yield run
    assert snapshot(run) == before, "a test changed the run that others share"


@pytest.fixture(scope="session")
def ensemble(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three instances on the demo without holdout, trained but not consolidated; for copies (`copy_of`)."""
    run = tmp_path_factory.mktemp("ensemble") / "run"
    succeed(
        "plan", "--quiet", "--strategy", "multi-instance", "--holdout-fraction", "0", "--n-folds", "2",
        "--n-estimators", "15", "--learning-rate", "0.3", "--early-stopping-patience", "0", *NO_ANALYSES, DEMO, run,
    )  # fmt: skip
    train_all(run)
    return run


@pytest.fixture
def copy_of(tmp_path: Path) -> Callable[[Path], Path]:
    """A private copy of a run directory (plans hold the data's path, so a copy works)."""

    def make(run: Path) -> Path:
        return Path(shutil.copytree(run, tmp_path / "copy"))

    return make
