"""Soft labels: what an ensemble says of every training gene, by members that did not train on it, and the true label.

The student learns from a mixture of both (G. Hinton, O. Vinyals and J. Dean, "Distilling the knowledge in a neural
network", 2015): members that did not train on a gene know less of it than its labels say.

soft_labels.parquet   gene_id, {class}_soft (float32): the rows of a gene in the order of the data set, genes one after
                      the other or interleaved as they lie there
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import msgspec
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.data.batches import RowCount, as_numpy, as_text
from metabatch.data.labels import label_codes
from metabatch.data.shards import verify_unchanged
from metabatch.ensemble.bundle import BUNDLE_FILE, load_bundle
from metabatch.ensemble.combination import crossed_rules
from metabatch.ensemble.gains import carrying_features
from metabatch.ensemble.instances import consolidated_plan, ensemble_inputs
from metabatch.ensemble.speakers import member_scores, out_of_fold_rows, speakers
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.rundir.bundle import Bundle
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir, require_run
from metabatch.rundir.manifests import ExcludedColumn, Plan, Teacher, load
from metabatch.rundir.publish import named, sha256_file
from metabatch.rundir.tables import home_instances, read_features, read_genes

# A student has so many features, where the teacher uses so many, however few carry its gain.
LEAST_FEATURES = 100


@dataclass(frozen=True)
class TeachingRun:
    """A finished run whose ensemble can teach.

    genes : its genes.parquet.
    excluded : what its features.json leaves out, and the features that carry too little of its gain for a student.
    speakers : training gene -> members (positions) that trained neither on it nor on its split group.
    """

    run: RunDir
    plan: Plan
    genes: pl.DataFrame
    excluded: tuple[ExcludedColumn, ...]
    speakers: dict[str, list[int]]
    record: Teacher


def open_teacher(path: str, label_share: float, gain_share: float) -> TeachingRun:
    """Check the run at `path` from its plan to its data.

    Parameters
    ----------
    label_share : float
        Part of the true label in a soft label.
    gain_share : float
        Part of the gain of the teacher's splits that the student's features carry together; 1: all features.

    Raises
    ------
    InputError
        No run, a copied bundle, a plan with a prior, no finished or an altered ensemble, changed data, or training
        genes of which no member may speak.
    """
    if (Path(path) / BUNDLE_FILE).is_file():
        raise InputError(
            f"{path} is a model without its run", expected="the run directory: which genes each member trained on "
            "stands there", next_step="give the folder that holds plan.json",
        )  # fmt: skip
    run = require_run(path)
    plan = open_plan(run)
    if plan.options.prior:
        raise InputError(
            f"{path} was planned with --prior: its probabilities are at another prevalence than the rows a student is "
            "judged on",
            expected="a teacher without --prior", where=str(run.plan),
            next_step="train the teacher without it, and give --prior to distill",
        )  # fmt: skip
    plan = consolidated_plan(run, plan, ensemble_inputs(run, plan))
    verify_unchanged(plan.dataset)
    genes = read_genes(run)
    training = genes.filter(pl.col("split") == "train")["gene_id"].to_list()
    everyone = speakers(run, plan)
    may = {gene: everyone[gene] for gene in training}
    homes = set(home_instances(run, plan)["gene_id"])
    if lost := sum(not members and gene not in homes for gene, members in may.items()):
        raise InputError(
            f"nobody can teach {lost} gene(s): only an instance that is missing trained on them, and all others on "
            "genes of their split group",
            expected="the whole ensemble", where=path, next_step=f"bin/submit {quote(path)}, then distill again",
        )  # fmt: skip
    alone = sum(not members for members in may.values())
    if alone and not plan.options.n_folds:
        raise InputError(
            f"{alone} gene(s) were trained on by every member, and there are no out-of-fold scores",
            expected="for every training gene somebody who did not train on it",
            where=path,
            next_step=f"train a teacher with --n-folds 2 or more (bin/plan {quote(plan.dataset.path)} RUN)",
        )
    record = Teacher(
        fingerprint=plan.fingerprint, bundle=sha256_file(run.ensemble / BUNDLE_FILE), members=len(plan.instances),
        how=_how(len(may), alone), path=str(run.root.resolve()), label_share=label_share,
        gain_share=gain_share, missing=load(run.ensemble / BUNDLE_FILE, Bundle).missing,
    )  # fmt: skip
    return TeachingRun(run, plan, genes, _excluded(run, gain_share), may, record)


def _excluded(run: RunDir, gain_share: float) -> tuple[ExcludedColumn, ...]:
    own = read_features(run).excluded
    if gain_share == 1:
        return own
    model = load_bundle(run.ensemble)
    kept = set(carrying_features(model, gain_share, LEAST_FEATURES))
    if not kept:
        raise InputError(
            "the teacher's trees split by no feature, or it has no trees",
            expected="gains of splits, by which the student's features are chosen", where=str(run.root),
            next_step="give --gain-share 1 for all of the teacher's features",
        )  # fmt: skip
    reason = f"not among the features that carry {gain_share:.4g} of the gain of the teacher's splits"
    return (*own, *(ExcludedColumn(name=n, reason=reason) for n in model.feature_names if n not in kept))


def _how(genes: int, alone: int) -> str:
    by_others = f"{genes - alone:,} genes by the members that did not train on them"
    out_of_fold = f"{alone:,} genes by out-of-fold scores"
    return "; ".join(text for text, there in ((by_others, genes - alone), (out_of_fold, alone)) if there)


def write_soft_labels(teacher: TeachingRun, path: Path, threads: int | None) -> None:
    """Write soft_labels.parquet at `path`, streaming: a batch of rows and the members are held.

    Raises
    ------
    InputError
        Rows that are not those of the plan.
    """
    run, plan = teacher.run, teacher.plan
    classes = plan.columns.classes
    total, written = int(teacher.genes.filter(pl.col("split") == "train")["rows"].sum()), 0
    schema = pa.schema([("gene_id", pa.string()), *((f"{c}_soft", pa.float32()) for c in classes)])
    with (
        Progress("soft labels", total, "rows") as progress,
        named(path),
        pq.ParquetWriter(path, schema, compression="zstd") as file,
    ):
        for gene, label, proba in _scores(teacher, threads):
            if not np.isfinite(proba).all():
                raise InputError("some row got no probability from the teacher", where=str(run.root))
            share = teacher.record.label_share
            soft = share * np.eye(len(classes))[label] + (1 - share) * proba
            columns = [gene, *(pa.array(np.ascontiguousarray(p, dtype=np.float32)) for p in soft.T)]
            file.write_table(pa.Table.from_arrays(columns, schema=schema))
            written += len(gene)
            progress.advance(len(gene))
    if written != total:
        raise InputError(f"the teacher scored {written:,} rows", expected=f"the {total:,} rows of its training genes")


def _scores(teacher: TeachingRun, threads: int | None) -> Iterator[tuple[pa.ChunkedArray, np.ndarray, np.ndarray]]:
    """Genes of a batch of rows, codes of their labels, shape (n,), and their probabilities, shape (n, k)."""
    run, plan = teacher.run, teacher.plan
    spoken = {gene: members for gene, members in teacher.speakers.items() if members}
    if spoken:
        model, rules = load_bundle(run.ensemble, threads=threads), crossed_rules(run.ensemble)
        for table, proba in member_scores(run, plan, model, spoken, RowCount()):
            gene = as_text(table.column(plan.columns.group))
            pooled = rules.pool(proba, table, gene.to_pylist(), model.bundle.combination)
            yield gene, label_codes(table, plan.columns), pooled
    named_label = msgspec.structs.replace(plan.columns, label="label")
    for table in out_of_fold_rows(run, plan, _others(teacher)):
        yield (
            table.column("gene_id"),
            label_codes(table, named_label),
            np.column_stack([as_numpy(table.column(f"{c}_meta")) for c in plan.columns.classes]),
        )


def _others(teacher: TeachingRun) -> Sequence[str]:
    return [gene for gene, members in teacher.speakers.items() if not members]
