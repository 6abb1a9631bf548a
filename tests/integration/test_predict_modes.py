"""`predict --mode`, `--coverage`, `--columns`: which rows the meta-model is asked for, and what is written of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import InputError, UsageError
from metabatch.inference.request import Request
from metabatch.inference.stream import predict
from metabatch.rundir.publish import sha256_file
from tests.conftest import DEMO, start, succeed

CLASSES = ("neither", "donor", "acceptor")
LOW, HIGH = np.float32(0.02), np.float32(0.80)


@pytest.fixture(scope="module")
def written(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, pl.DataFrame]:
    """The demo in every mode, by the executable."""
    folder = tmp_path_factory.mktemp("modes")
    for mode in ("meta_only", "hybrid", "base_only"):
        succeed("predict", "--quiet", "--mode", mode, trained, DEMO, folder / mode)
    return {p.name: pl.read_parquet(p / "part-*.parquet") for p in folder.iterdir()}


def source(folder: Path = DEMO) -> pl.DataFrame:
    return pl.concat([pl.read_parquet(f) for f in sorted(folder.glob("*.parquet"))], how="diagonal")


def bits(column: pl.Series) -> list[int]:
    return column.to_numpy().view(np.uint32).tolist()


def in_zone(rows: pl.DataFrame) -> np.ndarray:
    best = np.maximum(rows["donor_score"].to_numpy(), rows["acceptor_score"].to_numpy())
    assert best.dtype == np.float32
    return (best >= LOW) & (best < HIGH)


def test_hybrid_is_the_base_outside_the_zone_and_the_meta_model_inside(written: dict[str, pl.DataFrame]) -> None:
    rows = written["hybrid"]
    assert rows["uncertain"].to_list() == in_zone(source()).tolist()
    assert 0 < rows["uncertain"].sum() < rows.height / 2
    inside, outside = rows.filter("uncertain"), rows.filter(~pl.col("uncertain"))
    for name in CLASSES:
        assert bits(inside[f"{name}_hybrid"]) == bits(inside[f"{name}_meta"])
        assert bits(outside[f"{name}_hybrid"]) == bits(outside[f"{name}_score"])
        assert outside[f"{name}_meta"].null_count() == outside.height
        assert inside[f"{name}_meta"].null_count() == 0


def test_hybrid_asks_the_same_model_as_meta_only_bit_for_bit(written: dict[str, pl.DataFrame]) -> None:
    uncertain = written["hybrid"]["uncertain"]
    for name in CLASSES:
        meta = f"{name}_meta"
        assert bits(written["hybrid"][meta].filter(uncertain)) == bits(written["meta_only"][meta].filter(uncertain))


def test_base_only_writes_base_scores_and_needs_no_feature(
    trained: Path, tmp_path: Path, written: dict[str, pl.DataFrame]
) -> None:
    narrow = tmp_path / "narrow.parquet"
    source().select("gene_id", "position", "donor_score", "acceptor_score", "neither_score").write_parquet(narrow)
    succeed("predict", "--quiet", "--mode", "base_only", trained, narrow, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert rows.columns == ["gene_id", "position", "neither_score", "donor_score", "acceptor_score"]
    assert rows.equals(written["base_only"].select(rows.columns))
    assert start("predict", "--mode", "hybrid", trained, narrow, tmp_path / "hybrid").code == 3


def test_calls_are_of_the_final_score(trained: Path, written: dict[str, pl.DataFrame]) -> None:
    thresholds = json.loads((trained / "ensemble" / "bundle.json").read_text())["thresholds"]
    for name in CLASSES:
        final = written["hybrid"][f"{name}_hybrid"].to_numpy()
        assert (written["hybrid"][f"{name}_call"].to_numpy() == (final >= thresholds[name])).all()
    assert (written["hybrid"]["donor_call"] != written["meta_only"]["donor_call"]).any()


@pytest.mark.parametrize("mode", ["meta_only", "hybrid", "base_only"])
def test_selective_coverage_writes_the_uncertain_rows_of_the_complete_one(
    mode: str, trained: Path, tmp_path: Path, written: dict[str, pl.DataFrame]
) -> None:
    succeed("predict", "--quiet", "--mode", mode, "--coverage", "selective", trained, DEMO, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    assert rows.equals(written[mode].filter(written["hybrid"]["uncertain"]).select(rows.columns))
    assert set(rows.columns) == set(written[mode].columns)


def test_a_missing_base_score_is_uncertain_and_a_zone_end_counts_as_float32(trained: Path, tmp_path: Path) -> None:
    scores = [
        0.02,
        float(np.nextafter(LOW, np.float32(0))),
        0.8,
        float(np.nextafter(HIGH, np.float32(0))),
        None,
        np.nan,
    ]
    frame = source().head(len(scores)).with_columns(
        pl.Series("donor_score", scores, pl.Float32, strict=False), acceptor_score=pl.lit(0.0, pl.Float32)
    )  # fmt: skip
    frame.write_parquet(tmp_path / "data.parquet")
    predict(trained, tmp_path / "data.parquet", tmp_path / "out", Request(mode="hybrid"))
    rows = pl.read_parquet(tmp_path / "out" / "part-00000.parquet")
    assert rows["uncertain"].to_list() == [True, False, False, True, True, True]
    assert rows["donor_hybrid"].is_finite().all()


def test_features_are_decoded_only_of_row_groups_that_hold_an_uncertain_row(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the certain row groups a feature holds a value that no model takes: nobody may look at it."""
    frame = source().head(400).with_columns(
        donor_score=pl.when(pl.int_range(pl.len()) == 250).then(0.5).otherwise(0.9).cast(pl.Float32),
        gc_content=pl.when(pl.int_range(pl.len()) == 250).then(0.4).otherwise(float("inf")).cast(pl.Float32),
    )  # fmt: skip
    frame.write_parquet(tmp_path / "data.parquet", row_group_size=100)
    asked: list[int] = []
    real = MetaModel.predict_batch

    def counted(self: MetaModel, table: pa.Table, *args: object, **kwargs: object) -> np.ndarray:
        asked.append(table.num_rows)
        return real(self, table, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(MetaModel, "predict_batch", counted)
    read: list[str] = []
    whole = pq.ParquetFile.read_row_group

    def noted(self: pq.ParquetFile, group: int, columns: list[str]) -> pa.Table:
        if "gc_content" in columns:
            read.append(str(group))
        return whole(self, group, columns=columns)

    monkeypatch.setattr(pq.ParquetFile, "read_row_group", noted)
    predict(trained, tmp_path / "data.parquet", tmp_path / "out", Request(mode="hybrid"))
    assert (asked, read) == ([1], ["2"])
    with pytest.raises(InputError, match="gc_content holds"):
        predict(trained, tmp_path / "data.parquet", tmp_path / "meta", Request())


def test_rows_do_not_depend_on_row_groups_or_parts(
    trained: Path, tmp_path: Path, written: dict[str, pl.DataFrame]
) -> None:
    (tmp_path / "data").mkdir()
    whole = source().with_columns(pl.col("3mer_CGA", "3mer_TCG").fill_null(0))  # as where a shard lacks them
    whole.write_parquet(tmp_path / "data" / "all.parquet", row_group_size=700)
    result = predict(trained, tmp_path / "data", tmp_path / "out", Request(mode="hybrid"), part_rows=3000)
    parts = sorted((tmp_path / "out").glob("part-*.parquet"))
    assert result.parts == len(parts) == 6
    assert [pq.read_metadata(p).num_rows for p in parts] == [2800, 2800, 2800, 2800, 2800, 2392]
    assert [pq.read_schema(p).metadata[b"row_groups"] for p in parts[:2]] == [b"0-3", b"4-7"]
    assert pl.read_parquet(tmp_path / "out" / "part-*.parquet").equals(written["hybrid"])


def bundle_without_score(trained: Path, place: Path, *classes: str) -> Path:
    """A copy of the bundle whose model knows no base score of `classes`."""
    bundle = Path(shutil.copytree(trained / "ensemble", place))
    manifest = json.loads((bundle / "bundle.json").read_text())
    for name in classes:
        del manifest["columns"]["scores"][name]
    (bundle / "bundle.json").write_text(json.dumps(manifest))
    done = json.loads((bundle / "done.json").read_text())
    size, digest = (bundle / "bundle.json").stat().st_size, sha256_file(bundle / "bundle.json")
    done["files"]["bundle.json"] = {"bytes": size, "sha256": digest}
    (bundle / "done.json").write_text(json.dumps(done))
    return bundle


def test_one_class_without_a_base_score_gets_what_the_others_leave(trained: Path, tmp_path: Path) -> None:
    bundle = bundle_without_score(trained, tmp_path / "bundle", "neither")
    predict(bundle, DEMO, tmp_path / "out", Request(mode="base_only"))
    rows = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    donor, acceptor = (rows[f"{c}_score"].to_numpy().astype(np.float64) for c in ("donor", "acceptor"))
    assert np.array_equal(rows["neither_score"].to_numpy(), np.clip(1 - donor - acceptor, 0, 1).astype(np.float32))


def test_two_classes_without_a_base_score_are_named(trained: Path, tmp_path: Path) -> None:
    bundle = bundle_without_score(trained, tmp_path / "bundle", "neither", "donor")
    for words in (("--mode", "hybrid"), ("--mode", "base_only"), ("--coverage", "selective")):
        outcome = start("predict", *words, bundle, DEMO, tmp_path / "out")
        assert outcome.code == 3
        assert "no base score of neither, donor" in outcome.err
    assert not (tmp_path / "out").exists()
    succeed("predict", "--quiet", bundle, DEMO, tmp_path / "out")


def test_base_scores_that_the_data_lacks_or_that_are_infinite_are_named(trained: Path, tmp_path: Path) -> None:
    frame = source()
    frame.drop("acceptor_score").write_parquet(tmp_path / "lacks.parquet")
    outcome = start("predict", "--mode", "base_only", trained, tmp_path / "lacks.parquet", tmp_path / "out")
    assert outcome.code == 3
    assert "no column acceptor_score" in outcome.err
    frame.with_columns(donor_score=pl.lit(float("inf"), pl.Float32)).write_parquet(tmp_path / "odd.parquet")
    with pytest.raises(InputError, match="donor_score holds 16392 infinite"):
        predict(trained, tmp_path / "odd.parquet", tmp_path / "out", Request(mode="base_only"))
    assert not (tmp_path / "out").exists()


def test_further_columns_are_carried_in_their_own_types(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for number, file in enumerate(sorted(DEMO.glob("*.parquet"))):
        frame = pl.read_parquet(file).with_columns(
            note=pl.format("n{}", "position").cast(pl.Categorical), when=pl.lit("2024-02-29").str.to_date(),
            tags=pl.concat_list("base_0", "base_p1"),
        )  # fmt: skip
        (frame.drop("tags") if number == 1 else frame).write_parquet(tmp_path / "data" / file.name)
    names = ("gc_content", "base_0", "3mer_CGA", "splice_type", "note", "when", "tags")
    for mode in ("meta_only", "hybrid"):
        out = tmp_path / mode
        succeed("predict", "--quiet", "--mode", mode, "--columns", ",".join(names), trained, tmp_path / "data", out)
        rows, before = pl.read_parquet(out / "part-*.parquet"), source(tmp_path / "data")
        assert rows.select(names).equals(before.select(names))
        assert {n: rows.schema[n] for n in names} == {n: before.schema[n] for n in names}
        assert rows["tags"].null_count() == 4141


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--mode", "best"), 2, "--mode best"),
        (("--coverage", "some"), 2, "--coverage some"),
        (("--format", "bam"), 2, "--format bam"),
        (("--mode", "hybrid", "--uncertain-low", "0.8"), 2, "leave no zone"),
        (("--mode", "hybrid", "--uncertain-low", "nan"), 2, "leave no zone"),
        (("--mode", "hybrid", "--uncertain-high", "high"), 2, "--uncertain-high high"),
        (("--uncertain-low", "0.1"), 2, "--uncertain-low decides nothing"),
        (("--position-base", "0"), 2, "--position-base decides nothing"),
        (("--format", "bedgraph", "--position-base", "2"), 2, "--position-base 2"),
        (("--columns", "gc_content,gc_content"), 2, "gc_content twice"),
        (("--columns", "position"), 2, "--columns position"),
        (("--columns", "donor_meta"), 3, "no column donor_meta"),
        (("--columns", "nothing"), 3, "no column nothing"),
        (("--format", "bedgraph", "--chrom-column", "contig"), 3, "no column contig"),
        (("--format", "bedgraph", "--position-column", "gc_content"), 3, "column gc_content holds float"),
    ],
)
def test_what_cannot_be_asked_is_said_and_nothing_written(
    words: tuple[str, ...], code: int, said: str, trained: Path, tmp_path: Path
) -> None:
    outcome = start("predict", *words, trained, DEMO, tmp_path / "out")
    assert outcome.code == code, outcome.err
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert not (tmp_path / "out").exists()


def test_a_further_column_with_the_name_of_an_output_column_is_refused(trained: Path, tmp_path: Path) -> None:
    source().with_columns(donor_hybrid=1).write_parquet(tmp_path / "data.parquet")
    with pytest.raises(UsageError, match="donor_hybrid"):
        predict(trained, tmp_path / "data.parquet", tmp_path / "out", Request(mode="hybrid", columns=("donor_hybrid",)))
    predict(trained, tmp_path / "data.parquet", tmp_path / "out", Request(columns=("donor_hybrid",)))


def test_every_part_says_where_it_comes_from(trained: Path, tmp_path: Path) -> None:
    words = ("--mode", "hybrid", "--uncertain-high", "0.5", "--coverage", "selective")
    succeed("predict", "--quiet", *words, trained, DEMO, tmp_path / "out")
    bundle = json.loads((trained / "ensemble" / "bundle.json").read_text())
    for number, file in enumerate(sorted(DEMO.glob("*.parquet"))):
        found = pq.read_schema(tmp_path / "out" / f"part-{number:05d}.parquet").metadata
        said = {k.decode(): v.decode() for k, v in found.items() if k != b"ARROW:schema"}
        assert said == {
            "metabatch_version": bundle["metabatch_version"], "model_fingerprint": bundle["fingerprint"],
            "model_sha256": sha256_file(trained / "ensemble" / "done.json"),
            "combination": bundle["combination"]["method"],
            "mode": "hybrid", "coverage": "selective", "uncertain_low": "0.02", "uncertain_high": "0.5",
            "source": file.name, "row_groups": "0-2",
        }  # fmt: skip
