"""build-dataset looks at its sources before it works: what cannot be right is refused, what is odd is told."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from metabatch.resources.limits import cpu_count
from tests.conftest import Outcome, start, succeed

SMALL = ("--kmer-sizes", "none", "--rows-per-gene", "50", "--workers", "1")


def built(windows: Path, scores: str | Path, out: Path, *words: str) -> Outcome:
    genome, annotation = windows / "genome.fa.gz", windows / "annotation.gtf.gz"
    return start("build-dataset", "--quiet", *SMALL, *words, "--base-scores", scores, genome, annotation, out)


def warnings_of(out: Path, done: Outcome) -> list[str]:
    """Of dataset.json; each was said once."""
    assert done.code == 0, done.err
    found: list[str] = json.loads((out / "dataset.json").read_text())["warnings"]
    assert all(done.err.count(text) == 1 for text in found)
    return found


@pytest.fixture(scope="module")
def plain(hg19_windows: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A data set of the shipped scores, and its warnings."""
    out = tmp_path_factory.mktemp("plain") / "data"
    done = built(hg19_windows, hg19_windows / "base_scores.parquet", out)
    return out, warnings_of(out, done)


@pytest.fixture(scope="module")
def manifest(plain: tuple[Path, list[str]]) -> pl.DataFrame:
    return pl.read_csv(plain[0] / "gene_manifest.csv")


@pytest.fixture(scope="module")
def by_place(hg19_windows: Path, manifest: pl.DataFrame) -> pl.DataFrame:
    """The scores by chrom, strand and position, once each; neither is what they leave."""
    scores = pl.read_parquet(hg19_windows / "base_scores.parquet")
    scores = scores.join(manifest.select("gene_id", "chrom", "strand"), on="gene_id")
    scores = scores.unique(["chrom", "strand", "position"], keep="first", maintain_order=True)
    return scores.select("chrom", "strand", "position", "donor_score", "acceptor_score").sort("chrom", "position")


def over_the_other_strand(manifest: pl.DataFrame) -> pl.DataFrame:
    """Pairs of genes on different strands that share a position, once in each direction."""
    return manifest.join(manifest, on="chrom", suffix="_other").filter(
        pl.col("strand") != pl.col("strand_other"), pl.col("start") <= pl.col("end_other"),
        pl.col("end") >= pl.col("start_other"),
    )  # fmt: skip


def test_genes_that_the_scores_lack_are_named_together_before_any_work(
    hg19_windows: Path, manifest: pl.DataFrame, tmp_path: Path
) -> None:
    gone = manifest["gene_id"][5:17].to_list()
    scores = pl.read_parquet(hg19_windows / "base_scores.parquet")
    scores.filter(~pl.col("gene_id").is_in(gone)).write_parquet(tmp_path / "s.parquet")
    for words in ((), ("--n-genes", "8", "--subset-policy", "errors")):
        refused = built(hg19_windows, tmp_path / "s.parquet", tmp_path / "out", *words)
        assert refused.code == 3
        assert f"nothing of 12 of the 37 genes: {', '.join(gone[:10])}, …" in refused.err
        assert not (tmp_path / "out").exists()


def test_scores_that_do_not_tell_strands_are_told_and_those_that_do_are_not(
    hg19_windows: Path, manifest: pl.DataFrame, by_place: pl.DataFrame, plain: tuple[Path, list[str]], tmp_path: Path
) -> None:
    overlapping = over_the_other_strand(manifest)["gene_id"].n_unique()
    assert overlapping
    by_place.unique(["chrom", "position"], keep="first", maintain_order=True).drop("strand").write_parquet(
        tmp_path / "without.parquet"
    )
    by_place.write_parquet(tmp_path / "with.parquet")
    done = built(hg19_windows, tmp_path / "without.parquet", tmp_path / "without")
    (said,) = [w for w in warnings_of(tmp_path / "without", done) if "strands" in w]
    assert f"and {overlapping} of them overlap a gene of the other strand" in said
    done = built(hg19_windows, tmp_path / "with.parquet", tmp_path / "with")
    for warnings in (warnings_of(tmp_path / "with", done), plain[1]):
        assert not [w for w in warnings if "strands" in w]
    one = manifest.filter(pl.col("strand") == "+")["gene_id"][0]
    done = built(hg19_windows, tmp_path / "without.parquet", tmp_path / "one", "--gene-ids", one)
    assert not [w for w in warnings_of(tmp_path / "one", done) if "strands" in w]


def test_four_tracks_give_each_strand_its_own_scores(
    hg19_windows: Path, manifest: pl.DataFrame, by_place: pl.DataFrame, tmp_path: Path
) -> None:
    """The same shards as a table with strands makes."""
    bigtools: Any = pytest.importorskip("pybigtools")
    pair = over_the_other_strand(manifest).sort(pl.col("length") + pl.col("length_other")).row(0, named=True)
    chrom, genes = pair["chrom"], ("--gene-ids", f"{pair['gene_id']},{pair['gene_id_other']}")
    first, last = min(pair["start"], pair["start_other"]), max(pair["end"], pair["end_other"])
    rows = by_place.filter(pl.col("chrom") == chrom, pl.col("position").is_between(first, last))
    names = []
    for kind in ("donor", "acceptor"):
        for word, strand in (("plus", "+"), ("minus", "-")):
            path = tmp_path / f"{kind}.{word}.bw"
            values = rows.filter(pl.col("strand") == strand).select("position", f"{kind}_score").iter_rows()
            bigtools.open(str(path), "w").write({chrom: 3_000_000}, ((chrom, p - 1, p, v) for p, v in values))
            names.append(str(path))
    by_place.write_parquet(tmp_path / "table.parquet")
    done = built(hg19_windows, tmp_path / "table.parquet", tmp_path / "table", *genes)
    warnings_of(tmp_path / "table", done)
    done = built(hg19_windows, ",".join(names), tmp_path / "tracks", *genes)
    assert not [w for w in warnings_of(tmp_path / "tracks", done) if "strands" in w]
    shards = [sorted((tmp_path / kind).glob("*.parquet")) for kind in ("table", "tracks")]
    assert [f.read_bytes() for f in shards[0]] == [f.read_bytes() for f in shards[1]]
    refused = built(hg19_windows, ",".join([names[1], names[0], *names[2:]]), tmp_path / "other", *genes)
    assert refused.code == 2
    assert "donor.minus.bw is given as the track donor.plus" in refused.err
    refused = built(hg19_windows, ",".join(names), tmp_path / "other")
    assert refused.code == 3  # contigs that the tracks do not have
    elsewhere = manifest.filter(pl.col("chrom") != chrom).height
    assert f"nothing of {elsewhere} of the 37 genes" in refused.err


@pytest.mark.parametrize(
    ("by", "shift", "side"), [("gene", -1, "before"), ("place", -1, "before"), ("gene", 1, "after")]
)
def test_scores_that_are_a_position_off_are_refused(
    by: str, shift: int, side: str, hg19_windows: Path, manifest: pl.DataFrame, by_place: pl.DataFrame, tmp_path: Path
) -> None:
    """As positions from 0 are; every position of the genes has a score all the same."""
    if by == "gene":
        scores = pl.read_parquet(hg19_windows / "base_scores.parquet")
        key = ["gene_id"]
    else:
        scores, key = by_place, ["chrom", "strand"]
    # What stood there stays where nothing is moved to.
    moved = pl.concat([scores.with_columns(pl.col("position") + shift), scores])
    moved.unique([*key, "position"], keep="first", maintain_order=True).write_parquet(tmp_path / "s.parquet")
    refused = built(hg19_windows, tmp_path / "s.parquet", tmp_path / "out")
    assert refused.code == 3, refused.err
    assert re.search(rf"seem to be a position off: .* one position {side} them", refused.err)
    assert "count from 1" in refused.err
    assert not (tmp_path / "out").exists()


def test_sites_of_other_genes_among_the_negatives_are_counted(
    hg19_windows: Path, plain: tuple[Path, list[str]], manifest: pl.DataFrame, tmp_path: Path
) -> None:
    table = pl.read_parquet(plain[0] / "positions-*.parquet").filter(pl.col("splice_type") != "neither")
    sites = table.select("gene_id", "chrom", "strand", "position")
    inside = manifest.join(sites, on=["chrom", "strand"], suffix="_site").filter(
        pl.col("position").is_between("start", "end")
    )
    other = inside.join(sites, on=["gene_id", "position"], how="anti").unique(["gene_id", "position"])
    assert other.height
    expected = (
        f"{other.height} position(s) in {other['gene_id'].n_unique()} of 37 gene(s) are a splice site of another gene"
    )
    (said,) = [w for w in plain[1] if "splice site" in w]
    assert said.startswith(expected)
    assert "left out" not in said
    done = built(
        hg19_windows, hg19_windows / "base_scores.parquet", tmp_path / "out", "--sites", "canonical",
    )  # fmt: skip
    (said,) = [w for w in warnings_of(tmp_path / "out", done) if "splice site" in w]
    assert "or of a transcript left out" in said
    canonical = pl.read_csv(tmp_path / "out/gene_manifest.csv")["sites"].sum()
    assert int(said.split()[0]) >= manifest["sites"].sum() - canonical > 0


def organelle(folder: Path) -> tuple[Path, Path]:
    """Genes of one intron each, GT to AC, on one contig; and one exon without a strand."""
    unit = "A" * 20 + "GT" + "A" * 30 + "AC" + "A" * 20
    (folder / "g.fa").write_text(f">M\n{unit * 50}\n")
    lines = []
    for i in range(50):
        own = f'gene_id "G{i}"; transcript_id "T{i}";'
        spans = ((1, 20), (55, 74))
        lines += [f"M\tx\texon\t{i * 74 + a}\t{i * 74 + b}\t.\t+\t.\t{own}\n" for a, b in spans]
    lines.append('M\tx\texon\t5\t9\t.\t.\t.\tgene_id "X"; transcript_id "X";\n')
    (folder / "a.gtf").write_text("".join(lines))
    return folder / "g.fa", folder / "a.gtf"


def test_introns_of_organelles_and_exons_without_a_strand_do_not_stop_it(tmp_path: Path) -> None:
    genome, annotation = organelle(tmp_path)
    words = ("build-dataset", "--quiet", "--workers", "1", "--base-model", "pwm", genome, annotation, tmp_path / "out")
    done = start(*words)
    (said,) = warnings_of(tmp_path / "out", done)
    assert "only 0 of 50 acceptors looked at on M have AG" in said
    assert "left out: 1 transcript(s) of one exon without a strand" in done.err
    assert pl.read_csv(tmp_path / "out/gene_manifest.csv").height == 50


def test_memory_that_cannot_be_had_is_the_budgets_exit_code(hg19_windows: Path, tmp_path: Path) -> None:
    refused = built(
        hg19_windows, hg19_windows / "base_scores.parquet", tmp_path / "out", "--nucleotides", "1000000000000000"
    )
    assert refused.code == 4, refused.err
    assert "memory ran out: Unable to allocate" in refused.err
    assert "Traceback" not in refused.err
    assert not (tmp_path / "out").exists()


def test_no_more_workers_than_memory_holds(tmp_path: Path) -> None:
    if cpu_count() == 1:
        pytest.skip("one worker at most")
    genome, annotation = organelle(tmp_path)
    words = ("build-dataset", "--base-model", "pwm", genome, annotation, tmp_path / "out")
    done = succeed(*words, env={"SLURM_MEM_PER_NODE": "1200"})
    assert re.search(r"1 worker\(s\) on \d+ CPUs: at 512 MiB each .*SLURM_MEM_PER_NODE", done.err)
