"""`prune-features` drops what says nothing of its own, tells why, and survives kills; all else stays as it was."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from metabatch.data.index import build_index
from metabatch.data.roles import resolve_columns
from metabatch.data.schema import union_schema
from metabatch.options import Options
from metabatch.pruning.sample import draw_genes
from metabatch.rundir.lock import hold_folder
from tests.conftest import DEMO, NO_ANALYSES, Outcome, at_work, plan_of, small_table, start, succeed

CONTEXT = (
    "gene_id", "gene_name", "locus_id", "chrom", "strand", "position", "splice_type", "donor_score", "acceptor_score",
    "neither_score", "gc_content", "gene_length", "3mer_ACG", "3mer_CGA", "sampling_weight",
)  # fmt: skip


def planted(folder: Path) -> Path:
    """A part of the demo's columns, with redundant ones and some that only look it."""
    folder.mkdir()
    rng = np.random.default_rng(2)
    for number, file in enumerate(sorted(DEMO.glob("*.parquet"))):
        table = pl.read_parquet(file)
        table = table.select([c for c in CONTEXT if c in table.columns])
        n = table.height
        one = np.zeros(n, np.float32)
        few = np.zeros(n, np.uint8)
        if number == 2:
            one[7], few[:60] = 1, 1  # 1 and 60 of 16,392 rows
        gc, score = table["gc_content"].to_numpy(), table["donor_score"].to_numpy()
        columns = {
            "always_3": np.full(n, 3, np.int64), "never": np.full(n, np.nan, np.float32),
            "untyped": pl.Series([None] * n), "once": one, "seldom": few,
            "same_gc": gc.astype(np.float64), "same_kmer": table["3mer_ACG"].cast(pl.Int32),
            "log_gc": np.log(gc + 1), "noisy_gc": gc + rng.normal(0, 0.001, n).astype(np.float32),
            "like_donor": (1 - score + rng.normal(0, 0.002, n)).astype(np.float32),
            "own": rng.normal(size=n).astype(np.float32),
            # As same_gc is, but in one row.
            "nearly_gc": np.where((np.arange(n) == 11) & (number == 1), 0.5, gc).astype(np.float32),
        }  # fmt: skip
        if number == 3:
            del columns["own"]
        frame = table.with_columns(pl.Series(k, v) for k, v in columns.items())
        pq.write_table(frame.to_arrow(), folder / file.name, row_group_size=1_500, compression="snappy")
    shutil.copy(DEMO / "gene_manifest.csv", folder)
    (folder / "dataset.json").write_text(json.dumps({"format_version": 1, "kmer_sizes": [3]}))
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("planted") / "data")


@pytest.fixture(scope="module")
def out(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned") / "out"
    # A dozen genes: `seldom` has a single value in them.
    succeed("prune-features", "--quiet", "--sample-rows-per-shard", "900", data, folder)
    return folder


def reasons(out: Path) -> dict[str, dict[str, Any]]:
    return {p["feature"]: p for p in json.loads((out / "pruned_features.json").read_text())["pruned"]}


def test_every_planted_column_goes_for_its_own_reason(out: Path) -> None:
    gone = reasons(out)
    assert {n: (p["reason"], p["against"]) for n, p in gone.items()} == {
        "always_3": ("constant", None), "never": ("constant", None), "untyped": ("constant", None),
        "once": ("near-constant", None),
        "same_gc": ("duplicate", "gc_content"), "same_kmer": ("duplicate", "3mer_ACG"),
        "nearly_gc": ("correlated", "gc_content"), "log_gc": ("correlated", "gc_content"),
        "noisy_gc": ("correlated", "gc_content"), "like_donor": ("correlated", "donor_score"),
    }  # fmt: skip
    assert gone["once"]["value"] == pytest.approx(16_391 / 16_392)
    assert gone["always_3"]["rows"] == gone["same_gc"]["rows"] == 16_392
    assert gone["log_gc"]["statistic"] == "spearman"
    assert gone["log_gc"]["value"] == pytest.approx(1, abs=1e-4)
    assert gone["like_donor"]["value"] < -0.98
    assert "donor_score is kept: base score" in gone["like_donor"]["said"]
    assert "gc_content is kept: earlier in the table" in gone["same_gc"]["said"]


def test_a_column_with_one_value_in_the_sample_only_is_kept_and_named(out: Path) -> None:
    record = json.loads((out / "pruned_features.json").read_text())
    assert record["not_correlated"] == ["seldom"]  # no correlation without two values
    assert 3_600 <= record["sample"]["rows"] < 16_392
    assert record["sample"]["shards"] == 4
    assert "seldom" not in reasons(out)


def test_all_else_is_as_it_was(data: Path, out: Path) -> None:
    gone = set(reasons(out))
    for file in sorted(data.glob("*.parquet")):
        before, after = pl.read_parquet(file), pl.read_parquet(out / file.name)
        assert after.columns == [c for c in before.columns if c not in gone]
        assert after.equals(before.select(after.columns))
        meta, old = pq.read_metadata(out / file.name), pq.read_metadata(file)
        assert [meta.row_group(i).num_rows for i in range(meta.num_row_groups)] == [
            old.row_group(i).num_rows for i in range(old.num_row_groups)
        ]
        assert meta.row_group(0).column(0).compression == "ZSTD"
    assert "3mer_CGA" not in pl.read_parquet_schema(out / "positions-00002.parquet")
    assert (out / "gene_manifest.csv").read_bytes() == (DEMO / "gene_manifest.csv").read_bytes()
    description = json.loads((out / "dataset.json").read_text())
    assert description["kmer_sizes"] == [3]
    assert set(description["pruned"][0]["features"]) == gone


def test_pruned_again_nothing_goes_and_the_plan_takes_it(out: Path, tmp_path: Path) -> None:
    again = succeed(
        "prune-features", "--quiet", "--json", "--sample-rows-per-shard", "900", out, tmp_path / "again"
    ).json
    assert again["record"]["pruned"] == []
    assert len(json.loads((tmp_path / "again/dataset.json").read_text())["pruned"]) == 2
    assert succeed("plan", "--quiet", "--n-folds", "2", *NO_ANALYSES, tmp_path / "again", tmp_path / "run").out


def test_names_and_limits_decide(data: Path, tmp_path: Path) -> None:
    listed = tmp_path / "keep.txt"
    listed.write_text("# mine\nlog_gc\nalways_3\n")
    words = ("--keep", listed, "--exclude-features", "own", "--max-correlation", "1", "--near-constant", "1")
    said = succeed("prune-features", "--quiet", *words, data, tmp_path / "out").out
    assert "correlation was not looked at" in said
    assert "did not enter" not in said
    gone = reasons(tmp_path / "out")
    assert {n: p["reason"] for n, p in gone.items()} == {
        "own": "excluded", "never": "constant", "untyped": "constant", "same_gc": "duplicate", "same_kmer": "duplicate",
    }  # fmt: skip
    # Nothing was compared.
    left = set(pl.read_parquet_schema(tmp_path / "out/positions-00000.parquet")) - set(CONTEXT)
    assert left | {"gc_content", "donor_score", "3mer_ACG"} <= set(
        json.loads((tmp_path / "out/pruned_features.json").read_text())["not_correlated"]
    )
    succeed("prune-features", "--quiet", "--keep", "log_gc", "--max-corr-cols", "6", "--correlation", "spearman", data,
            tmp_path / "few")  # fmt: skip
    record = json.loads((tmp_path / "few/pruned_features.json").read_text())
    assert len(record["not_correlated"]) > 3
    assert "did not enter the correlation" in record["notes"][0]
    entered = [p["feature"] for p in record["pruned"] if p["reason"] == "correlated"]
    assert not set(entered) & set(record["not_correlated"])
    assert all(p["statistic"] == "spearman" for p in record["pruned"] if p["reason"] == "correlated")


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo in 24 shards."""
    folder = tmp_path_factory.mktemp("many") / "data"
    folder.mkdir()
    frames = [pl.read_parquet(f) for f in sorted(DEMO.glob("*.parquet"))]
    for number, rows in enumerate(part for frame in frames for part in frame.iter_slices(700)):
        rows.write_parquet(folder / f"{number:02d}.parquet", row_group_size=300)
    return folder


def content(out: Path) -> dict[str, str]:
    """sha256 of every file; of done.json without its time."""
    found = {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in out.iterdir() if p.is_file()}
    done = json.loads((out / "done.json").read_text())
    done["finished"] = None
    return found | {"done.json": json.dumps(done)}


def finished_shards(out: Path) -> dict[str, tuple[int, int]]:
    """Inode and time of writing, which moving does not change."""
    files = [out / ".parts/files" / p.name.removesuffix(".json") for p in out.glob(".parts/records/*.parquet.json")]
    return {f.name: (f.stat().st_ino, f.stat().st_mtime_ns) for f in files if f.is_file()}


def wait_for_shards(process: subprocess.Popen[bytes], out: Path, shards: int) -> None:
    deadline = time.monotonic() + 120
    while process.poll() is None and len(finished_shards(out)) < shards:
        assert time.monotonic() < deadline, "no shard was finished"
        time.sleep(0.005)


def test_killed_and_stopped_it_goes_on_to_the_same_files(many: Path, tmp_path: Path) -> None:
    succeed("prune-features", "--quiet", many, tmp_path / "undisturbed")
    out = tmp_path / "out"
    before: dict[str, tuple[int, int]] = {}
    ends = []
    for shards, number in ((0, signal.SIGKILL), (1, signal.SIGKILL), (9, signal.SIGTERM), (17, signal.SIGKILL)):
        process = at_work("prune-features", many, out)
        if shards:
            wait_for_shards(process, out, shards)
        else:
            time.sleep(1.0)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)
        ends.append(process.wait(60))
        assert not (out / "done.json").exists()
        assert not out.exists() or {p.name for p in out.iterdir() if not p.name.startswith(".")} == set()
        assert before.items() <= finished_shards(out).items()
        before = finished_shards(out)
        assert len(before) >= shards
    assert ends == [-9, -9, 75, -9]
    said = succeed("prune-features", "--quiet", "--json", many, out).json
    assert said["kept_parts"] == len(before) >= 17
    assert content(out) == content(tmp_path / "undisturbed")
    assert [p.name for p in out.iterdir() if p.name.startswith(".")] == []
    for name, stamp in before.items():
        assert ((out / name).stat().st_ino, (out / name).stat().st_mtime_ns) == stamp, f"{name} was made again"


def test_what_is_pruned_stays_and_other_options_need_force(data: Path, out: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(out, tmp_path / "copy"))
    same = succeed("prune-features", "--quiet", "--sample-rows-per-shard", "900", data, copy)
    assert "already pruned" in same.out
    assert content(copy) == content(out)
    other = ("prune-features", "--quiet", "--max-correlation", "1", data, copy)
    refused = start(*other)
    assert refused.code == 3
    assert "with other options" in refused.err
    assert "--force" in refused.err
    succeed(*other, "--force")
    assert "log_gc" in pl.read_parquet_schema(copy / "positions-00000.parquet")
    assert [p.name for p in copy.iterdir() if p.name.startswith(".")] == []


def test_the_order_of_names_and_the_version_are_no_other_options(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("prune-features", "--quiet", "--sample-rows-per-shard", "100")
    succeed(*words, "--keep", "own,log_gc", "--exclude-features", "once,seldom", data, out)
    same = (*words, "--keep", "log_gc,own", "--exclude-features", "seldom,once", data, out)
    said = succeed(*same).out
    assert "already pruned" in said
    assert "made by metabatch" not in said
    record = json.loads((out / "pruned_features.json").read_text())
    raw = json.dumps(record | {"metabatch_version": "0.0.1"}).encode()
    (out / "pruned_features.json").write_bytes(raw)
    done = json.loads((out / "done.json").read_text())
    done["metabatch_version"] = "0.0.1"
    done["files"]["pruned_features.json"] = {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
    (out / "done.json").write_text(json.dumps(done))
    said = succeed(*same).out
    assert "already pruned" in said
    assert "made by metabatch 0.0.1" in said


def refused(code: int, out: Path, *words: str, command: tuple[str | Path, ...]) -> Outcome:
    """`prune-features` ends with `code`, says `words`, and leaves nothing of its own."""
    there = sorted(out.iterdir()) if out.exists() else None
    outcome = start("prune-features", *command, out)
    assert outcome.code == code, outcome.err
    assert "Traceback" not in outcome.err
    for word in words:
        assert word in outcome.err
    assert (sorted(out.iterdir()) if out.exists() else None) == there
    return outcome


def changed(data: Path, folder: Path, *columns: pl.Expr, shard: int = 1) -> Path:
    copy = Path(shutil.copytree(data, folder))
    file = sorted(copy.glob("*.parquet"))[shard]
    pl.read_parquet(file).with_columns(*columns).write_parquet(file, row_group_size=1_500)
    return copy


def test_bad_data_is_refused_in_one_message(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    last = pl.int_range(pl.len()) == pl.len() - 1
    infinite = pl.when(last).then(pl.lit(float("inf"))).otherwise("own").alias("own")
    words = ("--sample-rows-per-shard", "100")
    mad = changed(data, tmp_path / "inf", infinite)
    refused(3, out, "column own holds infinite", "positions-00001", "--exclude-features own", command=(*words, mad))
    # What stays cannot be excluded.
    told = refused(3, out, "column own holds infinite", "own stays: named by --keep", command=("--keep", "own", mad))
    assert "--exclude-features" not in told.err
    text = changed(data, tmp_path / "text", pl.lit("x").alias("tissue"))
    refused(3, out, "column tissue holds", "--exclude-features tissue", command=(text,))
    mixed = changed(data, tmp_path / "mixed", pl.col("own").cast(pl.String))
    refused(3, out, "column own holds", "positions-00001", command=(mixed,))
    cut = Path(shutil.copytree(data, tmp_path / "cut"))
    file = cut / "positions-00001.parquet"
    file.write_bytes(file.read_bytes()[:-300])
    refused(3, out, "positions-00001.parquet cannot be read as parquet", command=(cut,))
    refused(3, out, "does not exist", command=(tmp_path / "nowhere",))
    twice = changed(data, tmp_path / "twice", pl.lit(1).alias("position"))
    refused(3, out, "duplicate row(s)", command=(twice,))


def test_a_column_that_goes_may_be_infinite_outside_the_sample(data: Path, tmp_path: Path) -> None:
    last = pl.int_range(pl.len()) == pl.len() - 1
    infinite = pl.when(last).then(pl.lit(float("inf"))).otherwise("noisy_gc").alias("noisy_gc")
    out = tmp_path / "out"
    succeed("prune-features", "--quiet", "--sample-rows-per-shard", "100",
            changed(data, tmp_path / "data", infinite), out)  # fmt: skip
    assert reasons(out)["noisy_gc"]["reason"] == "correlated"


def test_near_constant_is_what_all_rows_say_not_the_sample(tmp_path: Path) -> None:
    """A mark in 20 of 24,000 rows, all in one gene; the sample has that gene, and too large a part of them."""
    folder = tmp_path / "data"
    frame = small_table(genes=240, rows=100)
    frame.with_columns(pl.lit(0.0).alias("mark")).write_parquet(tmp_path / "plain.parquet")
    files = [tmp_path / "plain.parquet"]
    index = build_index(files, [(frame.height,)], resolve_columns(union_schema(files), Options()))
    drawn = draw_genes(index, 2_400, Options().seed)["gene_id"]
    marked = (pl.col("gene_id") == drawn[0]) & (pl.col("position") < 20)
    folder.mkdir()
    frame.with_columns(marked.cast(pl.Float32).alias("mark")).write_parquet(folder / "a.parquet")
    succeed("prune-features", "--quiet", "--sample-rows-per-shard", "2400", "--near-constant", "0.999", folder,
            tmp_path / "out")  # fmt: skip
    assert json.loads((tmp_path / "out/pruned_features.json").read_text())["sample"]["rows"] == 2_400
    gone = reasons(tmp_path / "out")["mark"]
    assert (gone["reason"], gone["rows"]) == ("near-constant", 24_000)
    assert gone["value"] == pytest.approx(1 - 20 / 24_000)


def test_that_nothing_but_what_always_stays_is_left_is_said(tmp_path: Path) -> None:
    frame = small_table(genes=12, rows=40).with_columns(
        signal=pl.lit(1.0), gc_content=pl.col("donor_score") * 2, **{"3mer_AAA": pl.lit(0), "3mer_CGA": pl.lit(3)}
    )
    frame.write_parquet(tmp_path / "table.parquet")
    said = succeed("prune-features", "--quiet", tmp_path / "table.parquet", tmp_path / "out").out
    assert "note: no feature is left but those that stay whatever they hold: donor_score, acceptor_score" in said


def test_an_empty_shard_is_kept_empty(data: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(data, tmp_path / "data"))
    pl.read_parquet(copy / "positions-00001.parquet").clear().write_parquet(copy / "positions-00001.parquet")
    succeed("prune-features", "--quiet", copy, tmp_path / "out")
    found = pl.read_parquet(tmp_path / "out/positions-00001.parquet")
    assert found.height == 0
    assert "always_3" not in found.columns
    assert "gc_content" in found.columns


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--max-correlation", "0.2"), 2, ("--max-correlation 0.2 is out of range",)),
        (("--near-constant", "x"), 2, ("--near-constant x cannot be used",)),
        (("--correlation", "kendall"), 2, ("--correlation kendall",)),
        (("--sample-rows-per-shard", "0"), 2, ("--sample-rows-per-shard 0",)),
        (("--keep", "nope"), 3, ("no column nope",)),
        (("--exclude-features", "nope"), 3, ("no column nope",)),
        (("--exclude-features", "locus_id"), 2, ("split column",)),
        (("--exclude-features", "donor_score"), 2, ("base score",)),
        (("--keep", "own", "--exclude-features", "own"), 2, ("both",)),
    ],
)
def test_options_that_cannot_be_used(
    data: Path, tmp_path: Path, options: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    refused(code, tmp_path / "out", *words, command=(*options, data))


def test_a_folder_of_somebody_else_is_not_touched(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/notes.txt").write_text("mine")
    refused(3, tmp_path / "out", "holds other files", "choose another OUT", command=("--force", data))


def test_the_data_set_is_never_its_own_output(out: Path, tmp_path: Path) -> None:
    """An earlier output is the one folder that --force replaces: not when it is what is read."""
    copy = Path(shutil.copytree(out, tmp_path / "place/copy"))
    before = content(copy)
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "a.parquet").symlink_to(copy / "positions-00000.parquet")
    (tmp_path / "other").symlink_to(copy)
    file = copy / "positions-00001.parquet"
    for data, target in (
        (copy, copy), (copy, tmp_path / "other"), (copy, copy / "inside"), (copy, tmp_path / "place"), (file, copy),
        (linked, copy),
    ):  # fmt: skip
        outcome = start("prune-features", "--quiet", "--force", data, target)
        assert outcome.code == 2, (data, target, outcome.err)
        assert "are not apart" in outcome.err
        assert content(copy) == before
        assert not (copy / "inside").exists()


@pytest.mark.parametrize("name", ["table.pq", "_x.parquet"])
def test_a_single_file_is_pruned_to_one_that_a_folder_is_known_by(name: str, tmp_path: Path) -> None:
    small_table(genes=12, rows=40).write_parquet(tmp_path / name)
    out = tmp_path / "out"
    succeed("prune-features", "--quiet", tmp_path / name, out)
    assert [p.name for p in out.glob("*.parquet")] == ["table.parquet" if name == "table.pq" else "x.parquet"]
    succeed("plan", "--quiet", "--n-folds", "2", *NO_ANALYSES, out, tmp_path / "run")


def test_a_built_data_set_keeps_its_recipe_and_describes_the_new_shards(hg19_windows: Path, tmp_path: Path) -> None:
    built, out = tmp_path / "built", tmp_path / "out"
    succeed(
        "build-dataset", "--quiet", "--workers", "1", "--rows-per-shard", "5000", "--base-scores",
        hg19_windows / "base_scores.parquet", hg19_windows / "genome.fa.gz", hg19_windows / "annotation.gtf.gz", built,
    )  # fmt: skip
    succeed("prune-features", "--quiet", built, out)
    before, after = (json.loads((folder / "dataset.json").read_text()) for folder in (built, out))
    assert len(reasons(out)) > 5
    assert after["pruned"][0]["shards"] == before["shards"]
    assert set(after["shards"]) == set(before["shards"])
    for name, said in after["shards"].items():
        raw = (out / name).read_bytes()
        assert said == {"bytes": len(raw), "sha256": hashlib.sha256(raw).hexdigest()}
        assert said != before["shards"][name]
    succeed("plan", "--quiet", "--n-folds", "2", *NO_ANALYSES, out, tmp_path / "run")
    assert plan_of(tmp_path / "run")["recipe"] == before["recipe"]
    # A shard alone is known by the description beside it, and by no other.
    shard, stranger = built / "positions-00000.parquet", built / "stranger.parquet"
    succeed("prune-features", "--quiet", shard, tmp_path / "one")
    assert set(json.loads((tmp_path / "one/dataset.json").read_text())["shards"]) == {shard.name}
    assert (tmp_path / "one/gene_manifest.csv").is_file()
    shutil.copy(shard, stranger)
    succeed("prune-features", "--quiet", stranger, tmp_path / "other")
    assert not (tmp_path / "other/dataset.json").exists()


def test_a_second_process_gives_way(data: Path, tmp_path: Path) -> None:
    with hold_folder(tmp_path / "out"):
        outcome = start("prune-features", "--quiet", data, tmp_path / "out")
    assert outcome.code == 5
    assert "another live process works in" in outcome.err


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "disk"
    place.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=700k", "none", str(place)]
    if os.geteuid() != 0 or subprocess.run(words, check=False, capture_output=True).returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def test_a_full_disk_is_one_message_and_the_work_goes_on_when_there_is_space(small_disk: Path, many: Path) -> None:
    out = small_disk / "out"
    outcome = start("prune-features", "--quiet", many, out)
    assert outcome.code == 3
    assert "no space left on the disk" in outcome.err
    assert "Traceback" not in outcome.err
    assert not (out / "done.json").exists()
    before = finished_shards(out)
    assert before
    subprocess.run(["mount", "-o", "remount,size=20m", small_disk], check=True)
    assert succeed("prune-features", "--quiet", "--json", many, out).json["kept_parts"] == len(before)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    outcome = start("prune-features", "--quiet", "--force", many, out)
    assert outcome.code == 3
    assert "Read-only" in outcome.err
    assert "Traceback" not in outcome.err
