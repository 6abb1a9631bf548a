"""Features: the demo's own values again from genome and scores, and no bit that depends on who asks for which rows."""

from __future__ import annotations

import gzip
import hashlib
import os
import subprocess
import sys
import tracemalloc
from collections import Counter
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.building.base import BaseDescription, PositionWeights
from metabatch.building.dataset import Recipe
from metabatch.building.features import (
    FEATURES_VERSION,
    FeatureSpec,
    feature_batch,
    feature_flank,
    feature_schema,
    rows_at_once,
)
from metabatch.building.genes import Gene
from metabatch.building.genome import Genome
from metabatch.building.positions import Positions
from metabatch.building.pwm import FLANK, PositionWeightModel
from metabatch.building.rows import RowSampling
from metabatch.building.shards import ShardPlan, group_rows, write_shard
from metabatch.errors import InputError, UsageError
from metabatch.inference.genome import GenomeRows, open_genome
from metabatch.inference.request import GenomeAsked
from metabatch.rundir.bundle import Bundle, Combination
from metabatch.rundir.manifests import Columns, save

ROOT = Path(__file__).resolve().parents[2]
WINDOWS = ROOT.parent / "shared" / "data" / "hg19-windows"
IDS = {"gene_id", "gene_name", "gene_type", "locus_id", "chrom", "strand", "position", "splice_type", "sampling_weight"}
SMALL = FeatureSpec(kmer_sizes=(1, 3), kmer_window=21, score_context=4, peak_context=6, reach=17, nucleotides=3)

Made = tuple[np.ndarray, np.ndarray]


def made(spec: FeatureSpec, length: int, seed: int = 0, unknown: float = 0.02) -> Made:
    """Nucleotides and scores of a gene: most scores small, many exactly 0, some N."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 4, length + 2 * feature_flank(spec)).astype(np.uint8)
    codes[rng.random(len(codes)) < unknown] = 4
    sites = rng.random((length, 2)) ** 12 * (rng.random((length, 2)) < 0.7) / 2
    return codes, np.column_stack([1 - sites.sum(axis=1), sites]).astype(np.float32)


def bits(batch: pa.RecordBatch) -> bytes:
    return b"".join(column.to_numpy(zero_copy_only=False).tobytes() for column in batch.columns)


def column(batch: pa.RecordBatch, name: str) -> np.ndarray:
    return batch.column(name).to_numpy()


@pytest.fixture(scope="module")
def contigs() -> dict[str, np.ndarray]:
    if not WINDOWS.exists():
        pytest.skip("../shared/data/hg19-windows is not beside the checkout")
    table = np.full(256, 4, np.uint8)
    table[np.frombuffer(b"ACGT", np.uint8)] = np.arange(4)
    records = gzip.decompress((WINDOWS / "genome.fa.gz").read_bytes()).decode().split(">")[1:]
    parts = [record.partition("\n") for record in records]
    return {
        name.split()[0]: table[np.frombuffer(letters.replace("\n", "").encode(), np.uint8)]
        for name, _, letters in parts
    }


@pytest.mark.parametrize("name", ["TRAK1", "CCK", "SS18L2", "TEX43", "CISD2", "POMGNT2", "NFKB1", "CENPE", "CYP8B1"])
def test_the_demo_recomputed_from_genome_and_scores_is_equal_in_every_bit(
    name: str, demo: Path, contigs: dict[str, np.ndarray]
) -> None:
    spec = FeatureSpec(score_context=10)
    flank = feature_flank(spec)
    gene = pl.read_csv(demo / "gene_manifest.csv").row(by_predicate=pl.col("gene_name") == name, named=True)
    table = pl.read_parquet(demo / gene["shard"]).filter(pl.col("gene_name") == name)
    base = pl.read_parquet(WINDOWS / "base_scores.parquet").filter(pl.col("gene_id") == gene["gene_id"])
    scores = base.select("neither_score", "donor_score", "acceptor_score").to_numpy()
    codes = contigs[gene["chrom"]][gene["start"] - 1 - flank : gene["end"] + flank]
    index = table["position"].to_numpy() - gene["start"]
    if gene["strand"] == "-":
        scores, index = scores[::-1], len(scores) - 1 - index
        codes = np.array([3, 2, 1, 0, 4], np.uint8)[codes[::-1]]
    batch = feature_batch(spec, codes, scores, index.astype(np.int64))
    expected = [c for c in table.columns if c not in IDS]
    # One shard of the demo lacks two k-mers on purpose.
    missing = {"3mer_CGA", "3mer_TCG"} if gene["shard"] == "positions-00002.parquet" else set()
    assert set(batch.schema.names) - missing == set(expected)
    for feature in expected:
        ours, theirs = column(batch, feature), table[feature].to_numpy()
        if not feature.startswith("3mer_"):  # counts take half of the demo's bytes
            assert ours.dtype == theirs.dtype, feature
        np.testing.assert_array_equal(ours, theirs, err_msg=feature)


specs = st.builds(
    FeatureSpec,
    kmer_sizes=st.lists(st.integers(1, 4), max_size=3, unique=True).map(tuple),
    kmer_window=st.sampled_from([5, 21, 201, 401]),
    score_context=st.integers(0, 12),
    peak_context=st.integers(1, 12),
    reach=st.sampled_from([0, 1, 2, 7, 64, 300, 100_000]),
    nucleotides=st.sampled_from([0, 1, 12, 150]),
)


@settings(deadline=None, max_examples=60)
@given(specs, st.integers(1, 700), st.integers(0, 2**32 - 1), st.data())
def test_a_row_has_the_same_bits_whatever_else_is_asked_for(
    spec: FeatureSpec, length: int, seed: int, data: st.DataObject
) -> None:
    codes, scores = made(spec, length, seed)
    whole = feature_batch(spec, codes, scores, np.arange(length))
    assert whole.schema == feature_schema(spec)
    places = data.draw(st.lists(st.integers(0, length - 1), max_size=60))
    index = np.array(places, np.int64)  # in any order, and more than once
    cut = data.draw(st.integers(0, len(index)))
    expected = whole.take(pa.array(index))
    assert bits(feature_batch(spec, codes, scores, index)) == bits(expected)
    parts = [feature_batch(spec, codes, scores, part) for part in (index[:cut], index[cut:])]
    joined = pa.Table.from_batches(parts).combine_chunks().to_batches()
    assert b"".join(bits(b) for b in joined) == bits(expected)


def test_batches_of_every_size_have_the_same_bits() -> None:
    spec = FeatureSpec(kmer_sizes=(3, 5))
    codes, scores = made(spec, 3000)
    whole = feature_batch(spec, codes, scores, np.arange(3000))
    for rows in (1, 2, 3, 7, 255, 256, 257, 1999):
        asked = [np.arange(first, min(first + rows, 3000)) for first in range(0, 3000, rows)][:12]
        for index in asked:
            assert bits(feature_batch(spec, codes, scores, index)) == bits(whole.slice(index[0], len(index)))


DIGEST = """
import hashlib
import numpy as np
from metabatch.building.features import FeatureSpec, feature_batch, feature_flank
from tests.unit.test_features import bits, made
spec = FeatureSpec(kmer_sizes=(3, 5))
codes, scores = made(spec, 5000)
print(hashlib.sha256(bits(feature_batch(spec, codes, scores, np.arange(5000)))).hexdigest())
"""


def digest(**env: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", DIGEST], cwd=ROOT, env=os.environ | env, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    return done.stdout.strip()


def test_neither_threads_nor_the_kind_of_processor_change_a_bit() -> None:
    spec = FeatureSpec(kmer_sizes=(3, 5))
    here = hashlib.sha256(bits(feature_batch(spec, *made(spec, 5000), np.arange(5000)))).hexdigest()
    assert digest(OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1") == here
    assert digest(OMP_NUM_THREADS="8", OPENBLAS_NUM_THREADS="8") == here
    # NumPy picks its loops by the processor; without these it takes those of an old one.
    newer = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    if newer:
        assert digest(NPY_DISABLE_CPU_FEATURES=" ".join(newer)) == here


def naive_counts(codes: np.ndarray, middle: int, window: int, k: int) -> Counter[str]:
    letters = "".join("ACGTN"[c] for c in codes[middle - window // 2 : middle + window // 2 + 1])
    kmers = (letters[i : i + k] for i in range(len(letters) - k + 1))
    return Counter(kmer for kmer in kmers if "N" not in kmer)


@settings(deadline=None, max_examples=30)
@given(st.sampled_from([1, 2, 3, 4, 5, 6]), st.sampled_from([7, 21, 201, 301]), st.integers(0, 2**32 - 1))
def test_kmers_are_counted_overlapping_and_without_those_holding_an_n(k: int, window: int, seed: int) -> None:
    spec = FeatureSpec(kmer_sizes=(k,), kmer_window=window)
    codes, scores = made(spec, 40, seed, unknown=0.05)
    codes[: len(codes) // 2] = codes[0] % 4  # runs of one letter give the highest counts
    batch = feature_batch(spec, codes, scores, np.arange(40))
    names = [f"{k}mer_{''.join(letters)}" for letters in product("ACGT", repeat=k)]
    assert [n for n in batch.schema.names if "mer_" in n] == names
    for row in (0, 13, 39):
        expected = naive_counts(codes, row + feature_flank(spec), window, k)
        found = {name.partition("_")[2]: column(batch, name)[row] for name in names}
        assert {kmer: n for kmer, n in found.items() if n} == dict(expected)


@pytest.mark.parametrize(
    ("window", "k", "dtype"), [(201, 3, "uint8"), (257, 3, "uint8"), (259, 3, "uint16"), (255, 1, "uint8")]
)
def test_counts_take_one_byte_where_they_cannot_exceed_it(window: int, k: int, dtype: str) -> None:
    spec = FeatureSpec(kmer_sizes=(k,), kmer_window=window)
    codes, scores = made(spec, 5)
    batch = feature_batch(spec, np.zeros_like(codes), scores, np.arange(5))
    name = f"{k}mer_{'A' * k}"
    assert str(batch.schema.field(name).type) == dtype
    assert (column(batch, name) == window - k + 1).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 80), st.sampled_from([1, 2, 3, 16, 17, 31, 200]), st.integers(0, 2**32 - 1))
def test_the_highest_scores_within_reach_leave_the_own_position_out(length: int, reach: int, seed: int) -> None:
    spec = FeatureSpec(kmer_sizes=(), kmer_window=1, reach=reach, peak_context=reach, nucleotides=0)
    codes, scores = made(spec, length, seed)
    batch = feature_batch(spec, codes, scores, np.arange(length))
    for name, channel in (("donor", 1), ("acceptor", 2)):
        up = [max([0.0, *scores[max(i - reach, 0) : i, channel]]) for i in range(length)]
        down = [max([0.0, *scores[i + 1 : i + 1 + reach, channel]]) for i in range(length)]
        assert column(batch, f"{name}_max_up{reach}").tolist() == up
        assert column(batch, f"{name}_max_down{reach}").tolist() == down
        assert column(batch, f"{name}_context_max").tolist() == [max(u, d) for u, d in zip(up, down, strict=True)]


def test_neighbours_are_counted_in_transcript_direction_and_score_0_outside_of_the_gene() -> None:
    spec = FeatureSpec(score_context=3)
    codes, scores = made(spec, 4)
    scores[:, 1] = [0.1, 0.2, 0.3, 0.4]
    batch = feature_batch(spec, codes, scores, np.arange(4))
    assert column(batch, "donor_score_m3").tolist() == pytest.approx([0, 0, 0, 0.1])
    assert column(batch, "donor_score_m1").tolist() == pytest.approx([0, 0.1, 0.2, 0.3])
    assert column(batch, "donor_score_p1").tolist() == pytest.approx([0.2, 0.3, 0.4, 0])
    assert column(batch, "donor_context_asymmetry").tolist() == pytest.approx([-0.5, -0.6, -0.1, 0.5])
    assert column(batch, "donor_is_local_peak").tolist() == [0, 0, 0, 1]
    assert column(batch, "gene_length").tolist() == [4] * 4
    assert column(batch, "distance_to_start").tolist() == [0, 1, 2, 3]
    assert column(batch, "distance_to_end").tolist() == [3, 2, 1, 0]


def test_sequence_beyond_the_contig_is_n_and_counts_nowhere() -> None:
    spec = FeatureSpec(kmer_sizes=(3,), kmer_window=7, nucleotides=3)
    codes = np.array([4, 4, 4, 2, 1, 0, 4, 4, 4], np.uint8)  # a gene GCA with nothing around it
    batch = feature_batch(spec, codes, made(spec, 3)[1], np.arange(3))
    assert [column(batch, f"base_{o}").tolist() for o in ("m1", "0", "p1")] == [[4, 2, 1], [2, 1, 0], [1, 0, 4]]
    assert column(batch, "gc_content").tolist() == pytest.approx([2 / 3] * 3)
    assert column(batch, "sequence_complexity").tolist() == pytest.approx([np.log2(3)] * 3)
    assert sum(column(batch, n)[1] for n in batch.schema.names if "mer_" in n) == 1
    nothing = feature_batch(spec, np.full(9, 4, np.uint8), made(spec, 3)[1], np.arange(3))
    assert column(nothing, "gc_content").tolist() == column(nothing, "sequence_complexity").tolist() == [0, 0, 0]


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(0, 2**32 - 1))
def test_both_channels_are_treated_alike(length: int, seed: int) -> None:
    codes, scores = made(SMALL, length, seed)
    index = np.arange(length)
    batch = feature_batch(SMALL, codes, scores, index)
    swapped = feature_batch(SMALL, codes, scores[:, [0, 2, 1]], index)
    for name in batch.schema.names:
        if name.startswith("donor_") and name != "donor_acceptor_logodds":
            twin = name.replace("donor_", "acceptor_", 1)
            assert column(batch, name).tobytes() == column(swapped, twin).tobytes()
            assert column(batch, twin).tobytes() == column(swapped, name).tobytes()


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 100), st.sampled_from([0.0, 1.0, 1e-45, 0.5]), st.sampled_from([0.0, 1.0, 1e-45, 0.5]))
def test_every_value_is_finite_and_none_is_missing(length: int, donor: float, neither: float) -> None:
    codes, scores = made(SMALL, length)
    scores[:] = [neither, donor, 0]
    batch = feature_batch(SMALL, codes, scores, np.arange(length))
    for name in batch.schema.names:
        assert np.isfinite(column(batch, name)).all(), name
        assert batch.column(name).null_count == 0


PINNED = FeatureSpec(kmer_sizes=(1, 3), kmer_window=21, score_context=3, peak_context=4, reach=9, nucleotides=5)
WEIGHTS = PositionWeights(
    donor=((0.5, -0.25, 1, -2),) * 9, acceptor=((-0.5, 0.75, 0.125, -1),) * 23, donor_log_prior=-2.5,
    acceptor_log_prior=-3, background=(0.25, 0.25, 0.25, 0.25), pseudocount=1, genes=1, positions=60, donors=30,
    acceptors=30,
)  # fmt: skip
# Of the same values another sum: a formula was changed, and wants a new FEATURES_VERSION with a sum of its own.
SUMS = {1: ("af263b143746e1d4", "37010d942d3570c0")}


def pinned() -> tuple[Made, PositionWeightModel]:
    """Made of whole numbers and halves of halves only, N and 0 among them, so that no generator decides."""
    at = np.arange(60)
    codes = ((np.arange(60 + 2 * FLANK) ** 2 * 7 // 3 + np.arange(60 + 2 * FLANK)) % 23 % 5).astype(np.uint8)
    sites = np.column_stack([at * 37 % 64 * (at % 3 > 0) / 128, at * 29 % 64 * (at % 4 > 0) / 256])
    flank = feature_flank(PINNED)
    assert flank < FLANK
    scores = np.column_stack([1 - sites.sum(axis=1), sites]).astype(np.float32)
    return (codes, scores), PositionWeightModel(WEIGHTS)


def test_values_are_those_of_the_version_of_the_features() -> None:
    (codes, scores), base = pinned()
    assert set(codes.tolist()) == {0, 1, 2, 3, 4}
    cut = FLANK - feature_flank(PINNED)
    batch = feature_batch(PINNED, codes[cut : len(codes) - cut], scores, np.arange(60))
    said = "".join(f"{field.name} {field.type}\n" for field in batch.schema).encode()
    nothing = np.zeros(0, np.int64)
    gene = Gene("G", "G", "", "c", "+", 1, 60, nothing, nothing)
    values = bits(batch), base.scores(gene, codes).tobytes()
    found = tuple(hashlib.sha256(part).hexdigest()[:16] for part in (said + values[0], values[1]))
    assert found == SUMS[FEATURES_VERSION], "a formula changed: raise FEATURES_VERSION, and add its sums here"


def test_a_model_of_another_version_of_the_features_is_refused(tmp_path: Path) -> None:
    recipe = Recipe(
        features_version=FEATURES_VERSION, features=PINNED, base=BaseDescription(kind="pwm", weights=WEIGHTS)
    )
    (tmp_path / "g.fa").write_text(f">c\n{'ACGTTGCA' * 40}\n")
    (tmp_path / "r.bed").write_text("c\t100\t200\n")
    asked = GenomeAsked(genome=tmp_path / "g.fa", regions=tmp_path / "r.bed")

    def opened(recipe: dict[str, Any]) -> GenomeRows:
        bundle = Bundle(
            metabatch_version="0", xgboost_version="0", fingerprint="", strategy="single",
            combination=Combination(method="mean", weights=()), features=(), members=(), recipe=recipe,
            columns=Columns(
                group="g", label="l", classes=(), scores={}, split=None, weight=None, ids=(), chrom=None, row_key=(),
                carried={},
            ),
        )  # fmt: skip
        save(tmp_path / "bundle.json", bundle)
        return open_genome(tmp_path, asked, tmp_path)

    as_written = msgspec.to_builtins(recipe)
    assert opened(as_written).genes[0].length == 100
    for other in (FEATURES_VERSION + 1, FEATURES_VERSION - 1, None):
        with pytest.raises(InputError, match=f"are of version {other}") as error:
            opened(as_written | {"features_version": other})
        assert error.value.expected is not None
        assert f"version {FEATURES_VERSION}," in error.value.expected
    with pytest.raises(InputError, match="are of version None"):
        opened({name: value for name, value in as_written.items() if name != "features_version"})


WIDE = [
    FeatureSpec(), FeatureSpec(kmer_sizes=(3, 5)), FeatureSpec(kmer_sizes=(6,)),
    FeatureSpec(kmer_sizes=(1, 2, 3, 4, 5, 6), kmer_window=401), FeatureSpec(score_context=2000),
]  # fmt: skip


@pytest.mark.parametrize("spec", WIDE, ids=lambda spec: str(len(feature_schema(spec))))
def test_memory_is_bounded_however_many_columns_there_are(spec: FeatureSpec) -> None:
    columns, rows = len(feature_schema(spec)), rows_at_once(spec)
    assert 256 <= rows <= 8192
    assert rows * columns <= 20_000_000
    group = group_rows(spec)
    width = sum(kind.bit_width // 8 for kind in feature_schema(spec).types)
    assert (group + min(rows, group)) * width <= 64_000_000
    assert group == 16_384 or (group + rows) * width > 30_000_000  # no smaller than they must be
    assert (rows, group) == (8192, 16_384) or columns > 2400


def test_row_groups_of_wide_sets_have_fewer_rows(tmp_path: Path) -> None:
    spec, length = FeatureSpec(kmer_sizes=(), score_context=2000), 2500
    (tmp_path / "g.fa").write_text(f">c\n{'ACGTTGCA' * 400}\n")
    nothing = np.zeros(0, np.int64)
    gene = Gene("G", "G", "", "c", "+", 301, 300 + length, nothing, nothing, "c:301-2800")
    positions = Positions(Genome(tmp_path / "g.fa", tmp_path), PositionWeightModel(WEIGHTS), spec)
    plan, file = ShardPlan("s", (gene,), (length,)), tmp_path / "s.parquet"
    assert write_shard(file, plan, positions, RowSampling(all_positions=True), 1, lambda: None) == length
    metadata = pq.read_metadata(file)
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    assert [g.num_rows for g in groups] == [group_rows(spec), group_rows(spec), length - 2 * group_rows(spec)]
    assert max(g.num_rows for g in groups) * 4 * len(feature_schema(spec)) < 64_000_000


def test_features_can_be_left_out() -> None:
    spec = FeatureSpec(kmer_sizes=(), reach=0, score_context=0, nucleotides=0)
    names = feature_schema(spec).names
    assert not [n for n in names if "mer_" in n or "_max_up" in n or "_score_m" in n or n.startswith("base_m")]
    assert {"donor_score", "acceptor_score", "neither_score", "gc_content", "base_0", "donor_context_max"} <= set(names)
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kmer_sizes": (7,)}, "k-mers of 7 nt"),
        ({"kmer_sizes": (3, 9)}, "k-mers of 9 nt"),
        ({"kmer_sizes": (0,)}, "k-mers of 0 nt"),
        ({"kmer_sizes": (3, 3)}, "each size once"),
        ({"kmer_window": 200}, "odd number"),
        ({"kmer_window": -1}, "odd number"),
        ({"kmer_window": 3, "kmer_sizes": (5,)}, "odd number, 5 to"),
        ({"kmer_window": 70_001}, "65535"),
        ({"reach": -1}, "reach = -1 nt"),
        ({"score_context": -2}, "score_context"),
        ({"peak_context": 0}, "at least 1 nt"),
        ({"nucleotides": -1}, "nucleotides"),
    ],
)
def test_a_specification_that_makes_no_sense_is_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        FeatureSpec(**options)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 7.0])
def test_scores_that_are_no_probabilities_are_refused(value: float) -> None:
    codes, scores = made(SMALL, 50)
    scores[20, 2] = value
    with pytest.raises(InputError, match=r"no probability, e\.g\.: acceptor"):
        feature_batch(SMALL, codes, scores, np.arange(50))


def test_scores_of_another_length_and_rows_outside_of_the_gene_are_refused() -> None:
    codes, scores = made(SMALL, 50)
    with pytest.raises(InputError, match=r"\(49, 3\)"):
        feature_batch(SMALL, codes, scores[:49], np.arange(49))
    for row in (-1, 50):
        with pytest.raises(IndexError, match="50 nt"):
            feature_batch(SMALL, codes, scores, np.array([row]))


@pytest.fixture
def traced() -> Iterator[None]:
    tracemalloc.start()
    yield
    tracemalloc.stop()


def test_memory_of_the_longest_gene_does_not_grow_with_the_reach_and_a_batch_costs_its_own_rows(traced: None) -> None:
    length = 2_300_000
    codes, scores = made(FeatureSpec(), length)
    far = np.linspace(0, length - 1, 300).astype(np.int64)

    def peak(spec: FeatureSpec, index: np.ndarray) -> float:
        feature_schema(spec)
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        feature_batch(spec, codes, scores, index)
        return (tracemalloc.get_traced_memory()[1] - before) / 2**20

    assert peak(FeatureSpec(reach=20_000), far) < peak(FeatureSpec(reach=300), far) * 1.2 < 100
    assert peak(FeatureSpec(kmer_sizes=(3, 5)), np.arange(10**6, 10**6 + 500)) < 25
