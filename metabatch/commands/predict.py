"""predict: streaming inference on parquet of any size."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, name_list, run_command
from metabatch.commands._options import names_of
from metabatch.commands.train_instance import thread_count
from metabatch.errors import UsageError
from metabatch.inference.request import UNCERTAIN_HIGH, UNCERTAIN_LOW, GenomeAsked, Request, check_request

USAGE = f"""Predict on parquet of any size, in bounded memory.

Usage:
  predict [options] MODEL DATA OUT
  predict [options] --genome FASTA MODEL OUT

MODEL is a run directory, its ensemble folder or a copy of that folder; DATA a parquet file or folder, or FASTA a genome
whose positions get the columns of the data set that build-dataset made for the model;
OUT a new folder for the parts: id columns, CLASS_score (base) where it is there, CLASS_meta, and CLASS_call
where the model has a threshold for the class; provenance.json says of which model and rows. Interrupted, the same
command goes on with the parts that were finished.

Options:
  --genome FASTA          Every position of the genes in …
  --annotation FILE       … a GTF or GFF3 file, or …
  --regions BED           … of regions, each scored like a gene of that span.
  --gene-ids LIST         Only these genes: names, or a file with one a line.
  --base-scores FILES     Base scores of these genes, as for build-dataset, where the model was trained on such.
  --base-weights FILE     Weights of openspliceai, where the model was trained on its scores.
  --mode NAME             meta_only: the meta-model scores every row. hybrid: it is asked only where the base model is
                          uncertain, elsewhere the base score stands; CLASS_hybrid is the final one. base_only: base
                          scores alone, no features needed, no calls [default: meta_only].
  --uncertain-low X       The base model is uncertain where its highest score of a class but the background
                          (neither, else the first) is at least this (default: {UNCERTAIN_LOW:g}) …
  --uncertain-high X      … and below this (default: {UNCERTAIN_HIGH:g}), and where a base score is missing.
  --coverage NAME         complete: every row; selective: the uncertain ones only [default: complete].
  --columns LIST          Further columns of DATA for the output, separated by commas.
  --format NAME           parquet; tsv (gzip); bedgraph: beside the parquet parts a track a class but the background,
                          and a strand if there is a strand column, for genome browsers [default: parquet].
  --position-base N       Number of the first position of a chromosome in DATA, 0 or 1 (default: 1; bedgraph only).
  --chrom-column NAME     Where the tracks' chromosome stands (default: the model's chromosome column, or chrom).
  --position-column NAME  Where their position stands (default: position).
  --strand-column NAME    Where their strand (+ or -) stands (default: strand if there).
  --fill-missing-kmers    Count k-mer columns that DATA lacks as 0.
  --threads N             Threads (default: the CPUs this process may use).
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    out, request = Path(arguments["OUT"]), request_of(arguments)
    check_request(request)

    genome = genome_of(arguments)

    from metabatch.inference.stream import predict  # its libraries take seconds: not for a wrong option

    with contextlib.ExitStack() as stack:
        data = arguments["DATA"]
        if genome is not None:
            from metabatch.inference.genome import open_genome
            from metabatch.rundir.scratch import private_folder

            data = open_genome(arguments["MODEL"], genome, stack.enter_context(private_folder("genome")))
        result = predict(
            arguments["MODEL"], data, out, request,
            fill_missing_kmers=arguments["--fill-missing-kmers"], threads=thread_count(arguments),
            force=arguments["--force"],
        )  # fmt: skip
    head = "already predicted, nothing was changed: " if result.already else ""
    kept = f", {result.kept_parts} of them kept from an interrupted attempt" if result.kept_parts else ""
    return Text(f"{head}{result.rows:,} rows in {result.parts} part(s) in {out}{kept}", result)


def genome_of(arguments: Arguments) -> GenomeAsked | None:
    """The genome asked for; None with a table."""
    names = ("annotation", "regions", "gene-ids", "base-scores", "base-weights")
    given = {name: arguments[f"--{name}"] for name in names if arguments[f"--{name}"] is not None}
    if arguments["--genome"] is None:
        if given:
            raise UsageError(f"--{next(iter(given))} decides nothing here", expected="it beside --genome")
        return None
    for one, other in (("annotation", "regions"), ("base-scores", "base-weights")):
        if one in given and other in given:
            raise UsageError(f"both --{one} and --{other}", expected="one of them")
    idle = ("position-base", "chrom-column", "position-column", "strand-column", "fill-missing-kmers")
    for name in idle:
        if arguments[f"--{name}"]:
            raise UsageError(f"--{name} decides nothing beside --genome", expected="it with a table only")
    if "annotation" not in given and "regions" not in given:
        raise UsageError("--genome alone does not say which positions", expected="--annotation or --regions with it")
    ids = tuple(names_of("gene_ids", given["gene-ids"])) if "gene-ids" in given else ()
    if "gene-ids" in given and not ids:
        raise UsageError(f"--gene-ids {given['gene-ids']} names nothing", expected="a gene id or more")
    return GenomeAsked(
        genome=Path(arguments["--genome"]),
        annotation=Path(given["annotation"]) if "annotation" in given else None,
        regions=Path(given["regions"]) if "regions" in given else None,
        scores=tuple(Path(p) for p in name_list(given.get("base-scores", ""))),
        weights=tuple(Path(p) for p in name_list(given.get("base-weights", ""))),
        gene_ids=ids,
    )


def request_of(arguments: Arguments) -> Request:
    """The options as `Request`."""
    kinds: dict[str, Callable[[str], Any]] = {
        "uncertain_low": float, "uncertain_high": float, "position_base": int, "columns": name_list
    }  # fmt: skip
    given = {}
    for field in Request.__struct_fields__:
        option = f"--{field.replace('_', '-')}"
        if arguments[option] is not None:
            try:
                given[field] = kinds.get(field, str)(arguments[option])
            except ValueError:
                raise UsageError(f"{option} {arguments[option]} cannot be used", expected="a number") from None
    return Request(**given)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
