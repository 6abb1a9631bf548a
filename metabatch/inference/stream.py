"""Prediction on parquet of any size: one batch in memory at a time, one output part per input file."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from metabatch import __version__
from metabatch.data.batches import Reader, as_float32, carried, whole_files
from metabatch.data.schema import ColumnInfo, carried_types, union_schema
from metabatch.data.shards import find_parquet
from metabatch.ensemble.bundle import find_bundle, load_bundle
from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.resources.signals import stop_on_signal
from metabatch.rundir.fingerprint import hash_texts
from metabatch.rundir.layout import is_passing
from metabatch.rundir.lease import tidy
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import CarriedType, Done, load
from metabatch.rundir.markers import MARKER, check_stage, finish_stage, is_marked
from metabatch.rundir.publish import attempt_folder, sha256_file

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictResult:
    rows: int
    parts: int
    already: bool


def predict(
    model: str | os.PathLike[str], data: str | os.PathLike[str], out: Path, *, fill_missing_kmers: bool = False,
    threads: int | None = None, force: bool = False,
) -> PredictResult:  # fmt: skip
    """Write a folder of parquet parts: group and id columns, base scores, `{class}_meta`, `{class}_call`.

    Parameters
    ----------
    model : path
        Run directory, bundle or copied bundle.
    data : path
        Parquet file or folder. A column absent from some of its files is filled as in training; absent
        from all, it is an error.
    out : Path
        New folder; it appears complete, with a done.json, or not at all.
    force : bool
        Replace earlier predictions in `out` once the new ones are complete.

    Raises
    ------
    InputError
        Features missing, unusable values, or `out` holding something else.
    """
    estimator = load_bundle(model, fill_missing_kmers=fill_missing_kmers, threads=threads)
    files = find_parquet(data)
    schema = union_schema(files)
    estimator.check_columns(list(schema), where=str(data))
    _check_types(estimator, schema, str(data))
    inputs = {"model": sha256_file(find_bundle(model) / MARKER)} | {f.name: sha256_file(f) for f in files}
    fingerprint = hash_texts([estimator.bundle.fingerprint, *(f"{k} {v}" for k, v in sorted(inputs.items()))])
    done = _predicted(out)
    if done is not None and not force:
        if done.fingerprint != fingerprint:
            raise InputError(
                f"{out} holds predictions of another model, or on other data",
                expected=f"predictions of {model} on {data}, or a new folder",
                next_step="choose another OUT, or --force to replace them",
            )
        check_stage(out, stage="predict", fingerprint=fingerprint)
        rows = sum(pq.read_metadata(out / name).num_rows for name in done.files)
        tidy(out)
        return PredictResult(rows, len(done.files), already=True)
    if estimator.bundle.columns.group not in schema:
        log.warning("the data has no column %s: the predictions are written without it", estimator.bundle.columns.group)
    if not estimator.bundle.thresholds:
        log.info("the model has no thresholds (no out-of-fold scores): CLASS_call is not written")
    types = carried_types(schema, (estimator.bundle.columns.group, *estimator.bundle.columns.ids))
    rows, parts = 0, 0
    with _no_empty_folder(out), stop_on_signal() as stop, hold_folder(out), attempt_folder(out) as folder:
        total = sum(pq.read_metadata(f).num_rows for f in files)
        with Progress("predict", total, "rows") as progress:
            for number, file in enumerate(files):
                written = 0
                for batch in _predict_file(estimator, file, types, folder / f"part-{number:05d}.parquet"):
                    written += batch
                    progress.advance(batch)
                    stop.check()
                rows, parts = rows + written, parts + (written > 0)
        finish_stage(folder, out, stage="predict", fingerprint=fingerprint, inputs=inputs)
    return PredictResult(rows, parts, already=False)


def _predicted(out: Path) -> Done | None:
    """The marker of the predictions in `out`; None for a new or empty folder.

    Raises
    ------
    InputError
        Anything else lies there: it is never touched, whatever was asked.
    """
    if is_marked(out):
        done = load(out / MARKER, Done)
        if done.stage == "predict":
            return done
    elif not out.exists() or (out.is_dir() and all(is_passing(p.name) for p in out.iterdir())):
        return None
    raise InputError(
        f"{out} exists and holds other files",
        expected="a new folder, or one that `predict` wrote",
        next_step="choose another OUT",
    )


@contextlib.contextmanager
def _no_empty_folder(out: Path) -> Iterator[None]:
    """Take `out` away again when the block fails before anything was published into it."""
    try:
        yield
    except BaseException:  # an interrupt too must leave nothing behind; it goes on
        with contextlib.suppress(OSError):  # not empty: it was there before
            out.rmdir()
        raise


def _check_types(estimator: MetaModel, schema: Mapping[str, ColumnInfo], where: str) -> None:
    for name in estimator.feature_names:
        if name in schema and schema[name].dtype is None and schema[name].arrow_type != "null":
            raise InputError(f"column {name} holds {schema[name].arrow_type}", expected="numbers", where=where)


def _predict_file(estimator: MetaModel, file: Path, types: Mapping[str, CarriedType], target: Path) -> Iterator[int]:
    """Predict one file batch by batch; yields the rows of each batch written."""
    columns = estimator.bundle.columns
    names = [*estimator.feature_names, columns.group, *columns.ids, *columns.scores.values()]
    writer: pq.ParquetWriter | None = None
    metadata = {
        "metabatch_version": __version__,
        "model_fingerprint": estimator.bundle.fingerprint,
        "source": file.name,
    }
    try:
        for table in Reader(whole_files([file]), names, columns.group):
            part = output_batch(estimator, table, types, file.name)
            if writer is None:
                writer = pq.ParquetWriter(target, part.schema.with_metadata(metadata), compression="zstd")
            writer.write_table(part.cast(writer.schema) if part.schema != writer.schema else part)
            yield part.num_rows
    finally:
        if writer is not None:
            writer.close()


def output_batch(estimator: MetaModel, table: pa.Table, types: Mapping[str, CarriedType], where: str) -> pa.Table:
    """Group and id columns (`types`), `{class}_score` where the data has it, `{class}_meta` (float32).

    `{class}_call` (bool), for classes with a threshold: whether `{class}_meta` reaches it.
    """
    columns = estimator.bundle.columns
    proba = estimator.predict_batch(table, where=where)
    data: dict[str, object] = dict(carried(table, types))
    for name, column in columns.scores.items():
        if column in table.column_names:
            data[f"{name}_score"] = as_float32(table.column(column))
    for code, name in enumerate(columns.classes):
        meta = proba[:, code].astype("float32")
        data[f"{name}_meta"] = pa.array(meta)
        if name in estimator.bundle.thresholds:  # of the number as it is written: a reader comes to the same calls
            data[f"{name}_call"] = pa.array(meta >= estimator.bundle.thresholds[name])
    return pa.table(data)
