"""build-dataset: from a genome and its annotation to a data set of positions."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metabatch.building.base import ScoreColumns
from metabatch.building.features import FeatureSpec
from metabatch.building.opening import BaseAsked
from metabatch.building.request import HOLDOUT_FRACTION, BuildRequest, check_request
from metabatch.building.rows import RowSampling
from metabatch.building.workers import WORKER_BYTES, default_workers
from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, name_list, run_command
from metabatch.commands._options import names_of
from metabatch.errors import UsageError

_FEATURES, _ROWS, _REQUEST = FeatureSpec(), RowSampling(), BuildRequest()

USAGE = f"""Build a data set: one row per position, grouped by gene, with base scores and features.

Usage:
  build-dataset [options] GENOME ANNOTATION OUT

GENOME is a FASTA file (plain, gzip, bgzip), ANNOTATION a GTF or GFF3 file of the same contigs, OUT a new folder for the
shards, gene_manifest.csv and dataset.json. A donor is the last base of an exon, an acceptor the first base of the next.
Interrupted, the same command goes on with the shards that were finished; any number of workers makes the same files.

Base scores (one of them):
  --base-scores FILES     A parquet file, a folder of them, or TSV: by gene_id and position, or by chrom and position;
                          or two bigWig files, of donor and acceptor, separated by a comma; or four, with scores of
                          each strand: donor plus, donor minus, acceptor plus, acceptor minus.
  --base-model NAME       pwm: position weights, fitted on the training genes of this data set. openspliceai:FILE or
                          spliceai: networks (extras of the package).
  --score-columns LIST    donor, acceptor and neither column of --base-scores (default: donor_score,acceptor_score,
                          neither_score; without a third name: 1 less the other two).

Genes:
  --sites NAME            Splice sites of all transcripts, or of each gene's canonical one [default: {_REQUEST.sites}].
  --gene-types LIST       Only genes of these types (protein_coding, …).
  --gene-ids LIST         Only these genes: names, or a file with one a line.
  --n-genes N             So many of them, by --subset-policy.
  --subset-policy NAME    all; random; errors: those in which the base model misses most sites
                          [default: {_REQUEST.subset_policy}].
  --holdout-fraction X    With pwm: part of the genes it is not fitted on; `plan` holds them out
                          (default: {HOLDOUT_FRACTION:g}).
  --holdout-chrom LIST    With pwm: chromosomes it is not fitted on, instead of a fraction.

Features:
  --kmer-sizes LIST       k of the k-mer counts; none: no counts (default: {",".join(map(str, _FEATURES.kmer_sizes))}).
  --kmer-window N         Of k-mers, GC content and complexity, nt, odd (default: {_FEATURES.kmer_window}).
  --score-context N       Base scores of so many neighbours on each side (default: {_FEATURES.score_context}).
  --peak-context N        Neighbours of the local peak (default: {_FEATURES.peak_context}).
  --reach N               Highest score within so many nt up- and downstream; 0: none (default: {_FEATURES.reach}).
  --nucleotides N         Bases on each side; 0: the position's own only (default: {_FEATURES.nucleotides}).

Rows (each gene has all its sites; multiples are of its sites):
  --all-positions         Every position of every gene.
  --best X                Best-scored negatives (default: {_ROWS.best:g}).
  --next-pool X           The next-best ones, of which … (default: {_ROWS.next_pool:g})
  --next-drawn X          … so many are drawn (default: {_ROWS.next_drawn:g}).
  --rows-per-gene N       Mean rows a gene; a gene's number goes with the root of its length
                          (default: {_ROWS.rows_per_gene}).
  --min-random N          Least number drawn of all other negatives (default: {_ROWS.min_random}).
  --rows-per-shard N      Rows of a shard, whole loci of overlapping genes (default: {_REQUEST.rows_per_shard}).
  --seed N                Of all draws (default: {_REQUEST.seed}).
  --workers N             Processes (default: the CPUs this process may use, and no more than memory holds at
                          {WORKER_BYTES >> 20} MiB each).

Common:
{COMMON}
{EXIT_CODES}"""

_OF_FEATURES = ("kmer_sizes", "kmer_window", "score_context", "peak_context", "reach", "nucleotides")
_OF_ROWS = ("best", "next_pool", "next_drawn", "rows_per_gene", "min_random")
_BIGWIG = (".bw", ".bigwig")


def action(arguments: Arguments) -> Text:
    base, request = base_of(arguments), request_of(arguments)
    check_request(request, fits_base=base.fitted)
    workers = default_workers() if arguments["--workers"] is None else _number(arguments, "workers", int)
    if workers < 1:
        raise UsageError(f"--workers {workers} cannot be used", expected="1 or more")

    from metabatch.building.build import build_dataset  # its libraries take seconds: not for a wrong option

    result = build_dataset(
        Path(arguments["GENOME"]), Path(arguments["ANNOTATION"]), Path(arguments["OUT"]), base, request,
        workers=workers, force=arguments["--force"],
    )  # fmt: skip
    head = "already built, nothing was changed: " if result.already else ""
    kept = f", {result.kept_shards} of them kept from an interrupted attempt" if result.kept_shards else ""
    return Text(
        f"{head}{result.genes:,} genes, {result.rows:,} rows in {result.shards} shard(s) in {arguments['OUT']}{kept}",
        result,
    )


def base_of(arguments: Arguments) -> BaseAsked:
    """The base model asked for."""
    scores, model, columns = arguments["--base-scores"], arguments["--base-model"], arguments["--score-columns"]
    if (scores is None) == (model is None):
        raise UsageError(
            "both --base-scores and --base-model" if scores else "neither --base-scores nor --base-model",
            expected="one of them: the meta-model corrects a base model",
            next_step="--base-model pwm needs nothing else",
        )
    if columns is not None and scores is None:
        raise UsageError("--score-columns decides nothing here", expected="it beside --base-scores")
    if scores is not None:
        return _scores(scores, columns)
    name, _, path = model.partition(":")
    if name not in ("pwm", "openspliceai", "spliceai") or bool(path) != (name == "openspliceai"):
        raise UsageError(f"--base-model {model} cannot be used", expected="pwm, openspliceai:FILE or spliceai")
    return BaseAsked(name, (Path(path),) if path else ())


def _scores(scores: str, columns: str | None) -> BaseAsked:
    paths = tuple(Path(p) for p in name_list(scores))
    if len(paths) in (2, 4) and all(p.suffix.lower() in _BIGWIG for p in paths):
        if columns is not None:
            raise UsageError("--score-columns decides nothing here: bigWig files have no columns")
        return BaseAsked("bigwig", paths)
    if len(paths) != 1 or paths[0].suffix.lower() in _BIGWIG:
        raise UsageError(
            f"--base-scores {scores} cannot be used",
            expected="one table, two bigWig files (donor,acceptor), or four (donor and acceptor, plus before minus)",
        )
    given = name_list(columns) if columns is not None else None
    if given is not None and len(given) not in (2, 3):
        raise UsageError(
            f"--score-columns {columns} cannot be used", expected="two or three names: donor,acceptor,neither"
        )
    own = (
        ScoreColumns()
        if given is None
        else ScoreColumns(donor=given[0], acceptor=given[1], neither=given[2] if len(given) == 3 else None)
    )
    return BaseAsked("table", paths, own)


def request_of(arguments: Arguments) -> BuildRequest:
    """The options as `BuildRequest`."""
    _refuse_idle(arguments)
    return BuildRequest(
        features=FeatureSpec(**_given(arguments, _OF_FEATURES)),
        sampling=RowSampling(all_positions=arguments["--all-positions"], **_given(arguments, _OF_ROWS)),
        sites=arguments["--sites"],
        subset_policy=arguments["--subset-policy"],
        **_given(
            arguments,
            ("gene_types", "gene_ids", "n_genes", "holdout_fraction", "holdout_chrom", "rows_per_shard", "seed"),
        ),
    )


def _refuse_idle(arguments: Arguments) -> None:
    """Options of rows beside others that leave them nothing to decide."""
    given = [_flag(field) for field in _OF_ROWS if arguments[_flag(field)] is not None]
    if arguments["--all-positions"] and given:
        raise UsageError(f"{given[0]} decides nothing beside --all-positions", expected="one of them")
    nothing_drawn = arguments["--next-drawn"] is not None and _number(arguments, "next_drawn", float) == 0
    if nothing_drawn and "--next-pool" in given and _number(arguments, "next_pool", float) > 0:
        raise UsageError("--next-pool decides nothing beside --next-drawn 0", expected="a number to draw, or no pool")


_KINDS: dict[str, Callable[[str], Any]] = {
    "best": float, "next_pool": float, "next_drawn": float, "holdout_fraction": float,
}  # fmt: skip


def _given(arguments: Arguments, fields: tuple[str, ...]) -> dict[str, Any]:
    kinds = _KINDS | {
        "kmer_sizes": _sizes, "gene_types": name_list, "gene_ids": _ids, "holdout_chrom": name_list,
    }  # fmt: skip
    found = {f: _number(arguments, f, kinds.get(f, int)) for f in fields if arguments[_flag(f)] is not None}
    for field in ("gene_types", "gene_ids", "holdout_chrom"):
        if found.get(field) == ():
            raise UsageError(f"{_flag(field)} {arguments[_flag(field)]} names nothing", expected="a name or more")
    return found


def _number(arguments: Arguments, field: str, kind: Callable[[str], Any]) -> Any:
    text = arguments[_flag(field)]
    try:
        return kind(text)
    except ValueError:
        raise UsageError(f"{_flag(field)} {text} cannot be used", expected="a number") from None


def _flag(field: str) -> str:
    return f"--{field.replace('_', '-')}"


def _sizes(text: str) -> tuple[int, ...]:
    if text == "none":
        return ()
    sizes = tuple(int(part) for part in name_list(text))
    if not sizes:
        raise UsageError(f"--kmer-sizes {text!r} names nothing", expected="sizes in nt; none: no counts")
    return sizes


def _ids(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names_of("gene_ids", text)))


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
