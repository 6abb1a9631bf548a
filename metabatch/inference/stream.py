"""Prediction on parquet of any size: one batch in memory at a time, one output part at a time, finished parts kept."""

from __future__ import annotations

import gzip
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from metabatch.errors import InputError
from metabatch.inference.job import Job, plan_prediction
from metabatch.inference.modes import site_classes
from metabatch.inference.request import Request, check_request
from metabatch.inference.source import PART_ROWS, ParquetRows, Part, Source
from metabatch.inference.tracks import Places, write_tracks
from metabatch.inference.writing import parquet_writer, tsv_writer
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import Done
from metabatch.rundir.markers import check_stage, is_marked
from metabatch.rundir.publish import attempt_folder, write_bytes
from metabatch.rundir.store import PartRecord, Store, earlier_output, no_empty_folder, tidy_parts

log = logging.getLogger(__name__)
_DEFAULT = Request()
PROVENANCE = "provenance.json"


@dataclass(frozen=True)
class PredictResult:
    """rows : written; kept_parts : parts of an interrupted attempt that were used again."""

    rows: int
    parts: int
    already: bool
    kept_parts: int = 0


def predict(
    model: str | os.PathLike[str], data: str | os.PathLike[str] | Source[Any], out: Path,
    request: Request = _DEFAULT, *,
    fill_missing_kmers: bool = False, threads: int | None = None, force: bool = False, part_rows: int = PART_ROWS,
) -> PredictResult:  # fmt: skip
    """Write a folder of parts: group and id columns, base scores, `{class}_meta`, `{class}_call`, as `request` says;
    and provenance.json.

    The same call after a kill goes on with the parts that were finished, to the same bytes.

    Parameters
    ----------
    model : path
        Run directory, bundle or copied bundle.
    data : path
        Parquet file or folder. A feature absent from some of its files is filled as in training, with a warning;
        absent from all, it is an error. Or any `Source` of rows.
    out : Path
        New folder; its files appear complete, with a done.json, or not at all.
    force : bool
        Replace earlier predictions in `out` once the new ones are complete.
    part_rows : int
        Most rows of the data in a part; more only where a row group has more.

    Raises
    ------
    UsageError
        A request that cannot be used.
    InputError
        Features or base scores missing, unusable values, or `out` holding something else.
    """
    check_request(request)
    source = ParquetRows(Path(data)) if isinstance(data, str | os.PathLike) else data
    job = plan_prediction(
        model, source, request, fill_missing_kmers=fill_missing_kmers, threads=threads, part_rows=part_rows
    )
    done = earlier_output(out, "predict")
    if done is not None and not force:
        finished = _finished(job, done, out, f"predictions of {model} on {source.where} with these options")
        tidy_parts(out)
        return finished
    with no_empty_folder(out), stop_on_signal() as stop, hold_folder(out):
        done = earlier_output(out, "predict")  # somebody may have come to an end while we waited for the folder
        if done is not None and not force:
            return _finished(job, done, out, f"predictions of {model} on {source.where} with these options")
        store = Store(out, job.key)
        store.recover([job.name(p) for p in job.parts], published=is_marked(out))
        try:
            records, kept = _make_parts(job, store, out, stop)
        except InputError:  # of the data: with other data, these parts are of no use
            store.clear()
            raise
        asked = sum(r.counts["asked"] for r in records)
        log.info("the meta-model was asked for %d of %d rows", asked, sum(p.rows for p in job.parts))
        if job.places is not None:
            _make_tracks(job, job.places, store, out, stop)
        with attempt_folder(out) as folder:
            write_bytes(folder / PROVENANCE, job.provenance())
            store.take(folder)
        store.publish("predict", job.fingerprint, job.inputs, done)
    return PredictResult(sum(r.rows for r in records), len(job.parts), already=False, kept_parts=kept)


def _finished(job: Job, done: Done, out: Path, wanted: str) -> PredictResult:
    """What lies finished in `out`, if it is what is asked for."""
    if done.fingerprint != job.fingerprint:
        raise InputError(
            f"{out} holds predictions of another model, on other data, or with other options",
            expected=f"{wanted}, or a new folder",
            next_step="choose another OUT, or --force to replace them",
        )
    check_stage(out, stage="predict", fingerprint=job.fingerprint)
    rows = sum(_rows_in(out / job.name(part)) for part in job.parts)
    return PredictResult(rows, len(job.parts), already=True)


def _make_parts(job: Job, store: Store, out: Path, stop: StopFlag) -> tuple[list[PartRecord], int]:
    """Have every part in `store`: their records, and how many were there from before."""
    records, kept = [], 0
    with Progress("predict", sum(p.rows for p in job.parts), "rows") as progress:
        for part in job.parts:
            stop.check()
            record = store.kept(job.name(part))
            if record is None:
                record = _make_part(job, part, store, out, stop, progress)
            else:
                kept += 1
                progress.skip(part.rows)
            records.append(record)
    if kept:
        log.info("%d of %d part(s) were finished before the interruption", kept, len(job.parts))
    return records, kept


def _make_part(job: Job, part: Part, store: Store, out: Path, stop: StopFlag, progress: Progress) -> PartRecord:
    name, rows, asked = job.name(part), 0, 0
    writer = tsv_writer if job.output.request.format == "tsv" else parquet_writer
    with attempt_folder(out) as folder:
        with writer(folder / name, job.schema(part)) as write:
            for step in job.source.steps(part, job.output, job.estimator):
                write(step.table)
                rows, asked = rows + step.table.num_rows, asked + step.asked
                progress.advance(step.rows)
                stop.check()
        return store.keep(folder, name, rows=rows, counts={"asked": asked})


def _make_tracks(job: Job, places: Places, store: Store, out: Path, stop: StopFlag) -> None:
    parts = [store.files / job.name(part) for part in job.parts]
    values = {name: job.output.final(name) for name in site_classes(job.output.bundle)}
    with attempt_folder(out) as folder:
        tracks, scratch = folder / "tracks", folder / "scratch"
        tracks.mkdir()
        scratch.mkdir()
        write_tracks(parts, values, places, tracks, scratch, stop)
        store.take(tracks)


def _rows_in(part: Path) -> int:
    """Rows of a finished part."""
    if part.suffix != ".gz":
        return int(pq.read_metadata(part).num_rows)
    with gzip.open(part) as lines:
        return sum(1 for _ in lines) - 1
