"""What a prediction comes to: model and data looked at, columns and parts decided, nothing written yet."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import pyarrow as pa
import xgboost as xgb

from metabatch import __version__
from metabatch.data.schema import ColumnInfo, united
from metabatch.ensemble.bundle import BUNDLE_FILE, find_bundle, load_bundle
from metabatch.ensemble.estimator import MetaModel
from metabatch.errors import InputError
from metabatch.inference.modes import Output, plan_output
from metabatch.inference.request import Request
from metabatch.inference.source import Part, Source
from metabatch.inference.tracks import Places, find_places
from metabatch.rundir.bundle import Bundle
from metabatch.rundir.fingerprint import hash_texts
from metabatch.rundir.layout import FORMAT_VERSION
from metabatch.rundir.manifests import load, to_json
from metabatch.rundir.markers import MARKER, check_stage
from metabatch.rundir.publish import sha256_file

log = logging.getLogger(__name__)
# Features named in a warning.
_NAMED = 5


@dataclass(frozen=True)
class Job:
    """What is to be done.

    metadata : where the output comes from, the same for all parts. fingerprint : of all that decides the output; key :
    of what decides the parts.
    """

    output: Output
    estimator: MetaModel | None
    source: Source[Any]
    parts: Sequence[Part]
    places: Places | None
    inputs: dict[str, str]
    metadata: dict[str, str]
    fingerprint: str
    key: str

    def name(self, part: Part) -> str:
        return f"{part.stem}.{'tsv.gz' if self.output.request.format == 'tsv' else 'parquet'}"

    def schema(self, part: Part) -> pa.Schema:
        """Of the part's file, with where it comes from in the metadata."""
        return self.output.schema.with_metadata(self.metadata | part.origin)

    def provenance(self) -> bytes:
        """provenance.json: the metadata of the parquet parts, which other formats have no room for."""
        parts = {self.name(part): part.origin for part in self.parts}
        return to_json({"format_version": FORMAT_VERSION, **self.metadata, "parts": parts})


def plan_prediction(
    model: str | os.PathLike[str], source: Source[Any], request: Request, *, fill_missing_kmers: bool,
    threads: int | None, part_rows: int,
) -> Job:  # fmt: skip
    """Look at model and data, and refuse what cannot be predicted."""
    folder = find_bundle(model)
    bundle = load(folder / BUNDLE_FILE, Bundle)
    where, schemas = source.where, source.schemas()
    schema = united(schemas)
    places = find_places(request, bundle, schema) if request.format == "bedgraph" else None
    further = _further_types(schemas, request.columns, where)
    if places is not None:  # the tracks are made from the parts
        ids = {bundle.columns.group, *bundle.columns.ids}
        more = [c for c in places.columns if c not in ids and c not in further]
        further |= _further_types(schemas, more, where)
    output = plan_output(bundle, schema, further, request, where)
    estimator = None
    if output.asks:
        estimator = load_bundle(model, fill_missing_kmers=fill_missing_kmers, threads=threads)
        estimator.check_columns(list(schema), where=where)
        _check_types(estimator, schema, where)
        _tell_absent(estimator, schema, len(schemas))
        if not bundle.thresholds:
            log.info("the model has no thresholds (no out-of-fold scores): CLASS_call is not written")
    else:
        check_stage(folder, stage="consolidate", fingerprint=bundle.fingerprint)
    if bundle.columns.group not in schema:
        log.warning("the data has no column %s: the predictions are written without it", bundle.columns.group)
    _check_format(output)
    inputs = {"model": sha256_file(folder / MARKER)} | source.inputs()
    decided = [bundle.fingerprint, *(f"{k} {v}" for k, v in sorted(inputs.items())), f"part_rows {part_rows}"]
    of_parts = msgspec.structs.replace(
        request, format="tsv" if request.format == "tsv" else "parquet", position_base=None, chrom_column=None,
        position_column=None, strand_column=None,
    )  # fmt: skip
    made_by = [f"metabatch {__version__}", f"xgboost {xgb.__version__}", f"pyarrow {pa.__version__}"]
    return Job(
        output=output,
        estimator=estimator,
        source=source,
        parts=source.parts(part_rows),
        places=places,
        inputs=inputs,
        metadata=_provenance(output, inputs["model"]),
        fingerprint=hash_texts([*decided, to_json(request).decode()]),
        key=hash_texts([*decided, to_json(of_parts).decode(), output.schema.to_string(), *made_by]),
    )


def _further_types(files: Mapping[str, pa.Schema], names: Sequence[str], where: str) -> dict[str, pa.DataType]:
    """The type of each of `names` that holds its values of every file; the data's own where all files agree."""
    schemas = [pa.schema([t.field(n).remove_metadata() for n in names if n in t.names]) for t in files.values()]
    try:
        together = pa.unify_schemas(schemas, promote_options="permissive") if schemas else pa.schema([])
    except pa.ArrowException as error:
        raise InputError(
            f"a column of --columns has types that do not go together: {str(error).splitlines()[0]}",
            expected="the same kind of values in every file",
            where=where,
        ) from None
    for name in names:
        if name not in together.names:
            raise InputError(f"the data has no column {name}", expected="the columns named by --columns", where=where)
    return {name: together.field(name).type for name in names}


def _check_types(estimator: MetaModel, schema: Mapping[str, ColumnInfo], where: str) -> None:
    for name in estimator.feature_names:
        if name in schema and schema[name].dtype is None and schema[name].arrow_type != "null":
            raise InputError(f"column {name} holds {schema[name].arrow_type}", expected="numbers", where=where)


def _tell_absent(estimator: MetaModel, schema: Mapping[str, ColumnInfo], files: int) -> None:
    """A warning of the features that some of the files lack."""
    absent = {n: schema[n].absent_from for n in estimator.feature_names if n in schema and schema[n].absent_from}
    if absent:
        lacking = len({file for names in absent.values() for file in names})
        named = ", ".join(list(absent)[:_NAMED]) + (", …" if len(absent) > _NAMED else "")
        log.warning(
            "%d feature(s) are absent from %d of %d files and filled there as in training: %s",
            len(absent), lacking, files, named,
        )  # fmt: skip


def _check_format(output: Output) -> None:
    for name, kind in output.further.items() if output.request.format == "tsv" else ():
        if not _is_text(kind):
            raise InputError(
                f"column {name} holds {kind}", expected="numbers, text or times with --format tsv",
                next_step="--format parquet, or leave it out of --columns",
            )  # fmt: skip


def _is_text(kind: pa.DataType) -> bool:
    """Whether polars writes values of this type as text."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    return any(
        (
            pa.types.is_integer(kind), pa.types.is_floating(kind), pa.types.is_boolean(kind), pa.types.is_null(kind),
            pa.types.is_decimal(kind) and not pa.types.is_decimal256(kind),
            pa.types.is_string(kind), pa.types.is_large_string(kind), pa.types.is_string_view(kind),
            pa.types.is_date(kind), pa.types.is_time(kind), pa.types.is_timestamp(kind),
        )
    )  # fmt: skip


def _provenance(output: Output, model_sha256: str) -> dict[str, str]:
    """What stands in the metadata of every parquet part; of the part itself: its `origin`."""
    found = {
        "metabatch_version": __version__,
        "model_fingerprint": output.bundle.fingerprint,
        "model_sha256": model_sha256,
        "combination": output.bundle.combination.method,
        "mode": output.request.mode,
        "coverage": output.request.coverage,
    }
    if output.bundle.missing:
        found["missing_instances"] = ",".join(str(i) for i in output.bundle.missing)
    if output.request.zone is not None:
        found["uncertain_low"], found["uncertain_high"] = (str(bound) for bound in output.request.zone)
    return found
