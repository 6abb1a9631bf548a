"""Scored rows in memory: what all analyses of predictions look at."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from metabatch.analysis.sampling import draw_units
from metabatch.data.schema import BACKWARD, FORWARD
from metabatch.metrics.thresholds import OperatingPoints
from metabatch.resources.law import ANALYSED_ROWS
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Columns, Plan
from metabatch.rundir.tables import home_instances, read_genes


@dataclass(frozen=True)
class ScoredRows:
    """Rows with the scores of models that did not train on them: narrow columns only.

    gene, group : int, shape (n,): codes into `gene_names`, and of the resampling unit (split group, else gene).
    label : int, shape (n,): positions in the classes. weight : float64, shape (n,).
    base, meta : float, shape (n, k); base is NaN in columns without a base score. meta: calibrated, rows add up to 1.
    raw : float, shape (n, k), or None: the boosters' scores before calibration (out-of-fold rows only).
    fold : int, shape (n,), or None.
    position, strand : int64, shape (n,), or None: coordinate, and +1 or -1 (all +1 without a strand column).
    of_rows, of_genes : how many rows and genes there are in all; more than are here when whole units were drawn.
    """

    gene: np.ndarray
    group: np.ndarray
    label: np.ndarray
    weight: np.ndarray
    base: np.ndarray
    meta: np.ndarray
    gene_names: list[str]
    of_rows: int
    of_genes: int
    raw: np.ndarray | None = None
    fold: np.ndarray | None = None
    position: np.ndarray | None = None
    strand: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.label)

    def described(self) -> str:
        """How many rows and genes, and of how many they were drawn."""
        drawn = len(self) < self.of_rows
        text = f"{len(self):,} rows of {len(self.gene_names):,} genes"
        return text + (f" (whole genes drawn from {self.of_rows:,} rows of {self.of_genes:,} genes)" if drawn else "")


def load_scored(
    path: Path | Sequence[Path] | Mapping[Path, Iterable[str]], columns: Columns, groups: Mapping[str, str], *,
    most: int | None = None, seed: int = 0, genes: Iterable[str] | None = None, only_scores: bool = False,
) -> ScoredRows:  # fmt: skip
    """Read oof.parquet or predictions.parquet, a column after the other.

    Parameters
    ----------
    path : Path, sequence of Path, or mapping
        Several of the same columns are read as one. A mapping says which genes are read from which file; a gene may
        stand in several files, but is read from one only.
    groups : mapping
        gene_id -> resampling unit.
    most : int, optional
        Draw whole units when there are more rows than this.
    genes : iterable of str, optional
        Of these genes only.
    only_scores : bool
        Leave out raw, fold, position and strand.
    """
    files = _Files(path, genes)
    names = files.names
    sizes = files.sizes.with_columns(unit=pl.col("gene_id").replace_strict(dict(groups), return_dtype=pl.String))
    of_rows, of_genes = int(sizes["rows"].sum()), sizes.height
    units = sizes.group_by("unit").agg(pl.col("rows").sum()).sort("unit")
    if most is not None:
        units = units.filter(pl.Series(draw_units(units["rows"].to_numpy(), most, seed)))
    sizes = sizes.join(units.select("unit").with_row_index("group"), on="unit").sort("gene_id")
    wanted = sizes["gene_id"]
    files.keep(wanted)
    read = files.read

    def scores(suffix: str, have: Iterable[str]) -> np.ndarray:
        found = np.full((len(gene), len(columns.classes)), np.nan, dtype=np.float32)
        for i, name in enumerate(columns.classes):
            if name in have:
                found[:, i] = read(pl.col(f"{name}{suffix}").cast(pl.Float32).fill_null(float("nan")))
        return found

    gene = read(pl.col("gene_id").replace_strict(wanted, pl.int_range(len(wanted), eager=True), return_dtype=pl.UInt32))
    classes = list(columns.classes)
    position = strand = None
    if "position" in names and not only_scores:
        kept = read(pl.col("position").cast(pl.Int64, strict=False))
        if kept.dtype == np.int64:  # a position that is missing is no place
            position, strand = kept, np.ones(len(gene), dtype=np.int64)
            if "strand" in names:
                text = pl.col("strand").cast(pl.String)
                sign = pl.when(text.is_in(FORWARD)).then(1).when(text.is_in(BACKWARD)).then(-1).otherwise(0)
                known = read(sign.cast(pl.Int64))
                strand = known if known.all() else strand
    raw = f"{classes[0]}_raw" in names and not only_scores
    return ScoredRows(
        gene=gene,
        group=sizes["group"].to_numpy()[gene],
        label=read(pl.col("label").replace_strict(classes, list(range(len(classes))), return_dtype=pl.UInt8)),
        weight=read(pl.col("weight").cast(pl.Float64)),
        base=scores("_score", columns.scores),
        meta=scores("_meta", classes),
        gene_names=wanted.to_list(),
        of_rows=of_rows,
        of_genes=of_genes,
        raw=scores("_raw", classes) if raw else None,
        fold=read(pl.col("fold")) if "fold" in names and not only_scores else None,
        position=position,
        strand=strand,
    )


def load_out_of_fold(
    run: RunDir, plan: Plan, *, most: int | None = ANALYSED_ROWS, only_scores: bool = False
) -> ScoredRows:  # fmt: skip
    """The training genes' out-of-fold rows of all instances, each gene from its home instance."""
    homes = home_instances(run, plan)
    paths = {
        run.instance(p.index).root / "oof.parquet": homes.filter(pl.col("instance") == p.index)["gene_id"]
        for p in plan.instances
    }
    groups = resampling_units(run, plan)
    return load_scored(paths, plan.columns, groups, most=most, seed=plan.seed, only_scores=only_scores)


def resampling_units(run: RunDir, plan: Plan) -> dict[str, str]:
    """gene_id -> what is resampled as a whole: the split group where there is one, else the gene."""
    genes = read_genes(run)
    unit = "split_group" if plan.columns.split else "gene_id"
    return dict(zip(genes["gene_id"], genes[unit], strict=True))


class _Files:
    """Files read as one, a column at a time, each for its own genes (None: all it has)."""

    def __init__(self, path: Path | Sequence[Path] | Mapping[Path, Iterable[str]], genes: Iterable[str] | None) -> None:
        self._of: list[tuple[Path, pl.Series | None]]
        if isinstance(path, Mapping):
            self._of = [(p, pl.Series("gene_id", list(own), pl.String)) for p, own in path.items()]
        else:
            self._of = [(p, None) for p in ([path] if isinstance(path, Path) else path)]
        if genes is not None:
            self.keep(pl.Series("gene_id", list(genes), pl.String))
        self.names = pl.scan_parquet(self._of[0][0]).collect_schema().names()
        found = [f.group_by("gene_id").agg(pl.len().alias("rows")).collect() for f in self._frames()]
        self.sizes = pl.concat(found).group_by("gene_id").agg(pl.col("rows").sum()).sort("gene_id")

    def keep(self, genes: pl.Series) -> None:
        """From now on, rows of these genes only."""
        self._of = [(p, genes if own is None else own.filter(own.is_in(genes.implode()))) for p, own in self._of]

    def read(self, expression: pl.Expr) -> np.ndarray:
        """An expression over one column, in the order of the files."""
        # Collected first, then computed: inside a parquet scan polars 2.1.0 gives wrong values for when/then, now and
        # then and without an error.
        plain = [f.select(sorted(set(expression.meta.root_names()))).collect() for f in self._frames()]
        return pl.concat([f.select(expression.alias("x"))["x"] for f in plain]).to_numpy()

    def _frames(self) -> list[pl.LazyFrame]:
        frames = []
        for path, own in self._of:
            lazy = pl.scan_parquet(path)
            frames.append(lazy if own is None else lazy.filter(pl.col("gene_id").is_in(own.implode())))
        return frames


def best_thresholds(rows: ScoredRows, classes: Sequence[str]) -> dict[str, float | None]:
    """Per class the threshold of the best F1 (call: score >= threshold); None where the class does not occur."""
    found: dict[str, float | None] = {}
    for code, name in enumerate(classes):
        points = OperatingPoints.of(rows.meta[:, code], rows.label == code, rows.weight)
        found[name] = None if points is None else float(points.threshold[points.best()])
    return found
