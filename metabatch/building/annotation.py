"""Genes with their splice sites from a GTF or GFF3 annotation.

A donor is the last base of an exon, an acceptor the first, in transcript direction; the outer ends of a transcript are
neither. Coordinates are 1-based, both ends in the interval.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from metabatch.building.annotation_attributes import Tables, gff3_block, gff3_tables, gtf_block, gtf_tables
from metabatch.building.annotation_lines import EXONS, blocks, is_gff3
from metabatch.building.genes import Gene, Sites
from metabatch.errors import InputError

log = logging.getLogger(__name__)
# What tells one copy of a gene from another: an id may come on several contigs (pseudoautosomal, alternate haplotypes).
_COPY = ["gene", "chrom", "strand"]


def read_annotation(path: Path, *, sites: Sites, stop: Callable[[], None] = lambda: None) -> list[Gene]:
    """The genes of a GTF or GFF3 file (plain or gzip), sorted by (chrom, start, end, gene_id), without loci.

    Parameters
    ----------
    sites : {"all", "canonical"}
        Sites of all transcripts, or of one a gene: the best tagged (MANE Select, Ensembl canonical, RefSeq Select,
        basic), among these the one with the most exonic nt, then the first id.
    stop : callable
        Called between blocks of lines, and may raise.

    Notes
    -----
    * A gene spans its line and all its exons; without a line of its own, its exons.
    * A gene line without any exon is left out: its sites are not known.
    * Several lines of one id on one contig and strand are one gene over all of them. An id on several contigs or
      strands is as many genes; the first in the order of contig and strand keeps the id, the others get ``id@chrom+``.
    * Exons of a transcript that touch or overlap are one: between them is no intron.
    * A position that is both donor and acceptor is neither.
    * A transcript of one exon without a strand is left out.
    What was left out or put together is logged.

    Raises
    ------
    InputError
        Neither format, no exon, several exons of a transcript without a strand, a damaged line (named by its number), a
        truncated file.
    """
    tables = _read(path, stop)
    stop()
    if sites == "all":
        return _genes(tables, _sites(tables.exons), path)
    every = _sites(tables.exons, tell=False)
    every = every.select(*_COPY, every=pl.concat_list(_listed("donors"), _listed("acceptors")))
    return _genes(tables, _sites(_canonical(tables.exons)).join(every, on=_COPY, how="left"), path)


def _read(path: Path, stop: Callable[[], None]) -> Tables:
    kept: list[pl.DataFrame] = []
    gff3: bool | None = None
    for lines in blocks(path):
        stop()
        if lines.height:
            gff3 = is_gff3(lines, path) if gff3 is None else gff3
            kept.append((gff3_block if gff3 else gtf_block)(lines, path))
    if not kept:
        raise InputError(f"{path.name} has no annotation lines", expected="a GTF or GFF3 file", where=str(path))
    lines = pl.concat(kept)
    if not lines.filter(pl.col("feature").is_in(EXONS)).height:
        raise InputError(
            f"{path.name} has no exon lines",
            expected="exons: splice sites are their ends",
            where=str(path),
            next_step="take an annotation with exon lines",
        )
    tables = gff3_tables(lines) if gff3 else gtf_tables(lines)
    if not tables.exons.height:
        raise InputError(
            f"no exon of {path.name} belongs to a gene: their parents have no line of their own",
            expected="lines of transcripts and genes that the exons' Parent names",
            where=str(path),
        )
    return replace(tables, exons=_stranded(tables.exons, path))


def _stranded(exons: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Without transcripts of one exon that has no strand: they have no site. One of several exons cannot be read."""
    transcript = ["gene", "chrom", "transcript"]
    bare = exons.filter(~pl.col("strand").cast(pl.String).is_in(["+", "-"]))
    if not bare.height:
        return exons
    among = exons.join(bare.select(transcript).unique(), on=transcript, how="semi")
    several = among.group_by(transcript).agg(exons=pl.struct("start", "end", "strand").n_unique())
    several = several.filter(pl.col("exons") > 1)
    wrong = bare.join(several, on=transcript, how="semi").sort("line")
    if wrong.height:
        number, name = wrong["line"][0], wrong["transcript"].cast(pl.String)[0]
        raise InputError(
            f"line {number} is an exon without a strand, of the transcript {name} of several exons",
            expected="+ or -, which tells donors from acceptors",
            where=f"{path}, line {number}",
            next_step="correct the lines of the transcript or take them out",
        )
    left = exons.join(bare.select(transcript).unique(), on=transcript, how="anti")
    log.warning("left out: %d transcript(s) of one exon without a strand, the first in line %d",
                bare.select(transcript).n_unique(), bare["line"].min())  # fmt: skip
    if not left.height:
        raise InputError(f"no exon of {path.name} has a strand", expected="+ or -", where=str(path))
    return left


def _canonical(exons: pl.DataFrame) -> pl.DataFrame:
    """The exons of each gene's one transcript."""
    once = exons.unique([*_COPY, "transcript", "start", "end"])
    transcripts = once.group_by(*_COPY, "transcript").agg(pl.col("rank").max(), size=_size().sum())
    chosen = transcripts.sort("rank", "size", "transcript", descending=[True, True, False]).unique(
        _COPY, keep="first", maintain_order=True
    )
    return exons.join(chosen.select(*_COPY, "transcript"), on=[*_COPY, "transcript"])


def _listed(name: str) -> pl.Expr:
    return pl.col(name).fill_null(pl.lit([], dtype=pl.List(pl.Int64)))


def _size() -> pl.Expr:
    return pl.col("end") - pl.col("start") + 1


def _merged(exons: pl.DataFrame, *, tell: bool) -> pl.DataFrame:
    """Exons of each transcript in genomic order, those that touch or overlap put together."""
    transcript = [*_COPY, "transcript"]
    once = exons.unique([*transcript, "start", "end"]).sort(*transcript, "start", "end")
    reach = pl.col("end").cum_max().shift(1).over(transcript)
    once = once.with_columns(part=(pl.col("start") > reach + 1).fill_null(value=False).cum_sum().over(transcript))
    merged = (
        once.group_by(*transcript, "part").agg(pl.col("start").min(), pl.col("end").max()).sort(*transcript, "part")
    )
    if tell and merged.height < once.height:
        log.warning("%d exon(s) touch or overlap another of their transcript: taken as one exon each",
                    once.height - merged.height)  # fmt: skip
    return merged


def _sites(exons: pl.DataFrame, *, tell: bool = True) -> pl.DataFrame:
    """A row a copy of a gene: donors and acceptors, lists of genomic positions, ascending (null: none)."""
    exons = _merged(exons, tell=tell)
    transcript = [*_COPY, "transcript"]
    before = pl.col("end").shift(1).over(transcript)
    introns = exons.with_columns(left=before, right=pl.col("start")).filter(pl.col("left").is_not_null())
    plus = pl.col("strand") == "+"
    introns = introns.with_columns(
        donor=pl.when(plus).then("left").otherwise("right"), acceptor=pl.when(plus).then("right").otherwise("left")
    )
    donors = introns.select(*_COPY, position="donor").unique()
    acceptors = introns.select(*_COPY, position="acceptor").unique()
    key = [*_COPY, "position"]
    both = donors.join(acceptors, on=key, how="semi")
    if tell and both.height:
        log.warning("%d position(s) are donor and acceptor of the same gene: taken as neither", both.height)
    found = exons.select(_COPY).unique()
    for name, positions in (("donors", donors), ("acceptors", acceptors)):
        alone = positions.join(both, on=key, how="anti").sort(key)
        found = found.join(alone.group_by(_COPY).agg(pl.col("position").alias(name)), on=_COPY, how="left")
    return found


def _genes(tables: Tables, sites: pl.DataFrame, path: Path) -> list[Gene]:
    lines = tables.genes.filter(pl.col("chrom").is_not_null())
    spans = lines.group_by(_COPY).agg(pl.len(), first=pl.col("start").min(), last=pl.col("end").max())
    # The span is of all transcripts, whichever give the sites.
    exonic = tables.exons.group_by(_COPY).agg(pl.col("start").min(), pl.col("end").max())
    _tell(spans, exonic)
    # Name and type are the gene's, on whichever contig and strand: the first line that has one, in a fixed order.
    order = ["chrom", "strand", "start", "end", "name", "type"]
    named = tables.genes.sort(order, nulls_last=True).group_by("gene", maintain_order=True)
    names = named.agg(pl.col("name").drop_nulls().first(), pl.col("type").drop_nulls().first())
    table = sites.join(exonic, on=_COPY).join(spans, on=_COPY, how="left")
    table = table.join(names, on="gene", how="left").sort(_COPY)
    table = table.with_columns(
        start=pl.min_horizontal("start", "first"),
        end=pl.max_horizontal("end", "last"),
        gene_id=pl.when(pl.col("chrom").cum_count().over("gene") == 1)
        .then("gene")
        .otherwise(pl.format("{}@{}{}", "gene", "chrom", "strand")),
    )
    doubled = table.filter(pl.col("gene_id").is_duplicated())["gene_id"]
    if doubled.len():
        raise InputError(f"two genes would be called {doubled[0]}", expected="distinct gene ids", where=str(path))
    copies = table.filter(pl.col("gene_id") != pl.col("gene"))["gene_id"]
    if copies.len():
        log.warning("%d gene(s) have an id that comes on several contigs or strands, and are called by both: %s%s",
                    copies.len(), ", ".join(copies.head(3)), ", …" if copies.len() > 3 else "")  # fmt: skip
    return [_gene(row) for row in table.sort("chrom", "start", "end", "gene_id").iter_rows(named=True)]


def _tell(spans: pl.DataFrame, exonic: pl.DataFrame) -> None:
    """What the gene lines have and the exons do not, and the other way round."""
    repeated = spans.filter(pl.col("len") > 1).height
    if repeated:
        log.warning(
            "%d gene(s) have several lines on one contig and strand: each is one gene over all of them", repeated
        )
    bare = spans.join(exonic, on=_COPY, how="anti").height
    if bare:
        log.warning("left out: %d gene line(s) without an exon on their contig and strand", bare)
    made = exonic.join(spans, on=_COPY, how="anti")
    if made.height:
        level = logging.WARNING if spans.height else logging.INFO  # a GTF may have no gene lines at all
        some = ", ".join(made["gene"].sort().head(3)) + (", …" if made.height > 3 else "")
        log.log(level, "%d gene(s) without a line of their own are made from their exons: %s", made.height, some)
    wider = exonic.join(spans, on=_COPY).filter((pl.col("start") < pl.col("first")) | (pl.col("end") > pl.col("last")))
    if wider.height:
        log.warning("%d gene(s) have exons beyond their gene line: they span both", wider.height)


def _gene(row: dict[str, object]) -> Gene:
    start, end, plus = int(str(row["start"])), int(str(row["end"])), row["strand"] == "+"

    def index(positions: object) -> np.ndarray:
        found = np.array(positions if positions is not None else [], dtype=np.int64)
        return found - start if plus else (end - found)[::-1].copy()

    donors, acceptors = index(row["donors"]), index(row["acceptors"])
    return Gene(
        gene_id=str(row["gene_id"]),
        name=str(row["name"] or row["gene"]),
        type=str(row["type"] or ""),
        chrom=str(row["chrom"]),
        strand=str(row["strand"]),
        start=start,
        end=end,
        donors=donors,
        acceptors=acceptors,
        skipped=np.setdiff1d(index(row.get("every")), np.concatenate([donors, acceptors])),
    )
