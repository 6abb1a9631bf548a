"""`inspect-dataset` tells a bad data set: what is wrong, where, and what next; it exits 0 where the set can be read."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest

from metabatch.options import Options
from metabatch.planning import leaks, screening
from metabatch.planning.inspect import inspect_dataset
from tests.conftest import DEMO, NO_ANALYSES, start, succeed

COLUMNS = (
    "gene_id", "locus_id", "chrom", "strand", "position", "splice_type", "donor_score", "acceptor_score",
    "neither_score", "gc_content", "donor_max_up300", "3mer_ACG", "3mer_CGA", "gene_length", "sampling_weight",
)  # fmt: skip


def shards_of(*, but: tuple[str, ...] = ()) -> dict[str, pl.DataFrame]:
    found = {}
    for file in sorted(DEMO.glob("*.parquet")):
        frame = pl.read_parquet(file)
        found[file.name] = frame.select(c for c in COLUMNS if c in frame.columns and c not in but)
    return found


def write(folder: Path, shards: dict[str, pl.DataFrame], row_group: int = 2_000) -> Path:
    folder.mkdir(parents=True)
    for name, frame in shards.items():
        frame.write_parquet(folder / name, row_group_size=row_group)
    return folder


def inspected(data: Path, *options: str) -> Any:
    return succeed("inspect-dataset", "--quiet", "--json", *options, data).json


def problems(found: Any, severity: str) -> list[str]:
    """What and where, of one severity."""
    return [f"{p['what']} | {p['where']}" for p in found["problems"] if p["severity"] == severity]


def test_the_demo_has_no_errors_and_its_oddities_are_notes() -> None:
    found = inspected(DEMO)
    assert {p["severity"] for p in found["problems"]} == {"note"}
    notes = problems(found, "note")
    assert any("3mer_CGA, 3mer_TCG | positions-00002.parquet" in n for n in notes)
    # SOURCE.md of the demo: 15 negatives are sites of another gene on the same strand.
    assert any("15 of them with another label" in n for n in notes)
    assert found["prevalence"]["donor"] == pytest.approx(413 / 16_392)
    assert found["weighted_prevalence"]["donor"] == pytest.approx(1.6e-4, rel=0.05)
    assert sum(found["weighted_prevalence"].values()) == pytest.approx(1)
    assert found["leaks"] == {"genes": 37, "features": 159, "flagged": {}, "skipped": None}


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo with leaks (one in one shard only), a gene over two shards and one torn apart, rows twice, no loci."""
    shards = shards_of(but=("locus_id",))
    rng = np.random.default_rng(7)
    for number, (name, frame) in enumerate(shards.items()):
        site = (frame["splice_type"] != "neither").to_numpy()
        noise = rng.normal(size=frame.height).astype(np.float32)
        shards[name] = frame.with_columns(
            pl.Series("filled", np.where(site, noise, np.nan)).fill_nan(None),
            pl.Series("zeros", np.where(site, noise, 0)),
            pl.Series("one_shard", np.where(site & (number == 3), noise, np.nan)).fill_nan(None),
            pl.Series("honest", noise),
        )
    a, b, c, d = shards
    moved = shards[a]["gene_id"][-1]
    part = shards[a].filter(pl.col("gene_id") == moved)[:50]
    shards[b] = pl.concat([shards[b], part])
    shards[a] = pl.concat(
        [shards[a].filter(pl.col("gene_id") != moved), shards[a].filter(pl.col("gene_id") == moved)[50:]]
    )
    shards[c] = pl.concat([shards[c][:5], shards[c][700:], shards[c][5:700]])
    shards[d] = pl.concat([shards[d], shards[d][100:103]])
    shards[b] = shards[b].with_columns(sampling_weight=2 * pl.col("sampling_weight"))
    return write(tmp_path_factory.mktemp("bad") / "data", shards | {"positions-00004.parquet": shards[d].clear()}, 300)


def test_every_planted_fault_is_found(bad: Path) -> None:
    found = inspected(bad)
    errors, warnings, notes = (problems(found, s) for s in ("error", "warning", "note"))
    assert len(errors) == 1
    assert errors[0].startswith("3 duplicate row(s): same gene_id, position | gene ENSG")
    assert "positions-00003.parquet" in errors[0]
    assert set(found["leaks"]["flagged"]) == {"filled", "zeros", "one_shard"}
    for name in ("filled", "zeros", "one_shard"):
        assert any(w.startswith(f"{name} may give the label away") for w in warnings)
    assert any("1 gene(s) lie in more than one shard" in w and "positions-00001.parquet" in w for w in warnings)
    apart = set()
    for file in sorted(bad.glob("*.parquet")):
        groups = pl.read_parquet(file, columns=["gene_id"]).with_row_index().with_columns(pl.col("index") // 300)
        for (gene,), rows in groups.partition_by("gene_id", as_dict=True).items():
            if np.diff(rows["index"].unique().sort()).max(initial=0) > 1:
                apart.add((gene, file.name))
    assert {"positions-00002.parquet", "positions-00003.parquet"} == {file for _, file in apart}
    gene, file_name = min(apart)
    assert any(f"{len(apart)} gene(s) lie in row groups apart" in w and gene in w and file_name in w for w in warnings)
    assert any("are rows of several genes" in w for w in warnings)  # nothing keeps them together here
    assert any("the weights do not add up to gene_length" in w for w in warnings)
    assert any("the shard is empty | positions-00004.parquet" in n for n in notes)
    assert any("3mer_CGA | positions-00002.parquet" in n for n in notes)
    order = [p["severity"] for p in found["problems"]]
    assert order == sorted(order, key=["error", "warning", "note"].index)


def test_people_read_them_last_with_what_to_do(bad: Path) -> None:
    out = succeed("inspect-dataset", "--quiet", bad).out
    section = out.partition("\nproblems:\n")[2]
    assert section.splitlines()[0].startswith("  error    3 duplicate row(s)")
    assert "next: remove the duplicates" in section
    assert "--exclude-features filled" in section
    assert "weighted: neither" in out


def without_pages_of(data: Path, folder: Path, column: str) -> Path:
    """A copy whose pages of `column` are overwritten."""
    copy = Path(shutil.copytree(data, folder))
    for file in copy.glob("*.parquet"):
        meta = pq.read_metadata(file)
        raw = bytearray(file.read_bytes())
        number = meta.schema.to_arrow_schema().names.index(column)
        for group in range(meta.num_row_groups):
            chunk = meta.row_group(group).column(number)
            start = chunk.dictionary_page_offset or chunk.data_page_offset
            raw[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
        file.write_bytes(raw)
    return copy


def test_without_a_look_at_features_none_is_read(bad: Path, tmp_path: Path) -> None:
    damaged = without_pages_of(bad, tmp_path / "data", "honest")
    found = inspected(damaged, "--no-leakage")
    assert found["leaks"] is None
    assert not any("give the label away" in p["what"] for p in found["problems"])
    assert len(problems(found, "error")) == 1
    assert any("the weights do not add up to gene_length" in w for w in problems(found, "warning"))
    outcome = start("inspect-dataset", "--quiet", damaged)
    assert outcome.code == 3
    assert "is damaged" in outcome.err


def test_names_and_order_of_the_files_change_nothing(
    bad: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With bounds so low that not all genes are read, and not all of their rows kept."""
    monkeypatch.setattr(screening, "MOST_ROWS", 1_000)
    monkeypatch.setattr(screening, "ENOUGH_GENES", 6)
    monkeypatch.setattr(leaks, "MOST_DECODED", 200_000)
    renamed = {f"positions-0000{i}.parquet": f"{'zyxwa'[i]}.parquet" for i in range(5)}
    (tmp_path / "data").mkdir()
    for file in bad.glob("*.parquet"):
        (tmp_path / "data" / renamed[file.name]).write_bytes(file.read_bytes())
    one, other = (inspect_dataset(str(place), Options()) for place in (bad, tmp_path / "data"))
    assert one.leaks is not None
    assert other.leaks == one.leaks
    assert one.leaks.genes < one.genes
    assert one.leaks.flagged
    said = [[(p.severity, p.what) for p in found.problems] for found in (one, other)]
    assert sorted(said[0]) == sorted(said[1])
    assert other.weighted_prevalence == one.weighted_prevalence


def test_infinite_values_in_the_sample_are_an_error(tmp_path: Path) -> None:
    shards = shards_of()
    name = list(shards)[2]
    rows = pl.int_range(pl.len())
    shards[name] = shards[name].with_columns(
        gc_content=pl.when(rows % 100 == 3).then(float("-inf")).otherwise("gc_content")
    )
    count = int(shards[name]["gc_content"].is_infinite().sum())
    data = write(tmp_path / "data", shards)
    found = inspected(data)
    assert problems(found, "error") == [
        f"column gc_content holds {count} infinite value(s), or numbers beyond float32 | "
        "the sample of the leakage screen"
    ]
    assert start("plan", *NO_ANALYSES, data, tmp_path / "run").code == 3  # as the problem says
    assert problems(inspected(data, "--exclude-features", "gc_content"), "error") == []


def test_large_row_groups_and_spread_genes_are_told_with_what_they_cost(tmp_path: Path) -> None:
    once = pl.concat(list(shards_of(but=("3mer_CGA",)).values()))
    copies = [once.with_columns(pl.col("gene_id", "locus_id", "chrom") + f"-{i}") for i in range(3)]
    large = inspected(write(tmp_path / "large", {"all.parquet": pl.concat(copies)}, 40_000), "--no-leakage")
    said = [w for w in problems(large, "warning") if "more than 32,768 rows" in w]
    assert len(said) == 1
    assert "1 of 2 row group(s)" in said[0]
    assert "up to 40,000" in said[0]
    assert "GB when decoded whole | all.parquet" in said[0]
    spread = inspected(write(tmp_path / "spread", {"all.parquet": once.sample(fraction=1, shuffle=True, seed=1)}, 500))
    assert any("rows of a gene lie in" in w for w in problems(spread, "warning"))
    assert spread["leaks"]["skipped"] is None  # small enough to be read whole


def test_down_sampled_negatives_without_weights_and_rare_classes_are_told(tmp_path: Path) -> None:
    shards = shards_of(but=("sampling_weight",))
    for name, frame in shards.items():
        kept = (pl.col("splice_type") != "acceptor") | (pl.col("gene_id") == "ENSG00000182606")
        shards[name] = frame.filter(kept)
    found = inspected(write(tmp_path / "data", shards), "--no-leakage")
    assert found["weighted_prevalence"] is None
    assert any("of the rows are donor, far more than of a genome's positions" in n for n in problems(found, "note"))
    assert any("class acceptor has 17 row(s) in 1 gene(s)" in w for w in problems(found, "warning"))
    none = {n: f.filter(pl.col("splice_type") != "acceptor") for n, f in shards.items()}
    found = inspected(write(tmp_path / "none", none), "--no-leakage")
    assert any("class acceptor has 0 row(s)" in e for e in problems(found, "error"))


def test_what_cannot_be_read_is_still_refused(bad: Path, tmp_path: Path) -> None:
    shards = shards_of()
    name = next(iter(shards))
    shards[name] = shards[name].with_columns(splice_type=pl.lit("Donor"))
    outcome = start("inspect-dataset", write(tmp_path / "data", shards))
    assert outcome.code == 3
    assert "'Donor'" in outcome.err
    assert "Traceback" not in outcome.err
