"""From a gene to rows: the one way from sequence and base scores to columns, in training and in prediction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from metabatch.building.base import BaseModel
from metabatch.building.features import FeatureSpec, feature_batch, feature_columns, feature_flank, feature_schema
from metabatch.building.genes import CLASSES, Gene
from metabatch.building.genome import Genome

# The columns of base scores, in the order of score arrays.
SCORES = tuple(f"{name}_score" for name in CLASSES)
ID_SCHEMA = pa.schema(
    [
        ("gene_id", pa.string()), ("gene_name", pa.string()), ("gene_type", pa.string()), ("locus_id", pa.string()),
        ("chrom", pa.string()), ("strand", pa.string()), ("position", pa.int32()),
    ]
)  # fmt: skip


@dataclass(frozen=True)
class Material:
    """What the rows of a gene are made from.

    codes : uint8, with the flanks that features need. scores : float32, shape (length, 3).
    """

    gene: Gene
    codes: np.ndarray
    scores: np.ndarray


@dataclass(frozen=True)
class Positions:
    """A genome with a base model and the features to be computed."""

    genome: Genome
    base: BaseModel
    spec: FeatureSpec

    @property
    def schema(self) -> pa.Schema:
        """Of `rows`."""
        return pa.unify_schemas([ID_SCHEMA, feature_schema(self.spec)])

    @property
    def narrow_schema(self) -> pa.Schema:
        """Of `narrow`."""
        return pa.unify_schemas([ID_SCHEMA, pa.schema([(name, pa.float32()) for name in SCORES])])

    def material(self, gene: Gene) -> Material:
        """Sequence and base scores of a gene."""
        own = feature_flank(self.spec)
        flank = max(own, self.base.flank)
        codes = self.genome.codes(gene, flank)
        size = len(codes)
        scores = self.base.scores(gene, codes[flank - self.base.flank : size - (flank - self.base.flank)])
        return Material(gene, codes[flank - own : size - (flank - own)], scores)

    def features(self, material: Material, index: np.ndarray) -> list[np.ndarray]:
        """Features of the rows `index` (int64, transcript direction, shape (n,)), a column an array."""
        return feature_columns(self.spec, material.codes, material.scores, index)

    def rows(self, material: Material, index: np.ndarray) -> pa.RecordBatch:
        """Ids and features of the rows `index`."""
        features = feature_batch(self.spec, material.codes, material.scores, index)
        arrays = [*ids_of(material.gene, index), *features.columns]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)

    def narrow(self, material: Material, index: np.ndarray) -> pa.RecordBatch:
        """As `rows`, ids and base scores only."""
        scores = (pa.array(np.ascontiguousarray(material.scores[index, i])) for i in range(len(SCORES)))
        return pa.RecordBatch.from_arrays([*ids_of(material.gene, index), *scores], schema=self.narrow_schema)


def ids_of(gene: Gene, index: np.ndarray) -> list[pa.Array]:
    """The columns of `ID_SCHEMA`."""
    texts = (gene.gene_id, gene.name, gene.type, gene.locus_id, gene.chrom, gene.strand)
    return [
        *(pa.array([text] * len(index), pa.string()) for text in texts),
        pa.array(gene.positions(index), pa.int32()),
    ]
