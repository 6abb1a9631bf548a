"""The lines of a GTF or GFF3 file, block by block, checked. Line numbers in errors count from 1."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, cast

import polars as pl

from metabatch.building.copies import complete_gzip, is_gzip
from metabatch.errors import InputError

# Bytes of text parsed at once: some 10,000 lines.
BLOCK = 4 * 2**20
# pseudogenic_exon: of the Sequence Ontology, in GFF3 of plants and others.
EXONS = ("exon", "pseudogenic_exon")


def blocks(path: Path) -> Iterator[pl.DataFrame]:
    """Blocks of the lines that are no comment: line, chrom, feature, start, end, strand, attributes.

    Plain or gzip (bgzip too), up to the sequences that a GFF3 may end with.

    Raises
    ------
    InputError
        A line that is none of a GTF or GFF3 (the first one is named), a truncated file.
    """
    for number, texts in _texts(path):
        yield _columns(texts, number, path)


def is_gff3(lines: pl.DataFrame, path: Path) -> bool:
    """GTF writes `key "value";`, GFF3 `key=value;`: whichever more lines have."""
    gtf = int(lines["attributes"].str.contains(r'(?:^|;)\s*(?:gene_id|transcript_id)\s+"?[^\s=]').sum())
    gff3 = int(lines["attributes"].str.contains(r"(?:^|;)\s*(?:ID|Parent)\s*=").sum())
    if gtf == gff3 == 0:
        raise InputError(
            f"{path.name} is neither GTF nor GFF3: no line has a gene_id, an ID or a Parent",
            expected='attributes as gene_id "X"; (GTF) or ID=X;Parent=Y (GFF3) in the ninth column',
            where=f"{path}, line {lines['line'][0]}: {str(lines['attributes'][0])[:80]!r}",
        )
    return gff3 > gtf


def _texts(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Number of the first line and the lines of each block."""
    if not path.is_file():
        raise InputError(f"annotation {path} does not exist", expected="a GTF or GFF3 file")
    number = 1
    rest = b""
    with complete_gzip(path), _opened(path) as handle:
        while block := handle.read(BLOCK):
            *whole, rest = (rest + block).split(b"\n")
            texts = [line.decode("utf-8", "replace").removesuffix("\r") for line in whole]
            end = next((i for i, text in enumerate(texts) if _begins_sequences(text)), None)
            yield number, texts[:end]
            if end is not None:
                return
            number += len(texts)
    last = rest.decode("utf-8", "replace").removesuffix("\r")
    if last and not _begins_sequences(last):
        yield number, [last]


def _begins_sequences(text: str) -> bool:
    return text.startswith(("##FASTA", ">"))


def _opened(path: Path) -> BinaryIO:
    return cast("BinaryIO", gzip.open(path, "rb")) if is_gzip(path) else path.open("rb")


def _columns(texts: list[str], number: int, path: Path) -> pl.DataFrame:
    lines = pl.DataFrame({"text": texts}, schema={"text": pl.String}).with_row_index("line", offset=number)
    lines = lines.filter(pl.col("text").str.strip_chars() != "", ~pl.col("text").str.starts_with("#"))
    tabs = pl.col("text").str.count_matches("\t", literal=True)
    _refuse(lines, tabs != 8, path, "does not have nine columns separated by tabs", "a GTF or GFF3 line")
    fields = pl.col("text").str.split_exact("\t", 8)
    names = {"chrom": 0, "feature": 2, "start": 3, "end": 4, "strand": 6, "attributes": 8}
    lines = lines.select("line", "text", **{name: fields.struct.field(f"field_{i}") for name, i in names.items()})
    lines = lines.with_columns(pl.col("start", "end").cast(pl.Int64, strict=False))
    no_position = pl.col("start").is_null() | pl.col("end").is_null() | (pl.col("start") < 1)
    _refuse(lines, no_position, path, "has a start or end that is no position", "whole numbers from 1")
    _refuse(lines, pl.col("start") > pl.col("end"), path, "starts after its end", "start <= end")
    return lines.drop("text")


def _refuse(lines: pl.DataFrame, bad: pl.Expr, path: Path, what: str, expected: str) -> None:
    found = lines.filter(bad).head(1)
    if found.height:
        number, text = found["line"][0], str(found["text"][0])
        raise InputError(
            f"line {number} {what}: {text[:80]!r}",
            expected=expected,
            where=f"{path}, line {number}",
            next_step="give a GTF or GFF3 annotation, or correct the line or take it out",
        )
