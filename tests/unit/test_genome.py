"""Sequence comes from the right place and strand, and a genome that the annotation is not of is refused."""

from __future__ import annotations

import gzip
import itertools
import pickle
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from metabatch.building import copies
from metabatch.building.annotation import read_annotation
from metabatch.building.genes import Gene
from metabatch.building.genome import Genome
from metabatch.errors import BudgetError, InputError
from tests.conftest import at_work, wait_for

LETTERS = np.frombuffer(b"ACGTN", dtype=np.uint8)
OTHER_STRAND = str.maketrans("ACGT", "TGCA")


def sequences(fasta: Path) -> dict[str, str]:
    """All of it, by hand."""
    text = gzip.decompress(fasta.read_bytes()).decode()
    records = (record.split("\n", 1) for record in text.split(">")[1:])
    return {name.split()[0]: lines.replace("\n", "").upper() for name, lines in records}


def gene(start: int, end: int, *, chrom: str = "c", strand: str = "+", donors: tuple[int, ...] = ()) -> Gene:
    sites = np.array(donors, dtype=np.int64)
    return Gene("G", "G", "", chrom, strand, start, end, sites, np.array([], dtype=np.int64))


def read(genome: Genome, wanted: Gene, flank: int = 0) -> str:
    codes = genome.codes(wanted, flank)
    assert codes.dtype == np.uint8
    assert codes.shape == (wanted.length + 2 * flank,)
    return LETTERS[codes].tobytes().decode()


@pytest.mark.parametrize(
    ("folder", "donors", "acceptors"),
    [
        ("hg19_windows", {"GT": 409, "GC": 3, "GG": 1}, {"AG": 394}),
        ("worm", {"GT": 926, "GC": 6}, {"AG": 940}),
    ],
)
def test_sites_have_the_consensus(
    folder: str, donors: dict[str, int], acceptors: dict[str, int], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    place = request.getfixturevalue(folder)
    (annotation,) = place.glob("annotation.*")
    genome, genes = Genome(place / "genome.fa.gz", tmp_path), read_annotation(annotation, sites="all")
    genome.check(genes, annotation.name)
    after, before = Counter[str](), Counter[str]()
    for one in genes:
        letters = read(genome, one, 2)
        after.update(letters[i + 3 : i + 5] for i in one.donors)
        before.update(letters[i : i + 2] for i in one.acceptors)
    assert {pair: after[pair] for pair in donors} == donors
    assert {pair: before[pair] for pair in acceptors} == acceptors
    assert after["GT"] > 0.98 * after.total()
    assert before["AG"] > 0.98 * before.total()


def test_codes_are_the_sequence_on_the_transcript_strand(worm: Path, tmp_path: Path) -> None:
    genome, text = Genome(worm / "genome.fa.gz", tmp_path), sequences(worm / "genome.fa.gz")
    assert genome.contigs == {name: len(letters) for name, letters in text.items()}
    flank = 5000  # beyond the end of some contigs, and of all of MtDNA
    genes = [*read_annotation(worm / "annotation.gff3.gz", sites="all"), gene(1, 137, chrom="MtDNA", strand="-")]
    assert any(one.start <= flank for one in genes)
    assert any(one.end + flank > len(text[one.chrom]) for one in genes)
    for one in genes:
        padded = "N" * flank + text[one.chrom] + "N" * flank
        expected = padded[one.start - 1 : one.end + 2 * flank]
        assert read(genome, one, flank) == (expected if one.strand == "+" else expected[::-1].translate(OTHER_STRAND))


def test_plain_and_packed_genomes_are_the_same_and_nothing_is_written_beside_them(worm: Path, tmp_path: Path) -> None:
    text = gzip.decompress((worm / "genome.fa.gz").read_bytes())
    half = len(text) // 2
    for name, data in {
        "plain.fa": text,
        "crlf.fa": text.replace(b"\n", b"\r\n"),
        "lower.fa": b"".join(x if x.startswith(b">") else x.lower() for x in text.splitlines(keepends=True)),
        "members.fa.gz": gzip.compress(text[:half]) + gzip.compress(text[half:]),  # as bgzip writes them
    }.items():
        (tmp_path / name).write_bytes(data)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    before = sorted(tmp_path.iterdir())
    wanted = [gene(1000, 30_000, chrom="II", strand=strand) for strand in "+-"]
    expected = [read(Genome(worm / "genome.fa.gz", scratch), one, 50) for one in wanted]
    for path in before:
        if path.is_file():
            genome = Genome(path, scratch)
            for opened in (genome, pickle.loads(pickle.dumps(genome))):  # as a worker gets it
                assert [read(opened, one, 50) for one in wanted] == expected, path.name
    assert sorted(tmp_path.iterdir()) == before
    assert not [path for path in scratch.iterdir() if path.is_dir()]


def test_a_changed_genome_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "g.fa"
    path.write_text(">c x\nACGTN\n")
    assert read(Genome(path, tmp_path), gene(1, 5)) == "ACGTN"
    path.write_text(">c x\nTTRYK\nacg\n")
    assert read(Genome(path, tmp_path), gene(1, 8)) == "TTNNNACG"
    path.write_text(">c x\nTTRYK\nacg\n>d\nGG\n")
    assert Genome(path, tmp_path).contigs == {"c": 8, "d": 2}


def test_other_names_of_contigs_are_recognised(worm: Path, tmp_path: Path) -> None:
    genes = read_annotation(worm / "annotation.gff3.gz", sites="all")
    genome = Genome(worm / "genome.fa.gz", tmp_path)
    with pytest.raises(InputError, match=r"259 gene\(s\) lie on 7 contig\(s\) that the genome does not have") as error:
        genome.check([replace(one, chrom=f"chr{one.chrom}") for one in genes], "a.gff3")
    assert "the genome calls chrI I" in str(error.value)
    with pytest.raises(InputError, match=r"1 gene\(s\) lie on 1 contig") as error:
        genome.check([*genes[1:], replace(genes[0], chrom="VII")], "a.gff3")
    assert "VII" in error.value.found
    assert "I, II, III, IV, V" in str(error.value)


def test_a_gene_beyond_the_end_of_its_contig_is_refused(worm: Path, tmp_path: Path) -> None:
    genome = Genome(worm / "genome.fa.gz", tmp_path)
    genome.check([gene(1, 137, chrom="MtDNA")], "a")
    with pytest.raises(InputError, match=r"1 gene\(s\) end beyond their contig, the first G at MtDNA:1-138") as error:
        genome.check([gene(1, 138, chrom="MtDNA")], "a")
    assert "at most 137" in str(error.value)


def test_another_build_is_refused_even_of_one_contig(hg19_windows: Path, tmp_path: Path) -> None:
    genes = read_annotation(hg19_windows / "annotation.gtf.gz", sites="all")
    genome = Genome(hg19_windows / "genome.fa.gz", tmp_path)
    moved = [replace(x, start=x.start - 7, end=x.end - 7) if x.chrom == "chr4_103M" else x for x in genes]
    with pytest.raises(InputError, match=r"only \d+ of \d+ splice sites looked at on chr4_103M have GT") as error:
        genome.check(moved, "a.gtf")
    assert "a.gtf" in str(error.value)
    other_strand = [replace(x, strand="-" if x.strand == "+" else "+") for x in genes]
    with pytest.raises(InputError, match="splice sites looked at on chr3_42M"):
        genome.check(other_strand, "a.gtf")


def few_sites(contigs: int, spoiled: int) -> tuple[str, list[Gene]]:
    """A genome of contigs with one intron each, GT to AG, and its genes; of some of them at a wrong place."""
    letters = "A" * 20 + "GT" + "A" * 30 + "AG" + "A" * 20
    none = np.array([], dtype=np.int64)
    genes = [gene(1, 74, chrom=f"s{i}") for i in range(contigs)]
    at = [22 if i < spoiled else 19 for i in range(contigs)]
    sites = [(np.array([x]), np.array([x + 35])) for x in at]
    found = [replace(g, donors=d, acceptors=a) for g, (d, a) in zip(genes, sites, strict=True)]
    text = "".join(f">s{i}\n{letters}\n" for i in range(contigs + 1))
    return text, [*found, replace(genes[0], chrom=f"s{contigs}", donors=none)]


@pytest.mark.parametrize(
    ("contigs", "spoiled", "refused"), [(15, 15, True), (15, 8, True), (15, 7, False), (9, 9, False)]
)
def test_contigs_of_few_sites_are_judged_together(contigs: int, spoiled: int, refused: bool, tmp_path: Path) -> None:
    text, genes = few_sites(contigs, spoiled)
    (tmp_path / "g.fa").write_text(text)
    genome = Genome(tmp_path / "g.fa", tmp_path)
    if not refused:  # most are right; or too few sites to tell
        genome.check(genes, "a.gtf")
        return
    said = (
        rf"only {2 * (contigs - spoiled)} of {2 * contigs} splice sites looked at on {contigs + 1} contig\(s\) of few"
    )
    with pytest.raises(InputError, match=said):
        genome.check(genes, "a.gtf")


@pytest.mark.parametrize("letters", ["AC", "AT"])
def test_introns_that_do_not_end_with_ag_are_told_and_not_refused(letters: str, tmp_path: Path) -> None:
    """As group II introns of organelles."""
    text, genes = few_sites(15, 0)
    (tmp_path / "g.fa").write_text(text.replace("AG" + "A" * 20, letters + "A" * 20))
    (said,) = Genome(tmp_path / "g.fa", tmp_path).check(genes, "a.gtf")
    assert "only 0 of 15 acceptors looked at on 16 contig(s) of few sites" in said
    assert Genome(tmp_path / "g.fa", tmp_path).check(few_sites(15, 0)[1][:3], "a.gtf") == []


def test_positions_beyond_32_bits_are_refused(tmp_path: Path) -> None:
    (tmp_path / "g.fa").write_text(">c\nACGT\n")
    genome = Genome(tmp_path / "g.fa", tmp_path)
    genome.contigs["c"] = 3_000_000_000  # such a file would fill the disk
    genome.check([gene(2_147_483_600, 2_147_483_647)], "a")
    with pytest.raises(InputError, match=r"1 gene\(s\) end beyond position 2,147,483,647 of their contig, the first G"):
        genome.check([gene(2_147_483_600, 2_147_483_648)], "a")


def test_a_draft_genome_is_checked_in_time_that_goes_with_its_genes(tmp_path: Path) -> None:
    contigs = 12_000
    text, genes = few_sites(contigs, 0)
    (tmp_path / "g.fa").write_text(text)
    genome = Genome(tmp_path / "g.fa", tmp_path)

    def seconds(number: int) -> float:
        begin = time.process_time()
        genome.check(genes[:number], "a.gtf")
        return time.process_time() - begin

    seconds(100)
    # 16 times the contigs; one look at all genes for each of them would take 256 times as long.
    assert seconds(contigs) < 64 * max(seconds(contigs // 16), 0.002)


class Stop(Exception):  # noqa: N818 (as a signal would raise it)
    pass


def stopper(calls: int) -> Callable[[], None]:
    """Raises when it is called more often."""
    left = itertools.count(calls, -1)

    def stop() -> None:
        if next(left) <= 0:
            raise Stop

    return stop


@pytest.mark.parametrize("packed", [False, True])
def test_unpacking_and_indexing_can_be_stopped_and_leave_nothing_behind(packed: bool, tmp_path: Path) -> None:
    data = b">c\n" + b"ACGTACGTAC\n" * 300_000
    path, scratch = tmp_path / "g.fa", tmp_path / "scratch"
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    scratch.mkdir()
    with pytest.raises(Stop):
        Genome(path, scratch, stopper(2))
    assert not list(scratch.iterdir())
    if packed:
        with pytest.raises(Stop):
            Genome(path, scratch, stopper(4 + 2))  # 4 pieces are unpacked, and then it is indexed
        assert [file.suffix for file in scratch.iterdir()] == [".fa"]
    genome = Genome(path, scratch, stopper(1000))
    assert read(pickle.loads(pickle.dumps(genome)), gene(1, 4)) == "ACGT"


def test_build_dataset_stops_before_the_genome_is_ready(tmp_path: Path) -> None:
    path, annotation, out = tmp_path / "g.fa.gz", tmp_path / "a.gtf", tmp_path / "out"
    lines = gzip.compress((b"ACGTACGTAC" * 6 + b"\n") * 60_000, 1)
    path.write_bytes(gzip.compress(b">c\n") + lines * 150)  # half a billion nt: seconds to unpack
    fields = 'gene_id "G"; transcript_id "T";'
    annotation.write_text("".join(f"other\tx\texon\t{s}\t{s + 9}\t.\t+\t.\t{fields}\n" for s in (1, 101)))
    work = at_work("build-dataset", "--base-model", "pwm", path, annotation, out)
    wait_for(out)
    work.terminate()
    # Not 3, as it would be at the end: the genome does not have the contig.
    assert work.wait(60) == 75
    assert not out.exists()


DAMAGE = {
    "empty": (b"", "cannot be read as FASTA"),
    "a table": (b"a,b\n1,2\n", "cannot be read as FASTA"),
    "a contig twice": (b">c\nACGT\n>d\nAC\n>c\nACGT\n", 'Duplicate key "c"'),
    "uneven lines": (b">c\nACGT\nAC\nACGT\n", "Line length of fasta"),
    "binary": (bytes(range(128, 256)) * 9, "cannot be read as FASTA"),
}


@pytest.mark.parametrize("what", DAMAGE)
@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_fasta_is_refused(what: str, packed: bool, tmp_path: Path) -> None:
    data, message = DAMAGE[what]
    path = tmp_path / "g"
    path.write_bytes(gzip.compress(data) if packed else data)
    with pytest.raises(InputError, match=message) as error:
        Genome(path, tmp_path)
    assert str(path) in str(error.value)


def test_a_truncated_genome_is_refused_and_leaves_nothing_behind(worm: Path, tmp_path: Path) -> None:
    path = tmp_path / "cut.fa.gz"
    path.write_bytes((worm / "genome.fa.gz").read_bytes()[:100_000])
    for _ in range(2):
        with pytest.raises(InputError, match=r"cut\.fa\.gz is damaged"):
            Genome(path, tmp_path)
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(InputError, match="does not exist"):
        Genome(tmp_path / "none.fa", tmp_path)


def test_space_is_looked_at_before_a_genome_is_unpacked(
    worm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = copies.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(copies.shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(BudgetError, match=r"unpacking genome\.fa\.gz takes about"):
        Genome(worm / "genome.fa.gz", tmp_path)
    assert not list(tmp_path.iterdir())
