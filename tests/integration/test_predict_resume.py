"""A prediction that was killed or stopped goes on with its finished parts, to the same bytes; nothing is left over."""

from __future__ import annotations

import contextlib
import hashlib
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from metabatch.errors import InputError
from metabatch.inference.request import Request
from metabatch.inference.stream import predict
from tests.conftest import DEMO, at_work, start, succeed

WORDS = ("--threads", "1", "--mode", "hybrid", "--format", "bedgraph")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in 24 files."""
    folder = tmp_path_factory.mktemp("data")
    frames = [pl.read_parquet(f) for f in sorted(DEMO.glob("*.parquet"))]
    for number, rows in enumerate(part for frame in frames for part in frame.iter_slices(700)):
        rows.write_parquet(folder / f"{number:02d}.parquet", row_group_size=50)
    return folder


@pytest.fixture(scope="module")
def undisturbed(trained: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    succeed("predict", "--quiet", *WORDS, trained, data, out)
    return out


def content(out: Path) -> dict[str, str]:
    """sha256 of every file; of done.json without its time."""
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir() if p.is_file()}
    done = json.loads((out / "done.json").read_text())
    done["finished"] = None
    return found | {"done.json": json.dumps(done)}


def kept(out: Path) -> dict[str, tuple[int, int]]:
    """The finished parts that wait in `out`: inode and time of writing, which moving them does not change."""
    files = [out / ".parts" / "files" / p.name.removesuffix(".json") for p in out.glob(".parts/records/*.json")]
    return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files if f.is_file()}


def check_finished(out: Path, undisturbed: Path, before: dict[str, tuple[int, int]]) -> None:
    assert content(out) == content(undisturbed)
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    for name, stamp in before.items():
        found = (out / name).stat()
        assert (found.st_ino, found.st_mtime_ns) == stamp, f"{name} was made again"


def wait_for_parts(process: subprocess.Popen[bytes], out: Path, parts: int) -> None:
    """Until so many parts are finished, or the process has come to its end."""
    deadline = time.monotonic() + 120
    while process.poll() is None and len(kept(out)) < parts:
        assert time.monotonic() < deadline, "no part was finished"
        time.sleep(0.005)


def interrupt(trained: Path, data: Path, out: Path, parts: int, number: signal.Signals) -> int:
    """Send a signal when so many parts are finished; the exit code."""
    process = at_work("predict", *WORDS, trained, data, out)
    wait_for_parts(process, out, parts)
    process.send_signal(number)
    return process.wait(60)


def test_killed_again_and_again_it_keeps_what_was_finished(
    trained: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out, dice, kills = tmp_path / "out", random.Random(3), 0
    before: dict[str, tuple[int, int]] = {}
    for parts in (1, 6, 12, 18, 24):
        process = at_work("predict", *WORDS, trained, data, out)
        wait_for_parts(process, out, parts)
        time.sleep(dice.uniform(0, 0.1))
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        if process.wait(60) == 0:
            break
        kills += 1
        assert not (out / "done.json").exists()
        assert before.items() <= kept(out).items()
        before = kept(out)
        assert len(before) >= parts
    assert kills >= 3
    succeed("predict", "--quiet", *WORDS, trained, data, out)
    check_finished(out, undisturbed, before)


def test_asked_to_stop_it_says_75_and_goes_on_later(
    trained: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert interrupt(trained, data, out, 3, signal.SIGTERM) == 75
    before = kept(out)
    assert len(before) >= 3
    assert {p.name for p in out.iterdir()} == {".parts"}
    said = succeed("predict", "--quiet", "--json", *WORDS, trained, data, out).json
    assert said["kept_parts"] == len(before)
    check_finished(out, undisturbed, before)


# A process that kills itself when so many files of the stage are in place: between the first rename and done.json.
KILLED_WHILE_PUBLISHING = """
import os, signal, sys
from pathlib import Path
from metabatch.inference.request import Request
from metabatch.inference.stream import predict
from metabatch.rundir import markers

def some_of_it(source, target):
    for file in sorted(p for p in source.rglob("*") if p.is_file())[: int(sys.argv[4])]:
        os.replace(file, target / file.name)
    os.kill(os.getpid(), signal.SIGKILL)

markers.publish_files = some_of_it
request = Request(mode="hybrid", format="bedgraph")
predict(sys.argv[1], sys.argv[2], Path(sys.argv[3]), request, threads=1, force=True)
"""


@pytest.mark.parametrize("moved", [7])
def test_killed_while_it_publishes_it_knows_its_files_again(
    moved: int, trained: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    """Over earlier predictions with more files than the new ones have."""
    out = tmp_path / "out"
    predict(trained, data, out, Request(format="tsv"), part_rows=300)
    words = (sys.executable, "-c", KILLED_WHILE_PUBLISHING, trained, data, out, moved)
    assert subprocess.run(list(map(str, words)), check=False).returncode == -signal.SIGKILL
    assert not (out / "done.json").exists()
    assert len(list(out.glob("part-*.parquet"))) == moved - len(list(out.glob("*.bedgraph.gz")))
    (out / "notes.txt").write_text("mine")
    assert start("predict", *WORDS, trained, data, out).code == 3  # that is nobody's but the user's
    (out / "notes.txt").unlink()
    said = succeed("predict", "--quiet", "--json", *WORDS, trained, data, out).json
    assert said["kept_parts"] == said["parts"]
    check_finished(out, undisturbed, {})


def test_parts_that_are_damaged_or_of_other_options_are_made_again(
    trained: Path, data: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert interrupt(trained, data, out, 4, signal.SIGKILL) == -signal.SIGKILL
    other = Path(shutil.copytree(out, tmp_path / "other"))
    before = kept(out)
    damaged = out / ".parts" / "files" / "part-00001.parquet"
    raw = bytearray(damaged.read_bytes())
    raw[len(raw) // 2] ^= 1
    damaged.write_bytes(raw)
    said = succeed("predict", "--quiet", "--json", *WORDS, trained, data, out).json
    assert said["kept_parts"] == len(before) - 1
    check_finished(out, undisturbed, {n: s for n, s in before.items() if n != damaged.name})
    said = succeed("predict", "--quiet", "--json", "--mode", "base_only", trained, data, other).json
    assert said["kept_parts"] == 0
    assert not [p for p in other.iterdir() if p.name.startswith(".") or p.suffix == ".gz"]


def test_data_that_cannot_be_predicted_leaves_no_parts(trained: Path, data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    last = max(copy.iterdir())
    pl.read_parquet(last).with_columns(gc_content=pl.lit(float("inf"), pl.Float32)).write_parquet(last)
    with pytest.raises(InputError, match="gc_content holds"):
        predict(trained, copy, tmp_path / "out", threads=1)
    assert not (tmp_path / "out").exists()
