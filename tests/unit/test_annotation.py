"""Genes and splice sites are those that the annotation says, whichever format, order or damage it has."""

from __future__ import annotations

import gzip
import itertools
import logging
import random
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.building import annotation_lines
from metabatch.building.annotation import read_annotation
from metabatch.building.genes import Gene, with_loci
from metabatch.errors import InputError
from tests.conftest import DEMO


def write(path: Path, *lines: str, packed: bool = False) -> Path:
    data = ("\n".join(lines) + "\n").encode()
    path.write_bytes(gzip.compress(data) if packed else data)
    return path


def exon(start: int, end: int, *, gene: str = "G", transcript: str = "T", chrom: str = "1", strand: str = "+",
         feature: str = "exon", more: str = "") -> str:  # fmt: skip
    attributes = f'gene_id "{gene}"; transcript_id "{transcript}";{more}'
    return f"{chrom}\tsource\t{feature}\t{start}\t{end}\t.\t{strand}\t.\t{attributes}"


def gff(feature: str, start: int, end: int, attributes: str, *, chrom: str = "1", strand: str = "+") -> str:
    return f"{chrom}\tsource\t{feature}\t{start}\t{end}\t.\t{strand}\t.\t{attributes}"


def text_of(path: Path) -> list[str]:
    return gzip.decompress(path.read_bytes()).decode().splitlines()


def told(gene: Gene) -> tuple[Any, ...]:
    return (
        gene.gene_id, gene.name, gene.type, gene.chrom, gene.strand, gene.start, gene.end,
        gene.donors.tolist(), gene.acceptors.tolist(), gene.locus_id,
    )  # fmt: skip


def sites_of(gene: Gene) -> tuple[list[int], list[int]]:
    """Genomic positions."""
    return gene.positions(gene.donors).tolist(), gene.positions(gene.acceptors).tolist()


def one(path: Path, sites: Any = "all") -> Gene:
    (gene,) = read_annotation(path, sites=sites)
    return gene


# -- real annotations --------------------------------------------------------------------------------------------------


def test_human_sites_are_those_of_the_shipped_table(hg19_windows: Path) -> None:
    genes = with_loci(read_annotation(hg19_windows / "annotation.gtf.gz", sites="all"))
    assert len(genes) == 37
    assert sum(gene.length for gene in genes) == 2_586_653
    assert (sum(g.donors.size for g in genes), sum(g.acceptors.size for g in genes)) == (413, 394)
    demo = pl.concat(
        pl.read_parquet(f, columns=["gene_id", "gene_name", "locus_id", "strand", "position", "splice_type"])
        for f in sorted(DEMO.glob("*.parquet"))
    )
    expected = {tuple(row) for row in demo.filter(pl.col("splice_type") != "neither")
                .select("gene_id", "strand", "position", "splice_type").iter_rows()}  # fmt: skip
    found = {
        (g.gene_id, g.strand, position, kind)
        for g in genes
        for kind, index in (("donor", g.donors), ("acceptor", g.acceptors))
        for position in g.positions(index).tolist()
    }
    assert found == expected
    assert {(g.gene_id, g.name) for g in genes} == set(demo.select("gene_id", "gene_name").unique().iter_rows())
    loci, their_loci = defaultdict(set), defaultdict(set)
    for gene in genes:
        loci[gene.locus_id].add(gene.gene_id)
    for name, locus in demo.select("gene_id", "locus_id").unique().iter_rows():
        their_loci[locus].add(name)
    assert sorted(map(sorted, loci.values())) == sorted(map(sorted, their_loci.values()))
    assert len(loci) == 26


def test_worm_sites_are_the_ends_of_its_introns(worm: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        genes = read_annotation(worm / "annotation.gff3.gz", sites="all")
    # By hand: exons of each transcript that has a line of its own.
    exons: dict[str, list[tuple[int, int]]] = defaultdict(list)
    place: dict[str, tuple[str, str]] = {}
    known: set[str] = set()
    for line in text_of(worm / "annotation.gff3.gz"):
        if line.startswith("#"):
            continue
        chrom, _, feature, start, end, _, strand, _, text = line.split("\t")
        attributes = dict(part.split("=", 1) for part in text.split(";") if part)
        known.add(attributes.get("ID", ""))
        for parent in attributes.get("Parent", "").split(",") if feature == "exon" else ():
            exons[parent].append((int(start), int(end)))
            place[parent] = (chrom, strand)
    left, right = set(), set()
    for transcript, chain in exons.items():
        chain.sort()
        for (_, end), (start, _) in itertools.pairwise(chain) if transcript in known else ():
            left.add((*place[transcript], end))
            right.add((*place[transcript], start))
    donors = {x for x in left if x[1] == "+"} | {x for x in right if x[1] == "-"}
    acceptors = {x for x in right if x[1] == "+"} | {x for x in left if x[1] == "-"}
    found = [{(g.chrom, g.strand, p) for g in genes for p in sites_of(g)[i]} for i in (0, 1)]
    assert not donors & acceptors
    assert found == [donors, acceptors]
    assert len(genes) == 259
    assert sum(g.type == "protein_coding" for g in genes) == 154
    assert {g.gene_id[:6] for g in genes} == {"WBGene"}
    assert next(g.name for g in genes if g.gene_id == "WBGene00022277") == "WBGene00022277"
    assert "44 exon line(s) whose gene is not known, of 7 parent(s)" in caplog.text
    assert "2 gene(s) without a line of their own are made from their exons: WBGene00017080" in caplog.text


def test_gtf_and_gff3_of_the_same_genes_agree(hg19_windows: Path, tmp_path: Path) -> None:
    lines = ["##gff-version 3"]
    for line in text_of(hg19_windows / "annotation.gtf.gz"):
        if line.startswith("#"):
            continue
        *fields, text = line.split("\t")
        a = {key: value.strip('"') for key, value in (part.split(" ", 1) for part in text.strip("; ").split("; "))}
        gene = f"gene:{a['gene_id']}"
        attributes = {
            "gene": f"ID={gene};Name={a['gene_name']};biotype={a['gene_biotype']}",
            "transcript": f"ID=transcript:{a.get('transcript_id')};Parent={gene}",
            "exon": f"Parent=transcript:{a.get('transcript_id')}",
        }[fields[2]]
        lines.append(
            "\t".join([*fields[:2], {"transcript": "mRNA"}.get(fields[2], fields[2]), *fields[3:], attributes])
        )
    other = write(tmp_path / "a.gff3", *lines)
    for sites in ("all", "canonical"):
        genes = [told(g) for g in read_annotation(hg19_windows / "annotation.gtf.gz", sites=sites)]
        assert [told(g) for g in read_annotation(other, sites=sites)] == genes


@pytest.mark.parametrize("folder", ["hg19_windows", "worm"])
@pytest.mark.parametrize("sites", ["all", "canonical"])
def test_neither_blocks_nor_the_order_of_lines_nor_line_ends_matter(
    folder: str, sites: Any, request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (source,) = request.getfixturevalue(folder).glob("annotation.*")
    expected = [told(g) for g in read_annotation(source, sites=sites)]
    head, *lines = text_of(source)
    random.Random(1).shuffle(lines)
    shuffled = tmp_path / "shuffled"
    shuffled.write_bytes("\r\n".join([head, *lines]).encode())  # and without an end to the last line
    monkeypatch.setattr(annotation_lines, "BLOCK", 50_001)
    assert [told(g) for g in read_annotation(shuffled, sites=sites)] == expected


def test_reading_can_be_stopped_between_blocks(worm: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotation_lines, "BLOCK", 500_001)
    calls: list[int] = []

    def stop() -> None:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        read_annotation(worm / "annotation.gff3.gz", sites="all", stop=stop)
    assert len(calls) == 3


# -- rules -------------------------------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    transcripts=st.lists(
        st.lists(st.tuples(st.integers(1, 12), st.integers(1, 12)), min_size=1, max_size=6), min_size=1, max_size=5
    ),
    starts=st.lists(st.integers(1, 40), min_size=5, max_size=5),
    strand=st.sampled_from("+-"),
)
def test_sites_follow_from_the_chains_of_exons(
    transcripts: list[list[tuple[int, int]]], starts: list[int], strand: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines, left, right, ends = [], set(), set(), []
    for number, (chain, first) in enumerate(zip(transcripts, starts, strict=False)):
        exons, position = [], first
        for size, gap in chain:
            exons.append((position, position + size - 1))
            position += size + gap
        lines += [exon(*e, transcript=f"T{number}", strand=strand) for e in exons]
        left |= {end for _, end in exons[:-1]}
        right |= {start for start, _ in exons[1:]}
        ends += [x for e in exons for x in e]
    donors, acceptors = (left, right) if strand == "+" else (right, left)
    both = donors & acceptors
    gene = one(write(tmp_path_factory.mktemp("a") / "a.gtf", *lines))
    assert (gene.start, gene.end) == (min(ends), max(ends))
    found = sites_of(gene)
    assert (set(found[0]), set(found[1])) == (donors - both, acceptors - both)
    for index in (gene.donors, gene.acceptors):
        assert index.dtype == np.int64
        assert (np.diff(index) > 0).all()
        assert ((index >= 0) & (index < gene.length)).all()
        assert (gene.index(gene.positions(index)) == index).all()
    labels = gene.labels()
    assert labels.dtype == np.uint8
    assert labels.size == gene.length
    assert (np.flatnonzero(labels == 1).tolist(), np.flatnonzero(labels == 2).tolist()) == (
        gene.donors.tolist(), gene.acceptors.tolist(),
    )  # fmt: skip


CANONICAL = [
    # (tag of the short transcript, tag of the long one, which is taken)
    ("", "", "long"),
    (' tag "basic";', "", "short"),
    (' tag "basic"; tag "Ensembl_canonical";', ' tag "basic";', "short"),
    (' tag "MANE_Select";', ' tag "Ensembl_canonical";', "short"),
    (' tag "MANE Select";', "", "short"),
    (' tag "MANE_Plus_Clinical";', "", "long"),
]


@pytest.mark.parametrize(("short", "long", "taken"), CANONICAL)
@pytest.mark.parametrize("on", ["transcript", "exon"])
def test_canonical_is_the_tagged_transcript_else_the_one_with_most_exonic_nt(
    short: str, long: str, taken: str, on: str, tmp_path: Path
) -> None:
    def lines(name: str, end: int, tag: str) -> list[str]:
        of = {"transcript": tag if on == "transcript" else "", "exon": tag if on == "exon" else ""}
        return [
            exon(1, end, transcript=name, feature="transcript", more=of["transcript"]),
            exon(1, 10, transcript=name, more=of["exon"]),
            exon(21, 30, transcript=name, more=of["exon"]),
            exon(51, end, transcript=name, more=of["exon"]),
        ]

    path = write(tmp_path / "a.gtf", *lines("short", 60, short), *lines("long", 70, long),
                 exon(33, 40, transcript=taken))  # fmt: skip
    gene = one(path, "canonical")
    assert sites_of(gene)[0] == [10, 30, 40]
    assert gene.end == 70, "the gene spans all its transcripts"
    assert sites_of(one(path))[0] == [10, 30, 40]


def test_canonical_of_gff3_reads_its_tags(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.gff3",
        gff("gene", 1, 90, "ID=gene-A;gene=A"),
        gff("mRNA", 1, 90, "ID=rna-long;Parent=gene-A"),
        gff("exon", 1, 20, "Parent=rna-long"),
        gff("exon", 41, 90, "Parent=rna-long"),
        gff("mRNA", 1, 60, "ID=rna-short;Parent=gene-A;tag=basic,Ensembl_canonical"),
        gff("exon", 1, 10, "Parent=rna-short"),
        gff("exon", 51, 60, "Parent=rna-short"),
    )
    gene = one(path, "canonical")
    assert sites_of(gene) == ([10], [51])
    assert (gene.gene_id, gene.name, gene.end) == ("A", "A", 90)


def test_positions_that_are_donor_and_acceptor_are_neither(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.gtf", exon(1, 10), exon(20, 20), exon(31, 40))
    gene = one(path)
    assert sites_of(gene) == ([10], [31])
    assert "1 position(s) are donor and acceptor" in caplog.text


def test_exons_that_touch_or_overlap_have_no_intron_between(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "a.gtf", exon(1, 10), exon(11, 20), exon(18, 25), exon(2, 5), exon(31, 40), exon(31, 40))
    assert sites_of(one(path)) == ([25], [31])
    assert "3 exon(s) touch or overlap another" in caplog.text


def test_a_gene_spans_its_line_and_its_exons(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    line = exon(5, 100, feature="gene", more=' gene_name "N"; gene_type "T";')
    gene = one(write(tmp_path / "a.gtf", line, exon(3, 10), exon(20, 50)))
    assert (gene.start, gene.end, gene.name, gene.type) == (3, 100, "N", "T")
    assert "1 gene(s) have exons beyond their gene line" in caplog.text


def test_genes_without_a_gene_line_are_made_from_their_exons(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gtf", exon(3, 10, strand="-", more=' gene_name "N"; gene_biotype "B";'),
                 exon(20, 50, strand="-"))  # fmt: skip
    gene = one(path)
    assert (gene.start, gene.end, gene.name, gene.type) == (3, 50, "N", "B")
    assert sites_of(gene) == ([20], [10])
    assert (gene.donors.tolist(), gene.acceptors.tolist()) == ([30], [40])


def test_an_id_on_two_contigs_is_two_genes(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [
        exon(s, e, chrom=c, feature=f)
        for c in ("Y", "X")
        for f, s, e in (("gene", 1, 40), ("exon", 1, 10), ("exon", 31, 40))
    ]
    genes = read_annotation(write(tmp_path / "a.gtf", *lines), sites="all")
    assert [(g.gene_id, g.chrom, g.name, g.donors.tolist()) for g in genes] == [
        ("G", "X", "G", [9]),
        ("G@Y+", "Y", "G", [9]),
    ]
    assert "1 gene(s) have an id that comes on several contigs" in caplog.text


def test_several_lines_of_a_gene_are_one_gene(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    lines = [exon(1, 40, feature="gene"), exon(1, 40, feature="gene"), exon(30, 60, feature="gene")]
    gene = one(write(tmp_path / "a.gtf", *lines, exon(1, 10), exon(31, 40)))
    assert (gene.start, gene.end) == (1, 60)
    assert "1 gene(s) have several lines" in caplog.text


@pytest.mark.parametrize("kind", ["gtf", "gff3"])
def test_gene_lines_without_exons_are_left_out_and_counted(
    kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = exon(1, 40, gene="bare", feature="gene") if kind == "gtf" else gff("ncRNA_gene", 1, 40, "ID=gene:bare")
    rest = [exon(1, 9)] if kind == "gtf" else [gff("gene", 1, 9, "ID=G"), gff("exon", 1, 9, "Parent=G")]
    assert one(write(tmp_path / "a", bare, *rest)).gene_id == "G"
    assert "left out: 1 gene line(s) without an exon" in caplog.text


def test_gff3_parents_are_followed_to_the_gene(tmp_path: Path) -> None:
    path = write(
        tmp_path / "a.gff3",
        "##gff-version 3",
        gff("exon", 1, 10, "ID=e1;Parent=mRNA:a,mRNA:b"),
        gff("pseudogenic_exon", 21, 30, "Parent=mRNA:b"),
        gff("exon", 31, 40, "Parent=miRNA:c"),
        gff("miRNA", 1, 40, "ID=miRNA:c;Parent=primary:c"),
        gff("primary_transcript", 1, 40, "ID=primary:c;Parent=Gene:G%3B1"),
        gff("mRNA", 1, 10, "ID=mRNA:a;Parent=Gene:G%3B1"),
        gff("mRNA", 1, 30, "ID=mRNA:b;Parent=Gene:G%3B1"),
        gff("gene", 1, 40, "ID=Gene:G%3B1;Name=a%2Cb;biotype=kind"),
        gff("CDS", 1, 10, "ID=cds;Parent=mRNA:a"),
        gff("pseudogene", 101, 130, "ID=Gene:P"),
        gff("exon", 101, 110, "Parent=Gene:P"),
        gff("exon", 121, 130, "Parent=Gene:P"),
        "##FASTA",
        ">1",
        "ACGT",
    )
    genes = read_annotation(path, sites="all")
    assert [(g.gene_id, g.name, g.type, sites_of(g)) for g in genes] == [
        ("G;1", "a,b", "kind", ([10], [21])),
        ("P", "P", "pseudogene", ([110], [121])),
    ]


def test_a_circle_of_parents_is_no_gene(tmp_path: Path) -> None:
    lines = [gff("mRNA", 1, 9, "ID=a;Parent=b"), gff("mRNA", 1, 9, "ID=b;Parent=a"), gff("exon", 1, 9, "Parent=a")]
    with pytest.raises(InputError, match="no exon of a belongs to a gene"):
        read_annotation(write(tmp_path / "a", *lines), sites="all")


def test_loci_are_connected_over_both_strands() -> None:
    def gene(name: str, chrom: str, start: int, end: int, strand: str = "+") -> Gene:
        none = np.array([], dtype=np.int64)
        return Gene(name, name, "", chrom, strand, start, end, none, none)

    genes = [gene("d", "2", 1, 5), gene("c", "1", 31, 40), gene("b", "1", 8, 30, "-"), gene("a", "1", 1, 10),
             gene("e", "1", 2, 3)]  # fmt: skip
    assert [(g.gene_id, g.locus_id) for g in with_loci(genes)] == [
        ("a", "1:1-30"), ("e", "1:1-30"), ("b", "1:1-30"), ("c", "1:31-40"), ("d", "2:1-5"),
    ]  # fmt: skip
    assert with_loci([]) == []


def test_single_exons_without_a_strand_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    lines = [
        exon(1, 9), exon(21, 29), exon(3, 8, transcript="U", strand="."),
        exon(3, 8, gene="H", transcript="V", strand="?"), exon(41, 50, transcript="W"),
    ]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        gene = one(write(tmp_path / "a.gtf", *lines))
    assert (gene.gene_id, gene.start, gene.end, sites_of(gene)) == ("G", 1, 50, ([9], [21]))
    assert "left out: 2 transcript(s) of one exon without a strand, the first in line 3" in caplog.text
    parents = [gff("gene", 1, 50, "ID=G"), gff("mRNA", 1, 50, "ID=T;Parent=G"), gff("ncRNA", 3, 8, "ID=U;Parent=G")]
    exons = [gff("exon", 1, 9, "Parent=T"), gff("exon", 21, 29, "Parent=T"), gff("exon", 3, 8, "Parent=U", strand=".")]
    gene = one(write(tmp_path / "a.gff3", *parents, *exons))
    assert (gene.gene_id, gene.start, gene.end, sites_of(gene)) == ("G", 1, 50, ([9], [21]))


@pytest.mark.parametrize("strand", ["+", "-"])
def test_sites_of_transcripts_left_out_are_known(strand: str, tmp_path: Path) -> None:
    first = [exon(*e, strand=strand, more=' tag "MANE_Select";') for e in ((1, 9), (21, 40), (51, 60))]
    second = [exon(*e, strand=strand, transcript="U") for e in ((1, 9), (25, 40), (51, 60))]
    path = write(tmp_path / "a.gtf", *first, *second)
    gene, whole = one(path, "canonical"), one(path)
    assert gene.positions(gene.skipped).tolist() == [25]
    assert whole.skipped.tolist() == []
    assert sorted(whole.donors.tolist() + whole.acceptors.tolist()) == sorted(
        gene.donors.tolist() + gene.acceptors.tolist() + gene.skipped.tolist()
    )


# -- damage ------------------------------------------------------------------------------------------------------------

DAMAGE = {
    "empty": ([], "no annotation lines"),
    "only comments": (["# nothing", ""], "no annotation lines"),
    "a FASTA file": ([">chr1", "ACGT"], "no annotation lines"),
    "a table": (["a,b,c"], "line 1 does not have nine columns"),
    "cut line": ([exon(1, 9), exon(1, 9)[:20]], "line 2 does not have nine columns"),
    "no number": (["# c", exon(1, 9), exon(1, 9).replace("\t9\t", "\tx\t")], "line 3 has a start or end that is no"),
    "from 0": ([exon(0, 9)], "line 1 has a start or end that is no position"),
    "backwards": ([exon(1, 9), exon(9, 1)], "line 2 starts after its end"),
    "no strand": ([exon(1, 9), exon(1, 9, strand=".")], "line 2 is an exon without a strand"),
    "no strands": (
        [exon(1, 9, transcript="U"), exon(1, 9, strand="?"), exon(21, 29, strand="?")],
        "line 2 is an exon without a strand, of the transcript T of several exons",
    ),
    "no strand at all": ([exon(1, 9, strand=".")], "no exon of annotation has a strand"),
    "no gene": ([exon(1, 9), exon(1, 9, gene="")], "the exon in line 2 has no gene_id"),
    "no transcript": ([exon(1, 9).replace("transcript_id", "x")], "the exon in line 1 has no gene_id or no transcript"),
    "neither format": ([gff("exon", 1, 9, "nothing")], "neither GTF nor GFF3"),
    "no exon": ([exon(1, 9, feature="CDS"), exon(1, 9, feature="gene")], "has no exon lines"),
    "orphans": ([gff("exon", 1, 9, "Parent=nowhere")], "no exon of annotation belongs to a gene"),
    "two of a name": (
        [exon(1, 9, chrom="X"), exon(1, 9, chrom="Y"), exon(1, 9, gene="G@Y+")], "two genes would be called G@Y+",
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("packed", [False, True])
def test_damage_is_named_with_its_line(what: str, packed: bool, tmp_path: Path) -> None:
    lines, message = DAMAGE[what]
    path = write(tmp_path / "annotation", *lines, packed=packed)
    with pytest.raises(InputError, match=message) as error:
        read_annotation(path, sites="all")
    assert str(path) in str(error.value)


def test_a_truncated_or_missing_file_is_refused(hg19_windows: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gtf.gz"
    cut.write_bytes((hg19_windows / "annotation.gtf.gz").read_bytes()[:4000])
    with pytest.raises(InputError, match=r"cut\.gtf\.gz is damaged"):
        read_annotation(cut, sites="all")
    with pytest.raises(InputError, match="does not exist"):
        read_annotation(tmp_path / "none", sites="all")
