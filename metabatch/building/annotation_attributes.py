"""The attributes of GTF and GFF3 lines: which transcript and gene an exon belongs to, and what the gene is called.

Both formats become the same two tables. Only what genes are made of is kept of each block, ids as categories, so that
memory follows the number of exons, not the size of the file.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import polars as pl

from metabatch.building.annotation_lines import EXONS
from metabatch.errors import InputError

log = logging.getLogger(__name__)
# Which transcript stands for its gene, best last; Ensembl and GENCODE write "_", RefSeq a space.
_TAGS = ("basic", "RefSeq[_ ]Select", "Ensembl_canonical", "MANE[_ ]Select")
# Of GFF3: parts of transcripts that no exon descends from, and most of the lines.
_NO_PARENTS = ("CDS", "intron", "five_prime_UTR", "three_prime_UTR", "UTR", "start_codon", "stop_codon")
# Gene:WBGene00022277 (WormBase), gene:ENSG00000141510 (Ensembl), gene-TP53 (RefSeq)
_PREFIX = r"^(?i:gene[:-])"
_PLACE = ("chrom", "strand", "start", "end")


@dataclass(frozen=True)
class Tables:
    """What genes are made of.

    exons : gene, transcript, rank (best tag of the transcript, 0 without one), chrom, strand, start, end, line: a row
    an exon of a transcript. genes : gene, name, type (null where not said), chrom, strand, start, end: a row a gene
    line; where an exon line alone tells name and type, the place is null.
    """

    exons: pl.DataFrame
    genes: pl.DataFrame


def _attribute(pattern: str) -> pl.Expr:
    """What the pattern's group captures in the attributes; null when nothing, or nothing but blanks."""
    return pl.col("attributes").str.extract(pattern).str.strip_chars().replace("", None)


def _rank(before: str) -> pl.Expr:
    rank = pl.lit(0)
    for value, tag in enumerate(_TAGS, start=1):
        rank = pl.when(pl.col("attributes").str.contains(before + tag)).then(value).otherwise(rank)
    return rank.cast(pl.UInt8).alias("rank")


def _compact(lines: pl.DataFrame) -> pl.DataFrame:
    """Ids come on many lines: as categories they take 4 bytes each."""
    return lines.with_columns(pl.col(pl.String).cast(pl.Categorical))


# -- GTF ---------------------------------------------------------------------------------------------------------------


def gtf_block(lines: pl.DataFrame, path: Path) -> pl.DataFrame:
    """Exon, transcript and gene lines of one block with gene, transcript, name, type and rank."""

    def value(name: str) -> pl.Expr:
        quoted = _attribute(rf'(?:^|[;\s]){name}\s+"([^"]*)"')
        return pl.coalesce(quoted, _attribute(rf'(?:^|[;\s]){name}\s+([^";\s]+)'))

    wanted = lines.filter(pl.col("feature").is_in([*EXONS, "gene", "transcript", "mRNA"])).with_columns(
        _rank('tag "?'),
        gene=value("gene_id"),
        transcript=value("transcript_id"),
        name=pl.coalesce(value("gene_name"), value("gene")),
        type=pl.coalesce(value("gene_type"), value("gene_biotype")),
    )
    nameless = wanted.filter(pl.col("feature").is_in(EXONS), pl.col("gene").is_null() | pl.col("transcript").is_null())
    if nameless.height:
        raise InputError(
            f"the exon in line {nameless['line'][0]} has no gene_id or no transcript_id",
            expected='gene_id "X"; transcript_id "Y"; in the ninth column',
            where=f"{path}, line {nameless['line'][0]}",
        )
    return _compact(wanted.drop("attributes"))


def gtf_tables(lines: pl.DataFrame) -> Tables:
    """Of all blocks together."""
    exons = lines.filter(pl.col("feature").is_in(EXONS))
    own = lines.filter(pl.col("feature") == "gene", pl.col("gene").is_not_null())
    # Exon lines name their gene too, for files without gene lines; the span is then left to the exons.
    named = exons.sort("line").unique("gene", keep="first", maintain_order=True)
    named = named.with_columns(pl.lit(None).cast(exons.schema[name]).alias(name) for name in _PLACE)
    ranks = lines.filter(pl.col("transcript").is_not_null()).group_by("gene", "transcript").agg(pl.col("rank").max())
    exons = exons.drop("rank").join(ranks, on=["gene", "transcript"], how="left")
    return Tables(
        exons=exons.select("gene", "transcript", "rank", *_PLACE, "line"),
        genes=pl.concat([table.select("gene", "name", "type", *_PLACE) for table in (own, named)]),
    )


# -- GFF3 --------------------------------------------------------------------------------------------------------------


def gff3_block(lines: pl.DataFrame, path: Path) -> pl.DataFrame:  # noqa: ARG001 (as `gtf_block`)
    """Exon lines of one block with their parents, and all that may be a parent with id, name and type."""

    def value(name: str) -> pl.Expr:
        return _attribute(rf"(?:^|;)\s*{name}\s*=([^;]*)")

    wanted = lines.filter(~pl.col("feature").is_in(_NO_PARENTS)).with_columns(
        _rank(r"(?:^|;)\s*tag\s*=[^;]*"),
        id=value("ID"),
        parents=value("Parent"),
        gene=value("gene_id"),
        name=pl.coalesce(value("gene_name"), value("Name"), value("gene")),
        type=pl.coalesce(value("gene_type"), value("gene_biotype"), value("biotype")),
    )
    is_exon = pl.col("feature").is_in(EXONS)
    return _compact(wanted.filter(is_exon | pl.col("id").is_not_null()).drop("attributes"))


def gff3_tables(lines: pl.DataFrame) -> Tables:
    """Of all blocks together: an exon's parents are its transcripts, the first of their ancestors the gene.

    Exons whose parent has no line of its own are left out, because their gene is not known; that is logged.
    """
    exons = lines.filter(pl.col("feature").is_in(EXONS))
    others = lines.filter(~pl.col("feature").is_in(EXONS)).sort("line")
    of_transcript = exons.select(pl.col("parents").cast(pl.String).str.split(",")).explode("parents")
    parents: dict[str, set[str]] = {}
    for name, above in others.select(pl.col("id", "parents").cast(pl.String)).iter_rows():
        parents.setdefault(name, set()).update(filter(None, (above or "").split(",")))
    transcripts = of_transcript["parents"].drop_nulls().unique().sort()
    pairs = [(name, root) for name in transcripts for root in sorted(_roots(name, parents))]
    links = pl.DataFrame(pairs, schema={"transcript": pl.String, "root": pl.String}, orient="row")
    found = exons.with_columns(transcript=pl.col("parents").cast(pl.String).str.split(",")).explode("transcript")
    joined = found.drop("rank", "gene").join(links, on="transcript", how="left")
    _tell_orphans(joined)

    first = others.unique("id", keep="first", maintain_order=True)
    first = first.with_columns(root=pl.col("id").cast(pl.String)).select("root", "gene", "rank")
    joined = joined.filter(pl.col("root").is_not_null())
    joined = joined.join(first.select("root", "gene"), on="root", how="left")
    joined = joined.join(first.select(pl.col("root").alias("transcript"), "rank"), on="transcript", how="left")
    own = others.with_columns(root=pl.col("id").cast(pl.String))
    is_gene = pl.col("parents").is_null() & pl.col("feature").cast(pl.String).str.ends_with("gene")
    own = own.filter(pl.col("root").is_in(links["root"].unique().implode()) | is_gene)
    # The kind of a gene line says something where it is not just "gene": pseudogene, ncRNA_gene.
    kind = pl.col("feature").cast(pl.String)
    own = own.with_columns(type=pl.coalesce(pl.col("type").cast(pl.String), kind.replace("gene", None)))
    return Tables(
        exons=_compact(_with_gene(joined).select("gene", _unescaped("transcript"), "rank", *_PLACE, "line")),
        genes=_compact(_with_gene(own).select("gene", _unescaped("name"), _unescaped("type"), *_PLACE)),
    )


def _roots(name: str, parents: Mapping[str, Iterable[str]]) -> set[str]:
    """The ancestors of a feature without a parent themselves; of a feature without a line of its own, none."""
    if name not in parents:
        return set()
    roots, seen, open_ends = set(), {name}, [name]
    while open_ends:
        feature = open_ends.pop()
        above = [parent for parent in parents.get(feature, ()) if parent not in seen]
        if not parents.get(feature):
            roots.add(feature)
        seen.update(above)  # a circle of parents ends here
        open_ends += above
    return roots


def _tell_orphans(exons: pl.DataFrame) -> None:
    lost = exons.filter(pl.col("root").is_null())
    if lost.height:
        names = lost["transcript"].drop_nulls().unique().sort()
        some = ", ".join(names.head(3))
        log.warning(
            "left out: %d exon line(s) whose gene is not known, of %d parent(s) without a line of their own%s",
            lost.height, names.len(), f" ({some}{', …' if names.len() > 3 else ''})" if some else "",
        )  # fmt: skip


def _with_gene(table: pl.DataFrame) -> pl.DataFrame:
    """The gene is its line's gene_id; without one its ID, less a prefix that only says that it is a gene's."""
    named = pl.col("root").str.replace(_PREFIX, "")
    table = table.with_columns(gene=pl.coalesce(pl.col("gene").cast(pl.String), named))
    return table.with_columns(_unescaped("gene"))


def _unescaped(name: str) -> pl.Expr:
    """GFF3 writes %3B for a semicolon in a value."""
    text = pl.col(name).cast(pl.String)
    return pl.when(text.str.contains("%")).then(text.map_elements(unquote, pl.String)).otherwise(text).alias(name)
