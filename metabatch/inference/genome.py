"""Positions of a genome as rows to predict on, their columns computed as those of the model's own data set."""

from __future__ import annotations

import gzip
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa

from metabatch.building.annotation import read_annotation
from metabatch.building.base import open_base
from metabatch.building.copies import complete_gzip, is_gzip
from metabatch.building.dataset import Recipe
from metabatch.building.features import FEATURES_VERSION, rows_at_once
from metabatch.building.genes import Gene, with_loci
from metabatch.building.genome import Genome
from metabatch.building.opening import files_of
from metabatch.building.positions import Material, Positions
from metabatch.building.source_checks import check_source
from metabatch.ensemble.bundle import BUNDLE_FILE, find_bundle
from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import InputError, UsageError
from metabatch.inference.modes import Output
from metabatch.inference.request import GenomeAsked
from metabatch.inference.rows import Batch, Step, predict_batches
from metabatch.rundir.bundle import Bundle
from metabatch.rundir.fingerprint import hash_texts
from metabatch.rundir.manifests import load
from metabatch.rundir.publish import sha256_file

log = logging.getLogger(__name__)
# A gene or region is held whole: some 40 bytes a position (scores, their counts and sequence), so 200 MB at most of a
# region. The longest human gene has 2.3 Mnt.
MOST_REGION_NT = 5_000_000
_OF_SPAN = ("gene_length", "distance_to_start", "distance_to_end")


@dataclass(frozen=True)
class GenePart:
    """Whole genes."""

    stem: str
    genes: tuple[Gene, ...]
    source: str

    @property
    def rows(self) -> int:
        return sum(g.length for g in self.genes)

    @property
    def origin(self) -> dict[str, str]:
        return {"source": self.source, "genes": f"{self.genes[0].gene_id} to {self.genes[-1].gene_id}"}


@dataclass(frozen=True)
class GenomeRows:
    """All positions of genes, ascending; genes by chromosome and start."""

    positions: Positions
    genes: Sequence[Gene]
    where: str
    files: dict[str, Path] = field(default_factory=dict)

    def schemas(self) -> dict[str, pa.Schema]:
        return {self.where: self.positions.schema}

    def inputs(self) -> dict[str, str]:
        genes = hash_texts([g.gene_id for g in self.genes])
        return {name: sha256_file(path) for name, path in self.files.items()} | {"genes": genes}

    def parts(self, most_rows: int) -> list[GenePart]:
        parts: list[list[Gene]] = []
        rows = 0
        for gene in self.genes:
            if not parts or rows + gene.length > most_rows:
                parts.append([])
                rows = 0
            parts[-1].append(gene)
            rows += gene.length
        return [GenePart(f"part-{i:05d}", tuple(genes), self.where) for i, genes in enumerate(parts)]

    def steps(self, part: GenePart, output: Output, estimator: MetaModel | None) -> Iterator[Step]:
        return predict_batches(output, estimator, self._batches(part, output, estimator), self.where)

    def _batches(self, part: GenePart, output: Output, estimator: MetaModel | None) -> Iterator[Batch]:
        cheap = {f.name for f in self.positions.narrow_schema}
        whole = not set(output.narrow) <= cheap  # features among the further columns
        step = rows_at_once(self.positions.spec)
        for gene in part.genes:
            material = self.positions.material(gene)
            for start in range(0, gene.length, step):
                index = np.arange(start, min(start + step, gene.length))
                if gene.strand == "-":
                    index = gene.length - 1 - index
                yield self._batch(material, index, output, estimator, whole=whole)

    def _batch(
        self, material: Material, index: np.ndarray, output: Output, estimator: MetaModel | None, *, whole: bool
    ) -> Batch:
        rows, base = len(index), output.base
        make = self.positions.rows if whole else self.positions.narrow
        narrow = pa.Table.from_batches([make(material, index)])
        scores = {} if base is None else base.read(narrow, self.where)
        uncertain = None if base is None else base.uncertain(scores)
        if uncertain is not None and output.request.selective:
            kept = np.flatnonzero(uncertain)
            narrow, index, uncertain = narrow.take(kept), index[kept], uncertain[kept]
            scores = {name: values[kept] for name, values in scores.items()}
        wanted = index if uncertain is None else index[uncertain]
        features = None
        if estimator is not None and len(wanted):
            features = pa.Table.from_batches([self.positions.rows(material, wanted)]).select(estimator.feature_names)
        return Batch(rows, narrow.select(output.narrow), scores, uncertain, features)


def open_genome(model: str | Path, asked: GenomeAsked, scratch: Path) -> GenomeRows:
    """The positions asked for, with the columns of the data set that `model` was trained on.

    Raises
    ------
    InputError
        A model of another data set than `build-dataset` makes, a genome and annotation that do not go together.
    UsageError
        Base scores missing, or given where the model has its own.
    """
    bundle = load(find_bundle(model) / BUNDLE_FILE, Bundle)
    if bundle.recipe is None:
        raise InputError(
            f"{model} does not know how its features are computed from a genome",
            expected="a model of a data set that build-dataset made", next_step="predict on a table: MODEL DATA OUT",
        )  # fmt: skip
    version = bundle.recipe.get("features_version")
    if version != FEATURES_VERSION:
        raise InputError(
            f"the features of {model} are of version {version}",
            expected=f"version {FEATURES_VERSION}, which this metabatch computes",
            next_step="predict with the metabatch that built its data set, or build that and train again",
        )
    try:
        recipe = msgspec.convert(bundle.recipe, Recipe)
    except msgspec.ValidationError as error:
        raise InputError(
            f"the recipe of {model} cannot be read: {error}", expected="as build-dataset wrote it"
        ) from None
    places = asked.annotation or asked.regions
    if places is None:
        raise UsageError("--genome without --annotation or --regions", expected="one of them")
    genome = Genome(asked.genome, scratch)
    genes = read_annotation(places, sites="all") if asked.annotation else read_regions(places)
    genes = _chosen(with_loci(genes), asked.gene_ids)
    said = genome.check(genes, str(places))
    if asked.regions:
        said += _of_spans([f.name for f in bundle.features], recipe.features.reach)
    if asked.weights and recipe.base.kind != "openspliceai":
        raise UsageError(
            f"--base-weights decides nothing here: the model was trained on scores of the kind {recipe.base.kind}",
            expected="it with a model trained on scores of openspliceai",
        )
    if asked.scores and recipe.base.kind not in ("table", "bigwig"):
        raise UsageError(
            f"--base-scores decides nothing here: the model was trained on scores of the kind {recipe.base.kind}",
            expected="it with a model trained on scores from a table or tracks",
        )
    given = (*asked.scores, *asked.weights)
    base = open_base(recipe.base, given, scratch=scratch)
    for text in said + check_source(base, genes):
        log.warning("%s", text)
    files = {"genome": asked.genome, "places": places} | {f"base {i}": p for i, p in enumerate(files_of(given))}
    return GenomeRows(Positions(genome, base, recipe.features), genes, places.name, files)


def _of_spans(features: Sequence[str], reach: int) -> list[str]:
    """What regions that are no genes do to the features of a model."""
    spans = [name for name in _OF_SPAN if name in features]
    far = any(name.endswith((f"_max_up{reach}", f"_max_down{reach}")) for name in features)
    texts = [f"{', '.join(spans)} are the region's own"] if spans else []
    texts += [f"scores beyond its ends count as 0, within {reach} nt too"] if far else []
    if not texts:
        return []
    return [
        f"each region is scored like a gene of that span: {'; '.join(texts)}. Of regions that are not whole genes the "
        "model was not trained on such values: prefer --annotation, or regions of the genes' spans"
    ]


def _chosen(genes: Sequence[Gene], gene_ids: Sequence[str]) -> list[Gene]:
    wanted = set(gene_ids)
    unknown = sorted(wanted - {g.gene_id for g in genes})
    if unknown:
        raise InputError(f"--gene-ids {', '.join(unknown[:5])}: {len(unknown)} of them not in the annotation")
    return [g for g in genes if not wanted or g.gene_id in wanted]


def _lines(path: Path) -> list[str]:
    """Of a text file, plain or gzip."""
    with complete_gzip(path), gzip.open(path, "rb") if is_gzip(path) else path.open("rb") as handle:
        return [line.decode("utf-8", "replace").rstrip("\r\n") for line in handle]


def read_regions(path: Path) -> list[Gene]:
    """Regions of a BED file, each to be scored like a gene of that span; + where there is no strand.

    Raises
    ------
    InputError
        Naming the line: too few columns, no positions, more than `MOST_REGION_NT`; or a name used twice.
    """
    if not path.is_file():
        raise InputError(f"regions {path} do not exist", expected="a BED file")
    genes: list[Gene] = []
    none = np.empty(0, np.int64)
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip() or line.startswith(("#", "track", "browser")):
            continue
        cells = line.split("\t")
        start, end = (int(c) if c.isascii() and c.isdigit() else -1 for c in (*cells[1:3], "", "")[:2])
        strand = cells[5].strip() if len(cells) > 5 else "+"
        if not 0 <= start < end or strand not in ("+", "-", "."):
            raise InputError(
                f"line {number} of {path.name} is no region: {line[:60]!r}",
                expected="chrom, start (from 0), end, and where there are more: name, score, strand, separated by tabs",
                where=f"{path}, line {number}",
            )
        if end - start > MOST_REGION_NT:
            raise InputError(
                f"line {number} of {path.name} is a region of {end - start:,} nt",
                expected=f"at most {MOST_REGION_NT:,} nt: a region is held in memory whole",
                where=f"{path}, line {number}",
                next_step="cut it where no gene is, or give --annotation for the positions of genes",
            )
        strand = "+" if strand == "." else strand
        name = cells[3].strip() if len(cells) > 3 and cells[3].strip() else f"{cells[0]}:{start + 1}-{end}{strand}"
        genes.append(Gene(name, name, "", cells[0], strand, start + 1, end, none, none))
    twice = pl.Series([g.gene_id for g in genes], dtype=pl.String)
    twice = twice.filter(twice.is_duplicated())
    if len(twice):
        raise InputError(f"{path.name} has several regions named {twice[0]}", expected="a name per region, or none")
    if not genes:
        raise InputError(f"{path.name} has no regions", expected="a BED file", where=str(path))
    return genes
