"""`predict --format`: TSV and bedGraph hold the rows and values of the parquet parts."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from collections.abc import Sequence
from decimal import Decimal
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metabatch.errors import InputError
from metabatch.inference import tracks
from metabatch.inference.request import Request
from metabatch.inference.stream import predict
from tests.conftest import DEMO, start, succeed

TRACK = ("chrom", "start", "end", "value")


def read_track(file: Path) -> pl.DataFrame:
    kinds = dict(zip(TRACK, (pl.String, pl.Int64, pl.Int64, pl.Float32), strict=True))
    return pl.read_csv(gzip.decompress(file.read_bytes()), separator="\t", has_header=False, schema=kinds)


def expected_track(parts: pl.DataFrame, value: str, strand: str | None) -> pl.DataFrame:
    """By hand: the highest value of each position of a strand, in order."""
    rows = parts if strand is None else parts.filter(pl.col("strand") == strand)
    return (
        rows.group_by("chrom", "position").agg(pl.col(value).max())
        .select("chrom", pl.col("position").cast(pl.Int64).alias("end"), value=value)
        .select("chrom", pl.col("end").sub(1).alias("start"), "end", "value")
        .sort("chrom", "start")
    )  # fmt: skip


def check_order(track: pl.DataFrame) -> None:
    """As bedGraphToBigWig wants it: chromosomes as bytes, starts ascending, no interval into the next."""
    keys = list(zip((c.encode() for c in track["chrom"]), track["start"], strict=True))
    assert keys == sorted(keys)
    same = track["chrom"] == track["chrom"].shift(1)
    assert (track["start"] >= track["end"].shift(1)).filter(same).all()
    assert (track["end"] > track["start"]).all()


@pytest.mark.parametrize(("mode", "column"), [("hybrid", "hybrid"), ("base_only", "score"), ("meta_only", "meta")])
def test_tracks_hold_the_final_scores_of_the_parts(mode: str, column: str, trained: Path, tmp_path: Path) -> None:
    said = succeed("predict", "--mode", mode, "--format", "bedgraph", trained, DEMO, tmp_path / "out").err
    parts = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    names = {f"{c}.{s}.bedgraph.gz" for c in ("donor", "acceptor") for s in ("plus", "minus")}
    assert {p.name for p in tmp_path.joinpath("out").glob("*.gz")} == names
    shared = parts.group_by("chrom", "position", "strand").len().filter(pl.col("len") > 1).height
    assert shared > 0
    assert f"{shared} position(s) stand in several rows" in said
    for name in ("donor", "acceptor"):
        for sign, word in (("+", "plus"), ("-", "minus")):
            track = read_track(tmp_path / "out" / f"{name}.{word}.bedgraph.gz")
            check_order(track)
            assert track.equals(expected_track(parts, f"{name}_{column}", sign))


def test_tracks_are_the_same_whatever_the_order_of_rows_and_the_windows(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = pl.concat([pl.read_parquet(f) for f in sorted(DEMO.glob("*.parquet"))], how="diagonal")
    (tmp_path / "ordered").mkdir()
    (tmp_path / "mixed").mkdir()
    whole.write_parquet(tmp_path / "ordered" / "data.parquet")
    whole.sample(fraction=1, shuffle=True, seed=1).write_parquet(
        tmp_path / "mixed" / "data.parquet", row_group_size=999
    )
    request = Request(mode="base_only", format="bedgraph")
    predict(trained, tmp_path / "ordered", tmp_path / "out", request)
    for name, value in (("_BLOCK", 512), ("_WINDOW_ROWS", 700), ("_BATCH_ROWS", 400)):
        monkeypatch.setattr(tracks, name, value)
    predict(trained, tmp_path / "mixed", tmp_path / "other", request, part_rows=2000)
    for file in sorted((tmp_path / "out").glob("*.gz")):
        assert file.read_bytes() == (tmp_path / "other" / file.name).read_bytes()


def placed(tmp_path: Path, positions: Sequence[int | None], **more: object) -> Path:
    frame = pl.read_parquet(DEMO / "positions-00000.parquet").head(len(positions)).with_columns(
        position=pl.Series(positions, dtype=pl.Int64),
    )  # fmt: skip
    frame.with_columns(**more).write_parquet(tmp_path / "data.parquet")
    return tmp_path / "data.parquet"


def test_positions_may_count_from_0_and_stand_in_other_columns(trained: Path, tmp_path: Path) -> None:
    data = placed(tmp_path, [5, 0, 7], contig=pl.Series(["b", "a", "B"]), site=pl.Series([9, 0, 3]))
    words = ("--format", "bedgraph", "--position-base", "0", "--chrom-column", "contig", "--position-column", "site")
    succeed("predict", "--quiet", *words, "--strand-column", "gene_name", trained, data, tmp_path / "out")
    track = read_track(tmp_path / "out" / "donor.unstranded.bedgraph.gz")
    assert track.select("chrom", "start", "end").rows() == [("B", 3, 4), ("a", 0, 1), ("b", 9, 10)]
    parts = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert track["value"].to_list() == parts.sort("contig")["donor_meta"].to_list()
    assert read_track(tmp_path / "out" / "donor.plus.bedgraph.gz").height == 0


def test_without_strands_there_is_one_track_a_class_and_rows_without_a_place_are_counted(
    trained: Path, tmp_path: Path
) -> None:
    data = placed(tmp_path, [5, None, 7])
    pl.read_parquet(data).drop("strand").write_parquet(data)
    said = succeed("predict", "--format", "bedgraph", trained, data, tmp_path / "out").err
    assert "1 row(s) have no chromosome or position" in said
    assert read_track(tmp_path / "out" / "acceptor.bedgraph.gz")["end"].to_list() == [5, 7]
    assert not (tmp_path / "out" / "neither.bedgraph.gz").exists()


def test_a_position_before_the_first_is_named_and_the_parts_are_kept(trained: Path, tmp_path: Path) -> None:
    data = placed(tmp_path, [5, 0, 7])
    outcome = start("predict", "--format", "bedgraph", trained, data, tmp_path / "out")
    assert outcome.code == 3
    assert "column position holds 0" in outcome.err
    assert "--position-base 0" in outcome.err
    said = succeed("predict", "--format", "bedgraph", "--position-base", "0", trained, data, tmp_path / "out").out
    assert "1 of them kept" in said
    assert not list((tmp_path / "out").glob(".*"))


def test_data_without_a_place_makes_no_tracks(trained: Path, tmp_path: Path) -> None:
    frame = pl.read_parquet(DEMO / "positions-00000.parquet").drop("chrom")
    frame.write_parquet(tmp_path / "data.parquet")
    with pytest.raises(InputError, match="no column chrom") as error:
        predict(trained, tmp_path / "data.parquet", tmp_path / "out", Request(format="bedgraph"))
    assert "--chrom-column" in str(error.value)


def test_tsv_holds_what_parquet_holds_to_the_last_digit(trained: Path, tmp_path: Path) -> None:
    words = ("--quiet", "--mode", "hybrid", "--columns", "gc_content,splice_type")
    succeed("predict", *words, trained, DEMO, tmp_path / "parquet")
    succeed("predict", *words, "--format", "tsv", trained, DEMO, tmp_path / "tsv")
    names = {"done.json", "provenance.json", *(f"part-{i:05d}.tsv.gz" for i in range(4))}
    assert {p.name for p in (tmp_path / "tsv").iterdir()} == names
    expected = pl.read_parquet(tmp_path / "parquet" / "part-*.parquet")
    found = pl.concat(
        pl.read_csv(gzip.decompress(f.read_bytes()), separator="\t", schema=expected.schema)
        for f in sorted((tmp_path / "tsv").glob("*.gz"))
    )
    assert found.equals(expected)
    raw = (tmp_path / "tsv" / "part-00000.tsv.gz").read_bytes()
    assert raw[3:8] == bytes(5)  # neither a name nor a time in the head
    assert (
        "16,392 rows in 4 part(s)" in succeed("predict", *words, "--format", "tsv", trained, DEMO, tmp_path / "tsv").out
    )


def with_column(place: Path, value: object, kind: pa.DataType) -> Path:
    """Rows of the demo with a column `tags` of one value, and a missing cell."""
    rows = pq.read_table(DEMO / "positions-00000.parquet").slice(0, 3)
    pq.write_table(rows.append_column("tags", pa.array([value, None, value], kind)), place)
    return place


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ([1, 2], pa.list_(pa.int64())),
        (dt.timedelta(1), pa.duration("us")),
        (b"a", pa.binary()),
        (b"a", pa.binary_view()),
        (b"abc", pa.binary(3)),
        (b"a", pa.dictionary(pa.int32(), pa.binary())),
        (Decimal("1.5"), pa.decimal256(50, 2)),
    ],
    ids=str,
)
def test_tsv_refuses_columns_that_are_no_text(value: object, kind: pa.DataType, trained: Path, tmp_path: Path) -> None:
    data = with_column(tmp_path / "data.parquet", value, kind)
    refused = start("predict", "--format", "tsv", "--columns", "tags", trained, data, tmp_path / "out")
    assert refused.code == 3
    assert f"column tags holds {str(kind).partition('<')[0]}" in refused.err  # element or item, as it was written
    assert not (tmp_path / "out").exists()
    succeed("predict", "--quiet", "--columns", "tags", trained, data, tmp_path / "out")  # parquet holds them all


@pytest.mark.parametrize(
    ("value", "kind", "text"),
    [
        (True, pa.bool_(), "true"),
        (1.5, pa.float16(), "1.5"),
        ("a", pa.string_view(), "a"),
        ("a", pa.dictionary(pa.int32(), pa.string()), "a"),
        (Decimal("1.5"), pa.decimal128(10, 2), "1.50"),
        (dt.date(2020, 1, 2), pa.date32(), "2020-01-02"),
        (dt.time(1), pa.time64("us"), "01:00:00.000000000"),
        (dt.datetime(2020, 1, 2), pa.timestamp("ms"), "2020-01-02T00:00:00.000"),
        (None, pa.null(), ""),
    ],
    ids=str,
)
def test_tsv_takes_numbers_text_and_times(
    value: object, kind: pa.DataType, text: str, trained: Path, tmp_path: Path
) -> None:
    data = with_column(tmp_path / "data.parquet", value, kind)
    predict(trained, data, tmp_path / "out", Request(format="tsv", columns=("tags",)), threads=1)
    head, *lines = gzip.decompress((tmp_path / "out" / "part-00000.tsv.gz").read_bytes()).decode().splitlines()
    assert [line.split("\t")[head.split("\t").index("tags")] for line in lines] == [text, "", text]


@pytest.mark.parametrize("form", ["parquet", "tsv", "bedgraph"])
def test_every_format_says_where_it_comes_from(form: str, trained: Path, tmp_path: Path) -> None:
    words = ("--quiet", "--mode", "hybrid", "--uncertain-high", "0.5")
    succeed("predict", *words, trained, DEMO, tmp_path / "plain")
    succeed("predict", *words, "--format", form, trained, DEMO, tmp_path / "out")
    said = json.loads((tmp_path / "out" / "provenance.json").read_text())
    parts = said.pop("parts")
    assert said.pop("format_version") == 1
    assert list(parts) == [f"part-{i:05d}.{'tsv.gz' if form == 'tsv' else 'parquet'}" for i in range(4)]
    for name, own in parts.items():
        found = pq.read_schema(tmp_path / "plain" / f"{name.split('.')[0]}.parquet").metadata
        assert said | own == {k.decode(): v.decode() for k, v in found.items() if k != b"ARROW:schema"}
    done = json.loads((tmp_path / "out" / "done.json").read_text())
    assert "provenance.json" in done["files"]
