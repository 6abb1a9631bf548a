"""`build-dataset`: from a genome, its annotation and a base model to shards of positions."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa

from metabatch import __version__
from metabatch.building.annotation import read_annotation
from metabatch.building.base import Source, source_of
from metabatch.building.dataset import BuiltDataset, Recipe, gene_manifest
from metabatch.building.features import FEATURES_VERSION
from metabatch.building.genes import Gene, with_loci
from metabatch.building.genome import Genome
from metabatch.building.opening import BaseAsked, opened
from metabatch.building.positions import Positions
from metabatch.building.request import BuildRequest, check_request
from metabatch.building.rows import targets
from metabatch.building.selection import held_out, missed_sites, subset, wanted_genes
from metabatch.building.shards import ShardPlan, cut_shards, write_shard
from metabatch.building.source_checks import check_source
from metabatch.building.unlabelled import unlabelled_sites
from metabatch.building.workers import each
from metabatch.errors import InputError
from metabatch.resources.progress import Progress
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.resources.usage import trim_memory
from metabatch.rundir.fingerprint import hash_texts
from metabatch.rundir.lock import hold_folder
from metabatch.rundir.manifests import Done, FileRecord, load, save, to_json
from metabatch.rundir.markers import check_stage, is_marked
from metabatch.rundir.publish import attempt_folder
from metabatch.rundir.recipe import DATASET_FILE, MANIFEST_FILE
from metabatch.rundir.scratch import private_folder
from metabatch.rundir.store import Store, earlier_output, no_empty_folder, tidy_parts

log = logging.getLogger(__name__)
STAGE = "build-dataset"


@dataclass(frozen=True)
class BuildResult:
    """shards : of the data set; kept_shards : of an interrupted attempt, used again."""

    genes: int
    rows: int
    shards: int
    already: bool
    kept_shards: int = 0


def build_dataset(
    genome: Path, annotation: Path, out: Path, base: BaseAsked, request: BuildRequest, *, workers: int = 1,
    force: bool = False,
) -> BuildResult:  # fmt: skip
    """Write a folder of shards with dataset.json, gene_manifest.csv and done.json.

    The same call after a kill goes on with the shards that were finished, to the same bytes, with any number of
    workers.

    Raises
    ------
    UsageError
        Options that cannot be used.
    InputError
        A genome, annotation or base scores that do not go together, or `out` holding something else.
    """
    check_request(request, fits_base=base.fitted)
    sources = _sources(genome, annotation, base)
    texts = [f"{name} {s.sha256}" for name, s in sorted(sources.items())]
    made_by = [f"metabatch {__version__}", f"pyarrow {pa.__version__}", f"numpy {np.__version__}"]
    made_by += [f"features {FEATURES_VERSION}"]
    fingerprint = hash_texts([*texts, base.text(), to_json(request).decode(), *made_by])
    done = earlier_output(out, STAGE)
    if done is not None and not force:
        return _finished(out, done, fingerprint)
    with no_empty_folder(out), stop_on_signal() as stop, hold_folder(out):
        done = earlier_output(out, STAGE)
        if done is not None and not force:
            return _finished(out, done, fingerprint)
        with private_folder("genome") as scratch:
            return _build(genome, annotation, out, base, request, sources, fingerprint, scratch, workers, stop, done)


def _build(
    genome: Path, annotation: Path, out: Path, base: BaseAsked, request: BuildRequest, sources: dict[str, Source],
    fingerprint: str, scratch: Path, workers: int, stop: StopFlag, done: Done | None,
) -> BuildResult:  # fmt: skip
    annotated = with_loci(read_annotation(annotation, sites=request.sites, stop=stop.check))
    genes = wanted_genes(annotated, request)
    trim_memory()  # what reading the annotation took
    sequence = Genome(genome, scratch, stop.check)
    said = sequence.check(genes, str(annotation))
    chosen = partial(_errors, genes, sequence, base, request, scratch, workers, stop)
    genes = subset(genes, request, chosen)
    held, how = held_out(genes, request) if base.fitted else (set(), "")
    known = [s for name, s in sources.items() if name.startswith("base ")]
    model = opened(base, [g for g in genes if g.gene_id not in held], sequence, scratch, known, stop.check)
    said += [*check_source(model, genes, stop.check), *unlabelled_sites(genes, annotated)]
    del annotated
    for text in said:
        log.warning("%s", text)
    positions = Positions(sequence, model, request.features)
    rows = targets(request.sampling, np.array([g.length for g in genes]))
    shards = cut_shards(genes, rows.tolist(), request.sampling, request.rows_per_shard)
    store = Store(out, fingerprint)
    store.recover([s.name for s in shards], published=is_marked(out))
    try:
        kept = _make_shards(shards, store, out, positions, request, workers, stop)
    except InputError:  # of the inputs: with other ones, these shards are of no use
        store.clear()
        raise
    records = {s.name: store.kept(s.name) for s in shards}
    files = {n: FileRecord(bytes=r.bytes, sha256=r.sha256) for n, r in records.items() if r is not None}
    total = sum(r.rows for r in records.values() if r is not None)
    with attempt_folder(out) as folder:
        shard_of = {g.gene_id: s.name for s in shards for g in s.genes}
        gene_manifest(genes, shard_of, [store.files / s.name for s in shards], held).write_csv(folder / MANIFEST_FILE)
        built = BuiltDataset(
            metabatch_version=__version__, request=request,
            recipe=Recipe(features_version=FEATURES_VERSION, features=request.features, base=model.describe()),
            genome=sources["genome"], annotation=sources["annotation"], holdout=how, genes=len(genes), rows=total,
            shards=files, warnings=tuple(said),
        )  # fmt: skip
        save(folder / DATASET_FILE, built)
        store.take(folder)
    store.publish(STAGE, fingerprint, {name: s.sha256 for name, s in sources.items()}, done)
    return BuildResult(len(genes), total, len(shards), already=False, kept_shards=kept)


def _make_shards(
    shards: Sequence[ShardPlan], store: Store, out: Path, positions: Positions, request: BuildRequest, workers: int,
    stop: StopFlag,
) -> int:  # fmt: skip
    """Have every shard in `store`; how many were there from before."""
    missing = [s for s in shards if store.kept(s.name) is None]
    with (
        Progress("build-dataset", sum(len(s.genes) for s in shards), "genes") as progress,
        attempt_folder(out) as folder,
    ):
        progress.skip(sum(len(s.genes) for s in shards) - sum(len(s.genes) for s in missing))
        work = partial(_write, folder, request)
        for place, rows in each(missing, work, positions, workers, stop):
            shard = missing[place]
            store.keep(folder / shard.name, shard.name, rows=rows)
            progress.advance(len(shard.genes))
    kept = len(shards) - len(missing)
    if kept:
        log.info("%d of %d shard(s) were finished before the interruption", kept, len(shards))
    return kept


def _write(folder: Path, request: BuildRequest, positions: Positions, plan: ShardPlan, stop: Callable[[], None]) -> int:
    own = folder / plan.name  # a folder of its own: the store takes in whole folders
    own.mkdir()
    return write_shard(own / plan.name, plan, positions, request.sampling, request.seed, stop)


def _errors(
    genes: Sequence[Gene], sequence: Genome, base: BaseAsked, request: BuildRequest, scratch: Path, workers: int,
    stop: StopFlag,
) -> list[int]:  # fmt: skip
    """Sites that the base model misses, of each gene.

    A base model that is fitted here is fitted on all of them for this, and again on what is chosen.
    """
    model = opened(base, genes, sequence, scratch)
    check_source(model, genes, stop.check)
    positions = Positions(sequence, model, request.features)
    found = [0] * len(genes)
    with Progress("errors of the base model", len(genes), "genes") as progress:
        for place, number in each(genes, _errors_of, positions, workers, stop):
            found[place] = number
            progress.advance(1)
    log.warning(
        "the genes are those with the most errors of the base model: metrics on them are not those of all genes"
    )
    return found


def _errors_of(positions: Positions, gene: Gene, stop: Callable[[], None]) -> int:
    stop()
    return missed_sites(gene, positions.material(gene).scores)


def _sources(genome: Path, annotation: Path, base: BaseAsked) -> dict[str, Source]:
    for file, what in ((genome, "genome"), (annotation, "annotation")):
        if not file.is_file():
            raise InputError(f"{what} {file} does not exist", expected="a file")
    scores = {f"base {i} {s.name}": s for i, s in enumerate(base.sources())}
    return {"genome": source_of(genome), "annotation": source_of(annotation), **scores}


def _finished(out: Path, done: Done, fingerprint: str) -> BuildResult:
    """What lies finished in `out`, if it is what is asked for."""
    if done.fingerprint != fingerprint:
        raise InputError(
            f"{out} holds a data set of other inputs or options",
            expected="a new folder, or the same command as before",
            next_step="choose another OUT, or --force to replace it",
        )
    check_stage(out, stage=STAGE, fingerprint=fingerprint)
    tidy_parts(out)
    built = load(out / DATASET_FILE, BuiltDataset)
    return BuildResult(built.genes, built.rows, len(built.shards), already=True)
