"""Base scores are the source's own, to the last bit, for every position, or an error that names the position."""

from __future__ import annotations

import gzip
import pickle
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from scipy.special import log_softmax
from sklearn.metrics import average_precision_score

from metabatch.building import opening, pwm
from metabatch.building.annotation import read_annotation
from metabatch.building.base import BaseDescription, BaseModel, Lookup, ScoreColumns, Source, open_base
from metabatch.building.base_networks import OpenSpliceAI, SpliceAI
from metabatch.building.base_scores import check_scores
from metabatch.building.base_tables import ScoreTable
from metabatch.building.base_tracks import ScoreTracks
from metabatch.building.features import FeatureSpec, feature_batch
from metabatch.building.genes import Gene
from metabatch.building.genome import Genome
from metabatch.building.opening import BaseAsked
from metabatch.building.pwm import FLANK, PositionWeightModel, fit_pwm
from metabatch.building.rows import RowSampling, select_rows
from metabatch.errors import InputError, MetabatchError, UsageError

NO_CODES = np.array([], dtype=np.uint8)
ORDER = ["neither_score", "donor_score", "acceptor_score"]


@pytest.fixture(scope="module")
def genes(hg19_windows: Path) -> list[Gene]:
    return read_annotation(hg19_windows / "annotation.gtf.gz", sites="all")


@pytest.fixture(scope="module")
def genome(hg19_windows: Path, tmp_path_factory: pytest.TempPathFactory) -> Genome:
    return Genome(hg19_windows / "genome.fa.gz", tmp_path_factory.mktemp("genome"))


@pytest.fixture(scope="module")
def fitted(genes: list[Gene], genome: Genome) -> PositionWeightModel:
    return fit_pwm(genes, genome)


def gene(start: int = 11, end: int = 14, strand: str = "+", name: str = "G", chrom: str = "c") -> Gene:
    none = np.array([], dtype=np.int64)
    return Gene(name, name, "", chrom, strand, start, end, none, none)


def table(rows: int = 8, start: int = 9, name: str = "G") -> pl.DataFrame:
    """Positions from `start`, the scores telling which."""
    donor = (np.arange(rows) / 16).astype(np.float32)
    return pl.DataFrame(
        {
            "gene_id": [name] * rows,
            "chrom": ["c"] * rows,
            "position": np.arange(start, start + rows),
            "donor_score": donor,
            "acceptor_score": np.full(rows, 0.25, np.float32),
            "neither_score": (np.float32(0.75) - donor),
        }
    )


def opened(frame: pl.DataFrame, folder: Path, columns: ScoreColumns | None = None) -> ScoreTable:
    frame.write_parquet(folder / "scores.parquet")
    return ScoreTable(folder / "scores.parquet", columns or ScoreColumns(), folder)


# -- tables ------------------------------------------------------------------------------------------------------------


def test_scores_of_the_real_table_are_its_own(hg19_windows: Path, genes: list[Gene], tmp_path: Path) -> None:
    source = hg19_windows / "base_scores.parquet"
    base: BaseModel = ScoreTable(source, ScoreColumns(), tmp_path)
    rows = pl.read_parquet(source)
    labels, scores = [], []
    for one in genes:
        found = base.scores(one, NO_CODES)
        assert found.dtype == np.float32
        there = rows.filter(pl.col("gene_id") == one.gene_id).sort("position", descending=one.strand == "-")
        assert np.array_equal(found, there.select(ORDER).to_numpy())
        assert np.array_equal(one.positions(np.arange(one.length)), there["position"].to_numpy())
        labels.append(one.labels())
        scores.append(found)
    label, score = np.concatenate(labels), np.concatenate(scores)
    # As hg19-windows/SOURCE.md says.
    assert average_precision_score(label == 1, score[:, 1]) == pytest.approx(0.532, abs=5e-4)
    assert average_precision_score(label == 2, score[:, 2]) == pytest.approx(0.454, abs=5e-4)


def test_only_the_row_groups_of_a_gene_are_read(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    pl.concat(table(name=name) for name in "ABC").write_parquet(path, row_group_size=8)
    column = pq.ParquetFile(path).metadata.row_group(1).column(3)
    data = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    data[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    for columns, healthy in ((ScoreColumns(), gene(name="C")), (ScoreColumns(gene="no"), gene())):
        base = ScoreTable(path, columns, tmp_path)
        if columns.gene == "no":  # all three row groups are of these positions
            with pytest.raises(InputError, match="is damaged"):
                base.scores(healthy, NO_CODES)
            continue
        assert base.scores(healthy, NO_CODES)[:, 1].tolist() == [0.125, 0.1875, 0.25, 0.3125]
        with pytest.raises(InputError, match="is damaged"):
            base.scores(gene(name="B"), NO_CODES)


def test_a_table_by_place_reads_the_row_groups_over_the_gene(tmp_path: Path) -> None:
    path = tmp_path / "scores.parquet"
    frame = pl.concat([table(start=1), table(start=9), table(start=17)]).drop("gene_id")
    frame.write_parquet(path, row_group_size=8)
    column = pq.ParquetFile(path).metadata.row_group(2).column(2)
    data = bytearray(path.read_bytes())
    first = column.dictionary_page_offset or column.data_page_offset
    data[first : first + column.total_compressed_size] = b"\xff" * column.total_compressed_size
    path.write_bytes(data)
    base = ScoreTable(path, ScoreColumns(), tmp_path)
    assert base.scores(gene(11, 14, "-"), NO_CODES)[:, 1].tolist() == [0.3125, 0.25, 0.1875, 0.125]
    assert base.scores(gene(7, 10), NO_CODES)[:, 1].tolist() == [0.375, 0.4375, 0, 0.0625]
    with pytest.raises(InputError, match="is damaged"):
        base.scores(gene(16, 17), NO_CODES)


def test_every_kind_of_table_gives_the_same_bits(
    hg19_windows: Path, genes: list[Gene], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = sorted(genes, key=lambda one: one.length)[:6]
    rows = pl.read_parquet(hg19_windows / "base_scores.parquet")
    places = pl.DataFrame(
        [(g.gene_id, g.chrom, g.strand) for g in chosen], ["gene_id", "chrom", "strand"], orient="row"
    )
    rows = rows.join(places, on="gene_id", maintain_order="left")
    expected = [
        ScoreTable(hg19_windows / "base_scores.parquet", ScoreColumns(), tmp_path).scores(g, NO_CODES) for g in chosen
    ]
    by_place = rows.drop("gene_id").unique(["chrom", "strand", "position"], maintain_order=True)
    kinds = {"by_gene": rows.drop("chrom", "strand"), "by_place": by_place.sort("chrom", "position")}
    kinds["in_any_order"] = rows.drop("chrom", "strand").sample(fraction=1, shuffle=True, seed=1)
    kinds["categories"] = rows.drop("chrom", "strand").with_columns(pl.col("gene_id").cast(pl.Categorical))
    kinds["numbers"] = by_place.with_columns(strand=pl.when(pl.col("strand") == "+").then(1).otherwise(-1))
    for module in ("base_tables", "base_text"):
        monkeypatch.setattr(f"metabatch.building.{module}.ROWS_AT_ONCE", 40_000)
    for kind, frame in kinds.items():
        folder = tmp_path / kind
        folder.mkdir()
        half = frame.height // 2
        frame.head(half).write_parquet(folder / "b.parquet", row_group_size=10_007)
        frame.tail(-half).write_parquet(folder / "a.parquet")
        frame.write_csv(tmp_path / f"{kind}.tsv", separator="\t")
        packed = tmp_path / f"{kind}.tsv.gz"
        packed.write_bytes(gzip.compress((tmp_path / f"{kind}.tsv").read_bytes()))
        for source in (folder, tmp_path / f"{kind}.tsv", packed):
            base = ScoreTable(source, ScoreColumns(), tmp_path)
            again = pickle.loads(pickle.dumps(base))  # as a worker gets it
            reopened = open_base(base.describe(), [source], scratch=tmp_path)
            for one, scores in zip(chosen, expected, strict=True):
                for model in (base, again, reopened):
                    assert np.array_equal(model.scores(one, NO_CODES), scores), (kind, source.name)


def test_columns_can_have_other_names_and_neither_is_what_is_left(tmp_path: Path) -> None:
    frame = table().rename({"gene_id": "gene", "position": "pos", "donor_score": "d", "acceptor_score": "a"})
    columns = ScoreColumns(donor="d", acceptor="a", neither=None, gene="gene", position="pos")
    found = opened(frame, tmp_path, columns).scores(gene(), NO_CODES)
    assert found[0].tolist() == [0.625, 0.125, 0.25]
    frame.write_csv(tmp_path / "s.tsv", separator="\t")
    for other in (columns, msgspec.structs.replace(columns, donor="a", acceptor="d")):
        found = ScoreTable(tmp_path / "s.tsv", other, tmp_path).scores(gene(), NO_CODES)
        assert found[0, 1 if other is columns else 2] == 0.125
    too_much = table().with_columns(donor_score=pl.lit(0.75, pl.Float32), acceptor_score=pl.lit(0.5, pl.Float32))
    found = opened(too_much.drop("neither_score"), tmp_path).scores(gene(), NO_CODES)
    assert found[0].tolist() == [0, 0.75, 0.5]


def without(position: int) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda frame: frame.filter(pl.col("position") != position)


def with_score(value: float | None) -> Callable[[pl.DataFrame], pl.DataFrame]:
    changed = pl.when(pl.col("position") == 12).then(pl.lit(value, pl.Float32)).otherwise("donor_score")
    return lambda frame: frame.with_columns(donor_score=changed)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without(12), r"1 of the 4 positions of gene G have no score, the first at c:12"),
        (without(14), r"1 of the 4 positions of gene G have no score, the first at c:14"),
        (lambda frame: pl.concat([frame, frame.filter(pl.col("position") == 13)]), r"have several scores, .*c:13"),
        (with_score(None), r"1 position\(s\) of gene G have a score that is no probability, the first at c:12: .*nan"),
        (with_score(float("nan")), r"gene G have a score that is no probability, the first at c:12"),
        (with_score(1.5), r"the first at c:12: .*1\.5"),
        (with_score(-0.5), r"the first at c:12: .*-0\.5"),
    ],
)
@pytest.mark.parametrize("by", ["gene", "place"])
@pytest.mark.parametrize("strand", ["+", "-"])
def test_a_position_without_a_score_is_named(
    change: Callable[[pl.DataFrame], pl.DataFrame], message: str, by: str, strand: str, tmp_path: Path
) -> None:
    frame = change(table())
    base = opened(frame if by == "gene" else frame.drop("gene_id"), tmp_path)
    with pytest.raises(InputError, match=message) as error:
        base.scores(gene(strand=strand), NO_CODES)
    assert "scores.parquet" in str(error.value)


def test_a_gene_that_the_table_lacks_is_named(tmp_path: Path) -> None:
    base = opened(table(), tmp_path)
    with pytest.raises(InputError, match=r"4 of the 4 positions of gene H have no score, the first at c:11"):
        base.scores(gene(name="H"), NO_CODES)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "has none of the columns of scores"),
        (b"a\tb\n1\t2\n", "has none of the columns of scores"),
        (b"gene_id\tposition\tdonor_score\tacceptor_score\nG\tx\t0\t0\n", "cannot be read as a table"),
        (b"gene_id\tposition\tdonor_score\tacceptor_score\nG\t1\t0\n", "cannot be read as a table"),
        (b"gene_id\tposition\tdonor_score\nG\t1\t0\n", "has no column acceptor_score"),
        (b"gene_id\tposition\tdonor_score\tdonor_score\nG\t1\t0\t1\n", "has 2 columns named donor_score"),
        (
            b"gene_id\tposition\tdonor_score\tacceptor_score\nG\t9999999999999999999\t0\t0\n",
            "cannot be read as a table",
        ),
        (gzip.compress(b"gene_id\tposition\n" + bytes(range(256)) * 4000)[:-2000], "is damaged"),
        (b"PAR1 but no more", "cannot be read as parquet"),
    ],
)
def test_what_is_no_table_of_scores_is_refused(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores"
    path.write_bytes(data)
    with pytest.raises(InputError, match=message) as error:
        ScoreTable(path, ScoreColumns(), tmp_path)
    assert str(path) in str(error.value)


def test_columns_of_other_kinds_and_missing_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the column donor_score of scores\.parquet holds large_string"):
        opened(table().with_columns(pl.col("donor_score").cast(pl.String)), tmp_path)
    with pytest.raises(InputError, match=r"the column position of scores\.parquet holds double"):
        opened(table().with_columns(pl.col("position").cast(pl.Float64)), tmp_path)
    with pytest.raises(InputError, match="has no column chrom"):
        opened(table().drop("gene_id", "chrom"), tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        ScoreTable(tmp_path / "none", ScoreColumns(), tmp_path)


def test_a_table_with_a_header_alone_has_no_scores(tmp_path: Path) -> None:
    (tmp_path / "s.tsv").write_text("gene_id\tposition\tdonor_score\tacceptor_score\n")
    with pytest.raises(InputError, match="positions of gene G have no score"):
        ScoreTable(tmp_path / "s.tsv", ScoreColumns(), tmp_path).scores(gene(), NO_CODES)


def test_a_column_that_is_there_twice_and_positions_beyond_all_numbers_are_refused(tmp_path: Path) -> None:
    names = ["gene_id", "position", "donor_score", "acceptor_score", "donor_score"]
    arrays = [pa.array(["G"] * 4), pa.array([11, 12, 13, 14]), *[pa.array([0.25] * 4, pa.float32())] * 3]
    pq.write_table(pa.Table.from_arrays(arrays, names=names), tmp_path / "twice.parquet")
    with pytest.raises(InputError, match=r"twice\.parquet has 2 columns named donor_score"):
        ScoreTable(tmp_path / "twice.parquet", ScoreColumns(), tmp_path)
    frame = table().with_columns(pl.col("position").cast(pl.UInt64))
    assert np.array_equal(
        opened(frame, tmp_path).scores(gene(), NO_CODES), opened(table(), tmp_path).scores(gene(), NO_CODES)
    )
    huge = frame.with_columns(position=pl.when(pl.col("position") == 16).then(2**63 + 1).otherwise("position"))
    base = opened(huge.with_columns(pl.col("position").cast(pl.UInt64)), tmp_path)
    with pytest.raises(InputError, match=r"the column position of scores\.parquet holds a number that is no position"):
        base.scores(gene(), NO_CODES)


@pytest.mark.parametrize("kind", ["parquet", "tsv"])
def test_a_column_of_neither_that_is_named_must_be_there(kind: str, tmp_path: Path) -> None:
    path, frame = tmp_path / f"s.{kind}", table().drop("neither_score")
    frame.write_parquet(path) if kind == "parquet" else frame.write_csv(path, separator="\t")
    left = ScoreTable(path, ScoreColumns(neither=None), tmp_path).scores(gene(), NO_CODES)
    assert np.array_equal(ScoreTable(path, ScoreColumns(), tmp_path).scores(gene(), NO_CODES), left)
    for name in ("n", "neither_score"):
        with pytest.raises(InputError, match=f"has no column {name}"):
            ScoreTable(path, ScoreColumns(neither=name), tmp_path)


BY_GENE = Lookup(scores=("donor_score", "acceptor_score", "neither_score"), by="gene")
BY_PLACE = msgspec.structs.replace(BY_GENE, by="position")
TABLES = {
    "all of it": (table(), BY_GENE),
    "without neither": (
        table().drop("neither_score"), msgspec.structs.replace(BY_GENE, scores=("donor_score", "acceptor_score")),
    ),
    "without genes": (table().drop("gene_id"), BY_PLACE),
    "with strands": (
        table().drop("gene_id").with_columns(strand=pl.lit("+")), msgspec.structs.replace(BY_PLACE, strand=True),
    ),
}  # fmt: skip


@pytest.mark.parametrize("then", TABLES)
@pytest.mark.parametrize("now", TABLES)
def test_a_table_in_which_scores_are_found_otherwise_than_in_training_is_refused(
    then: str, now: str, tmp_path: Path
) -> None:
    (frame, lookup), (other, other_lookup) = TABLES[then], TABLES[now]
    described = opened(frame, tmp_path).describe()
    assert described.lookup == lookup
    described = msgspec.json.decode(msgspec.json.encode(described), type=BaseDescription)
    path = tmp_path / "now.parquet"
    other.write_parquet(path)
    if then == now:
        assert open_base(described, [path], scratch=tmp_path).describe().lookup == lookup
    else:
        with pytest.raises(InputError, match=r"in now\.parquet otherwise than when the features were made") as error:
            open_base(described, [path], scratch=tmp_path)
        assert str(other_lookup) in error.value.found
        assert error.value.expected == str(lookup)
    fresh = BaseDescription(kind="table", columns=ScoreColumns())  # says nothing yet
    assert open_base(fresh, [path], scratch=tmp_path).describe().lookup == other_lookup


def test_files_of_one_table_are_read_alike_or_refused(tmp_path: Path) -> None:
    folder = tmp_path / "t"
    folder.mkdir()
    for first, second in (("a", "b"), ("b", "a")):
        table().write_parquet(folder / f"{first}.parquet")
        table(start=50).drop("neither_score").write_parquet(folder / f"{second}.parquet")
        with pytest.raises(InputError, match="one of them has no column neither_score"):
            ScoreTable(folder, ScoreColumns(), tmp_path)
        ScoreTable(folder, ScoreColumns(neither=None), tmp_path)


# -- tracks ------------------------------------------------------------------------------------------------------------


def track(path: Path, values: dict[int, float]) -> Path:
    bigtools = pytest.importorskip("pybigtools")
    bigtools.open(str(path), "w").write({"c": 100}, [("c", p - 1, p, v) for p, v in sorted(values.items())])
    return path


def test_tracks_give_their_values_to_the_last_bit(hg19_windows: Path, genes: list[Gene], tmp_path: Path) -> None:
    bigtools = pytest.importorskip("pybigtools")
    chosen = [min((g for g in genes if g.strand == strand), key=lambda g: g.length) for strand in "+-"]
    rows = pl.read_parquet(hg19_windows / "base_scores.parquet")
    for one in chosen:
        there = rows.filter(pl.col("gene_id") == one.gene_id).sort("position")
        paths = [tmp_path / f"{one.gene_id}.{kind}.bw" for kind in ("donor", "acceptor")]
        for path, column in zip(paths, ORDER[1:], strict=True):
            intervals = ((one.chrom, p - 1, p, v) for p, v in there.select("position", column).iter_rows())
            bigtools.open(str(path), "w").write({one.chrom: 3_000_000}, intervals)
        base = ScoreTracks(*paths)
        reopened = open_base(base.describe(), paths, scratch=tmp_path)
        for model in (base, pickle.loads(pickle.dumps(base)), reopened):
            found = model.scores(one, NO_CODES)
            assert found.dtype == np.float32
            expected = there.select(ORDER[1:]).to_numpy()
            assert np.array_equal(found[:, 1:], expected if one.strand == "+" else expected[::-1])
            assert np.array_equal(found[:, 0], np.maximum(np.float32(1) - found[:, 1] - found[:, 2], 0))


def test_a_position_without_a_value_in_a_track_is_named(tmp_path: Path) -> None:
    full = track(tmp_path / "full.bw", dict.fromkeys(range(1, 30), 0.25))
    holes = track(tmp_path / "holes.bw", dict.fromkeys((11, 13, 14), 0.25))
    assert ScoreTracks(full, full).scores(gene(), NO_CODES)[0].tolist() == [0.5, 0.25, 0.25]
    for strand in "+-":
        with pytest.raises(
            InputError, match=r"1 of the 4 positions of gene G have no score, the first at c:12"
        ) as error:
            ScoreTracks(full, holes).scores(gene(strand=strand), NO_CODES)
        assert "holes.bw" in str(error.value)
    with pytest.raises(InputError, match="4 of the 4 positions of gene G have no score"):
        ScoreTracks(full, full).scores(gene(chrom="d"), NO_CODES)
    with pytest.raises(InputError, match="9 of the 13 positions of gene G have no score, the first at c:30"):
        ScoreTracks(full, full).scores(gene(26, 38), NO_CODES)
    with pytest.raises(InputError, match="9 of the 13 positions of gene G have no score"):  # beyond the contig's end
        ScoreTracks(track(tmp_path / "end.bw", dict.fromkeys(range(90, 101), 0.25)), full).scores(
            gene(97, 109), NO_CODES
        )


def test_a_strand_has_its_own_of_four_tracks(tmp_path: Path) -> None:
    values = {"donor.plus": 0.125, "donor.minus": 0.25, "acceptor.plus": 0.5, "acceptor.minus": 0.0625}
    paths = [track(tmp_path / f"{name}.bw", dict.fromkeys(range(1, 30), v)) for name, v in values.items()]
    base = ScoreTracks(*paths)
    for model in (base, pickle.loads(pickle.dumps(base)), open_base(base.describe(), paths, scratch=tmp_path)):
        assert model.scores(gene(), NO_CODES)[0].tolist() == [0.375, 0.125, 0.5]
        assert model.scores(gene(strand="-"), NO_CODES)[0].tolist() == [0.6875, 0.25, 0.0625]
    assert base.lacking([gene(), gene(chrom="d", name="H")]) == ["H"]
    # A strand's own scores and those of both are not the same features.
    for described, given in ((base, paths[::2]), (ScoreTracks(*paths[::2]), paths)):
        with pytest.raises(UsageError, match=rf"bigwig was given {len(given)} file\(s\)"):
            open_base(described.describe(), given, scratch=tmp_path)
    for wrong in (paths[::-1], [paths[0], paths[2], paths[1], paths[3]], [paths[2], paths[0]]):
        with pytest.raises(UsageError, match="is given as the track"):
            ScoreTracks(*wrong)


def test_what_is_no_track_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("pybigtools")
    (tmp_path / "x.bw").write_bytes(b"nothing" * 99)
    with pytest.raises(InputError, match=r"x\.bw cannot be read as bigWig"):
        ScoreTracks(tmp_path / "x.bw", tmp_path / "x.bw")
    with pytest.raises(InputError, match="does not exist"):
        ScoreTracks(tmp_path / "none.bw", tmp_path / "x.bw")


# -- position weights --------------------------------------------------------------------------------------------------


def test_position_weights_tell_sites_from_others(genes: list[Gene], genome: Genome) -> None:
    """Of genes it was not fitted on."""
    held_out = [one for one in genes if one.chrom == "chr5_124M"]
    base = fit_pwm([one for one in genes if one.chrom != "chr5_124M"], genome)
    scores = np.concatenate([base.scores(one, genome.codes(one, base.flank)) for one in held_out])
    labels = np.concatenate([one.labels() for one in held_out])
    assert scores.dtype == np.float32
    assert scores.shape == (labels.size, 3)
    assert np.allclose(scores.sum(axis=1), 1, atol=1e-6)
    for code in (1, 2):
        prevalence = (labels == code).mean()
        assert average_precision_score(labels == code, scores[:, code]) > 100 * prevalence


def test_position_weights_are_those_of_the_formula(
    genes: list[Gene], genome: Genome, fitted: PositionWeightModel
) -> None:
    one = genes[3]
    codes, weights = genome.codes(one, FLANK), fitted.weights
    scores = fitted.scores(one, codes)
    donor, acceptor = np.array(weights.donor), np.array(weights.acceptor)
    assert (donor.shape, acceptor.shape) == ((9, 4), (23, 4))
    assert (weights.genes, weights.donors, weights.acceptors, weights.positions) == (37, 413, 394, 2_586_653)
    assert weights.donor_log_prior == pytest.approx(np.log(413 / (2_586_653 - 807)))
    # GT after the donor, AG before the acceptor: rows of offsets +1, +2 and -2, -1.
    assert [row.argmax() for row in donor[3:5]] == [2, 3]
    assert [row.argmax() for row in acceptor[18:20]] == [0, 2]
    for index in (0, int(one.donors[0]), int(one.acceptors[0]), one.length - 1):
        around = codes[index : index + 2 * FLANK + 1]
        d = sum(donor[k, around[FLANK - 2 + k]] for k in range(9)) + weights.donor_log_prior
        a = sum(acceptor[k, around[k]] for k in range(23)) + weights.acceptor_log_prior
        assert scores[index] == pytest.approx(np.exp(log_softmax([0, d, a])), rel=1e-5)


def test_an_unknown_nucleotide_says_nothing(fitted: PositionWeightModel) -> None:
    scores = fitted.scores(gene(1, 3), np.full(3 + 2 * FLANK, 4, dtype=np.uint8))
    prior = np.exp([0, fitted.weights.donor_log_prior, fitted.weights.acceptor_log_prior])
    assert scores == pytest.approx(np.tile(prior / prior.sum(), (3, 1)))


def test_position_weights_come_back_from_json_to_the_last_bit(
    genes: list[Gene], genome: Genome, fitted: PositionWeightModel, tmp_path: Path
) -> None:
    description = msgspec.json.decode(msgspec.json.encode(fitted.describe()), type=BaseDescription)
    assert description == fitted.describe()
    again = open_base(description, scratch=tmp_path)
    for one in genes[:4]:
        codes = genome.codes(one, FLANK)
        assert np.array_equal(again.scores(one, codes), fitted.scores(one, codes))
        assert np.array_equal(pickle.loads(pickle.dumps(again)).scores(one, codes), fitted.scores(one, codes))


def test_the_order_of_genes_and_the_pieces_scored_do_not_matter(
    genes: list[Gene], genome: Genome, fitted: PositionWeightModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert fit_pwm(reversed(genes), genome).weights == fitted.weights
    one = max(genes[:10], key=lambda g: g.length)
    codes = genome.codes(one, FLANK)
    whole = fitted.scores(one, codes)
    monkeypatch.setattr(pwm, "_PIECE", 1013)
    assert np.array_equal(fitted.scores(one, codes), whole)
    part = replace(one, start=one.start + 17, end=one.end - 23)
    first = 17 if one.strand == "+" else 23
    assert np.array_equal(fitted.scores(part, genome.codes(part, FLANK)), whole[first : first + part.length])


def test_only_the_genes_given_are_counted(genes: list[Gene], genome: Genome, fitted: PositionWeightModel) -> None:
    fewer = fit_pwm(genes[:-1], genome)
    assert fewer.weights.donors == 413 - genes[-1].donors.size
    assert fewer.weights.donor != fitted.weights.donor


def test_fitting_can_be_stopped_between_genes(genes: list[Gene], genome: Genome, tmp_path: Path) -> None:
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        opening.opened(BaseAsked("pwm"), genes, genome, tmp_path, stop=stop)
    assert len(calls) == 3


def test_too_few_sites_to_fit_are_refused(genes: list[Gene], genome: Genome) -> None:
    few = [one for one in genes if one.donors.size < 10][:2]
    with pytest.raises(InputError, match=r"the 2 training gene\(s\) have \d+ donor site\(s\)") as error:
        fit_pwm(few, genome)
    assert "at least 30" in str(error.value)
    no_acceptors = [replace(one, acceptors=one.acceptors[:0]) for one in genes]
    with pytest.raises(InputError, match=r"have 0 acceptor site\(s\)"):
        fit_pwm(no_acceptors, genome)


# -- descriptions ------------------------------------------------------------------------------------------------------


def test_a_description_says_which_files_it_is_of(hg19_windows: Path, tmp_path: Path) -> None:
    described = ScoreTable(hg19_windows / "base_scores.parquet", ScoreColumns(), tmp_path).describe()
    (source,) = described.sources
    assert source.sha256 == "860fb402f2923f904a96c8b154ee52c2a3c62529876e06df2abc40ae20be260e"
    assert (source.name, source.bytes) == ("base_scores.parquet", 2_087_916)
    text = msgspec.json.encode(described).decode()
    assert str(hg19_windows) not in text, "where it lay decides nothing"
    assert msgspec.json.decode(text, type=BaseDescription) == described


def test_files_whose_sums_are_known_are_not_read_for_them_again(
    genome: Genome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table().write_parquet(tmp_path / "scores.parquet")
    asked = BaseAsked("table", (tmp_path / "scores.parquet",), ScoreColumns())
    known = asked.sources()
    monkeypatch.setattr("metabatch.rundir.publish.hashlib.file_digest", None)  # calling it would be an error
    base = opening.opened(asked, [], genome, tmp_path, known)
    assert base.describe().sources == pickle.loads(pickle.dumps(base)).describe().sources == tuple(known)
    with pytest.raises(TypeError):
        opening.opened(asked, [], genome, tmp_path).describe()


class Network:
    """In the place of one that takes packages which are not installed here."""

    name, flank = "spliceai", 0
    sources: tuple[Source, ...] = (Source("w1.h5", 3, "aa"), Source("w2.h5", 3, "bb"))

    def describe(self) -> BaseDescription:
        return BaseDescription(kind="spliceai", sources=self.sources, versions={"keras": "3.1", "spliceai": "1.3.1"})


def test_networks_are_opened_by_what_is_described_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("metabatch.building.base_networks.SpliceAI", Network)
    fresh = BaseDescription(kind="spliceai")
    for described in (fresh, Network().describe()):
        assert isinstance(open_base(described, scratch=tmp_path), Network)
    assert not caplog.records
    older = msgspec.structs.replace(Network().describe(), versions={"keras": "3.0", "spliceai": "1.3.1", "torch": "2"})
    open_base(older, scratch=tmp_path)
    (record,) = caplog.records
    assert "keras 3.1 (3.0 then), torch missing (2 then); scores may differ" in record.getMessage()
    retrained = msgspec.structs.replace(fresh, sources=(Source("w1.h5", 3, "aa"), Source("w2.h5", 3, "cc")))
    with pytest.raises(InputError, match=r"w2\.h5 is not the weights that the features were made with"):
        open_base(retrained, scratch=tmp_path)
    with pytest.raises(InputError, match=r"has 2 file\(s\) of weights"):
        open_base(msgspec.structs.replace(fresh, sources=Network.sources[:1]), scratch=tmp_path)


def test_opening_with_the_wrong_number_of_files_is_a_usage_error(fitted: PositionWeightModel, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"pwm was given 1 file\(s\)"):
        open_base(fitted.describe(), [tmp_path], scratch=tmp_path)
    with pytest.raises(UsageError, match=r"table was given 0 file\(s\)"):
        open_base(BaseDescription(kind="table"), scratch=tmp_path)
    with pytest.raises(InputError, match="has no weights"):
        open_base(BaseDescription(kind="pwm"), scratch=tmp_path)


@pytest.mark.parametrize(
    ("module", "extra", "start"),
    [
        ("torch", "openspliceai", lambda: OpenSpliceAI(Path("model.pt"))),
        ("keras", "spliceai", SpliceAI),
        ("pybigtools", "bigwig", lambda: ScoreTracks(Path("d.bw"), Path("a.bw"))),
    ],
)
def test_a_package_that_is_not_installed_is_named_with_its_extra(
    module: str, extra: str, start: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)  # as if it were not there
    monkeypatch.setenv("KERAS_BACKEND", "torch")
    with pytest.raises(UsageError) as error:
        start()
    assert f"pip install 'metabatch[{extra}]'" in str(error.value)
    assert module in str(error.value)


def test_scores_that_are_no_probabilities_are_named_by_position() -> None:
    scores = np.tile(np.array([0.5, 0.25, 0.25], dtype=np.float32), (4, 1))
    check_scores(scores, gene=gene(), where="a network")
    scores[1, 2] = np.nan
    with pytest.raises(MetabatchError, match="the first at c:13: acceptor nan"):
        check_scores(scores, gene=gene(strand="-"), where="a network")


def test_a_score_above_1_by_rounding_is_one_for_base_models_features_and_the_choice_of_rows(tmp_path: Path) -> None:
    frame = table().with_columns(donor_score=pl.lit(1.0005, pl.Float32), neither_score=pl.lit(0, pl.Float32))
    scores = opened(frame, tmp_path).scores(gene(), NO_CODES)
    assert scores[0, 1] == np.float32(1.0005)
    spec = FeatureSpec(kmer_sizes=(), kmer_window=1, nucleotides=0)
    batch = feature_batch(spec, np.zeros(4, np.uint8), scores, np.arange(4))
    assert batch.column("donor_score").to_pylist() == scores[:, 1].tolist()
    assert select_rows(RowSampling(), "G", np.zeros(4, np.uint8), scores, 4, 1)[0].tolist() == [0, 1, 2, 3]
    for above in (1.0011, 1.002):
        said = rf"donor {above}"  # all digits that tell it from 1
        with pytest.raises(InputError, match=said):
            opened(frame.with_columns(donor_score=pl.lit(above, pl.Float32)), tmp_path).scores(gene(), NO_CODES)
        scores[2, 1] = above
        with pytest.raises(InputError, match=said):
            feature_batch(spec, np.zeros(4, np.uint8), scores, np.arange(4))
