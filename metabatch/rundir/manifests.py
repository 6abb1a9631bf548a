"""The typed JSON files of a run. Unknown fields are refused: another version must not pass as this one."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import msgspec

from metabatch.errors import InputError
from metabatch.options import Options
from metabatch.resources.law import MemoryLaw
from metabatch.rundir.layout import FORMAT_VERSION
from metabatch.rundir.publish import write_bytes

MissingPolicy = Literal["native", "zero-as-missing", "sentinel"]
AbsentPolicy = Literal["zero", "null"]
CarriedType = Literal["int64", "uint64", "double", "string"]


class Manifest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Shard(Manifest, frozen=True, kw_only=True):
    """One parquet file as it was when the plan was made. `row_groups`: rows of each row group."""

    name: str
    bytes: int
    mtime_ns: int
    sha256: str
    rows: int
    row_groups: tuple[int, ...]


class Dataset(Manifest, frozen=True, kw_only=True):
    """The data set under a plan. `shards` are in canonical order (by sha256), not by name."""

    path: str
    genes: int
    positions: int
    features: int
    shards: tuple[Shard, ...]


class Feature(Manifest, frozen=True, kw_only=True):
    """One column of the matrix: how it is typed, filled and encoded, in training and inference alike.

    sentinel : the value that missing cells get, with that policy.
    """

    name: str
    dtype: Literal["uint8", "int8", "uint16", "int16", "uint32", "int32", "float32"]
    missing: MissingPolicy
    if_absent: AbsentPolicy
    group: Literal["score", "kmer", "context"]
    sentinel: float | None = None


class ExcludedColumn(Manifest, frozen=True, kw_only=True):
    name: str
    reason: str


class FeatureSet(Manifest, frozen=True, kw_only=True):
    """features.json. All three lists are in matrix order.

    densities : part of a feature's cells that the matrix stores (the rest is missing).
    bins : bins of each feature (cuts.parquet holds where they begin).
    """

    format_version: int = FORMAT_VERSION
    features: tuple[Feature, ...]
    excluded: tuple[ExcludedColumn, ...]
    densities: tuple[float, ...]
    bins: tuple[int, ...]
    has_missing: bool


class Columns(Manifest, frozen=True, kw_only=True):
    """Which column plays which role, as resolved by `plan`.

    scores : class -> base score column.
    chrom : the chromosome column, if any.
    row_key : columns that tell the rows apart; empty when nothing is known to.
    carried : the type in which each id and key column is carried to outputs, whatever a shard stores.
    """

    group: str
    label: str
    classes: tuple[str, ...]
    scores: dict[str, str]
    split: str | None
    weight: str | None
    ids: tuple[str, ...]
    chrom: str | None
    row_key: tuple[str, ...]
    carried: dict[str, CarriedType]


class Budget(Manifest, frozen=True, kw_only=True):
    bytes: int
    source: str


class Holdout(Manifest, frozen=True, kw_only=True):
    genes: int
    rows: int
    how: str


class Alternative(Manifest, frozen=True, kw_only=True):
    """A strategy with its predicted peak and time relative to `single`; `why_not` is None for the chosen one.

    page_cache_bytes : memory outside the process in which external memory keeps its pages at full speed; with less
        it reads them from disk.
    """

    strategy: str
    instances: int
    predicted_peak_bytes: int | None
    page_cache_bytes: int
    relative_time: float | None
    why_not: str | None


class PlannedInstance(Manifest, frozen=True, kw_only=True):
    """One task of the array.

    page_bytes : size of the page files of external memory; 0 when the matrix is in memory.
    batch_rows : most rows of a batch of the matrix; fewer than usual where only that fits the budget.
    """

    index: int
    genes: int
    core_genes: int
    overlap_genes: int
    rows: int
    predicted_peak_bytes: int
    mem_request_mb: int
    expected_seconds: float
    page_bytes: int
    batch_rows: int


class Lowered(Manifest, frozen=True, kw_only=True):
    """A quality knob that a profile or limit moved away from its default; an analysis left out goes from 1 to 0."""

    option: str
    default: float
    value: float
    because: str

    def text(self) -> str:
        """For people."""
        return f"{self.option} {self.default:g} -> {self.value:g} ({self.because})"


class Booster(Manifest, frozen=True, kw_only=True):
    """XGBoost settings that follow from the data (weights), with the reason."""

    base_score: float
    min_child_weight: float
    because: str


class ProbeResult(Manifest, frozen=True, kw_only=True):
    """What a trial on a few real rows measured (`metabatch.training.probe`); bytes and seconds.

    rows, matrix_bytes : rows of each size tried and the memory its matrix took.
    expected_cell_bytes : what the layout says of these rows.
    resident_bytes, anonymous_bytes : the process with everything loaded and no matrix; with and without libraries.
    reading_bytes : reading a few thousand rows of the largest row group, if it is not decoded whole; else 0.
    build_seconds, tree_seconds : building each matrix, and a tree on it.
    """

    rows: tuple[int, ...]
    matrix_bytes: tuple[int, ...]
    expected_cell_bytes: float
    resident_bytes: int
    anonymous_bytes: int
    reading_bytes: int
    build_seconds: tuple[float, ...]
    tree_seconds: tuple[float, ...]


class Teacher(Manifest, frozen=True, kw_only=True):
    """The ensemble whose soft labels a student is trained on.

    fingerprint : of its plan. bundle : sha256 of its bundle.json, which holds how the members are combined.
    how : where the soft labels come from. label_share : part of the true label in them.
    gain_share : part of the gain of the ensemble's splits that the student's features carry; 1: all features.
    missing : instances that the ensemble was made without. path : where it lay; decides nothing.
    """

    fingerprint: str
    bundle: str
    members: int
    how: str
    path: str
    label_share: float = 0.0
    gain_share: float = 1.0
    missing: tuple[int, ...] = ()

    def text(self) -> str:
        """For people."""
        mixed = f", with {self.label_share:.0%} of the true label" if self.label_share else ""
        count = "1 member" if self.members == 1 else f"{self.members} members"
        fewer = f"; features that carry {self.gain_share:.4g} of its gain" if self.gain_share < 1 else ""
        if self.missing:
            count += f" (without instance {', '.join(str(i) for i in self.missing)}, --allow-missing)"
        return f"the {count} of plan {self.fingerprint[:12]} in {self.path}; soft labels: {self.how}{mixed}{fewer}"


class Plan(Manifest, frozen=True, kw_only=True):
    """plan.json.

    fingerprint : sha256 over what decides the models; stages carry it.
    seal : sha256 over this file, so that an edit is noticed.
    profile : the memory tier whose settings stand in `options` ("default": none).
    probe : what the law was calibrated with; None where the probe failed (a warning says why).
    teacher : of a student; None for a model of the labels.
    recipe : how the data set's columns are computed from a genome, where `build-dataset` made it.
    """

    format_version: int = FORMAT_VERSION
    metabatch_version: str
    fingerprint: str
    seal: str
    dataset: Dataset
    columns: Columns
    strategy: Literal["single", "external", "multi-instance", "incremental", "distributed"]
    why: str
    alternatives: tuple[Alternative, ...]
    budget: Budget
    memory_law: MemoryLaw
    probe: ProbeResult | None
    seed: int
    holdout: Holdout
    coverage: float
    allocation_unit: str
    instances: tuple[PlannedInstance, ...]
    options: Options
    profile: str
    lowered: tuple[Lowered, ...]
    booster: Booster
    warnings: tuple[str, ...]
    tables: dict[str, str]
    teacher: Teacher | None = None
    recipe: dict[str, Any] | None = None


class FileRecord(Manifest, frozen=True, kw_only=True):
    bytes: int
    sha256: str


class Done(Manifest, frozen=True, kw_only=True):
    """A stage's completion marker. `ledger`: genes really trained (instances only)."""

    format_version: int = FORMAT_VERSION
    metabatch_version: str
    stage: str
    fingerprint: str
    finished: str
    files: dict[str, FileRecord]
    ledger: tuple[str, ...] | None = None
    inputs: dict[str, str] = {}


def to_json(value: Any) -> bytes:
    """Indented JSON with a closing newline; NaN and inf become null."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def save(path: Path, value: Any) -> None:
    write_bytes(path, to_json(value))


def load[T](path: Path, kind: type[T]) -> T:
    """Read a manifest of type `kind`.

    Raises
    ------
    InputError
        When the file is missing, is not JSON, has another format_version, or lacks or adds a field.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} is missing", expected=f"a {kind.__name__} manifest") from None
    try:
        version = msgspec.json.decode(raw, type=_Version).format_version
    except msgspec.MsgspecError as error:
        raise InputError(f"{path} cannot be read: {error}", expected=f"a {kind.__name__} manifest in JSON") from None
    if version != FORMAT_VERSION:
        raise InputError(
            f"{path} has format_version {version}",
            expected=f"format_version {FORMAT_VERSION} (this metabatch)",
            next_step="use the metabatch version that wrote it, or plan a new run directory",
        )
    try:
        return msgspec.json.decode(raw, type=kind)
    except msgspec.MsgspecError as error:
        raise InputError(
            f"{path} is not a valid {kind.__name__} manifest: {error}",
            expected=f"format_version {FORMAT_VERSION} fields only",
            next_step="restore the file, or plan a new run directory",
        ) from None


class _Version(msgspec.Struct):
    format_version: int
