"""What a data set says of itself beside its shards (`build-dataset` writes it), as far as `plan` needs to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from metabatch.errors import InputError
from metabatch.rundir.manifests import FileRecord

DATASET_FILE, MANIFEST_FILE = "dataset.json", "gene_manifest.csv"
AS_LISTED = (
    f"restore the shards (build-dataset --force makes them anew), or take {DATASET_FILE} away where others are meant: "
    "the models then do not know how their features are computed, nor which genes were set aside"
)


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """Of dataset.json.

    recipe : how the columns were computed. holdout : how genes were set aside, empty: none were.
    shards : bytes and sha256 of each file; empty where the description is not of build-dataset.
    """

    recipe: dict[str, Any] | None = None
    holdout: str = ""
    shards: dict[str, FileRecord] = {}


def read_built(dataset: Path) -> Built:
    """What stands beside the shards in the folder `dataset`, or beside one of them; nothing for other data sets.

    Raises
    ------
    InputError
        A dataset.json that is no JSON object.
    """
    file = _folder(dataset) / DATASET_FILE
    if not file.is_file():
        return Built()
    try:
        built = msgspec.json.decode(file.read_bytes(), type=Built)
        return built if dataset.is_dir() or dataset.name in built.shards else Built()
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InputError(
            f"{file} cannot be read: {error}", expected="as build-dataset wrote it",
            next_step="restore it, or take it away: the models then do not know how their features are computed",
        ) from None  # fmt: skip


def shard_differences(dataset: Path, built: Built, found: Mapping[str, tuple[int, str | None]]) -> list[str]:
    """How the shards that lie there differ from those that dataset.json lists; nothing where it lists none.

    Parameters
    ----------
    dataset : Path
        A folder; or one file, which alone is then compared.
    found : mapping
        Name -> bytes and sha256 of every shard there; None: the content was not looked at.
    """
    if not built.shards:
        return []
    differences = [f"{n} is missing" for n in sorted(built.shards.keys() - found.keys()) if dataset.is_dir()]
    for name, (size, sha256) in sorted(found.items()):
        if name not in built.shards:
            differences.append(f"{name} is not listed")
            continue
        listed = built.shards[name]
        if size != listed.bytes:
            differences.append(f"{name} has {size} bytes, listed with {listed.bytes}")
        elif sha256 not in (None, listed.sha256):
            differences.append(f"{name} has other content than listed (sha256)")
    return differences


def refuse_other_shards(dataset: Path, built: Built, found: Mapping[str, tuple[int, str | None]]) -> None:
    """As `shard_differences`: recipe, holdout and checksums there are of the shards listed and of no others.

    Raises
    ------
    InputError
        Naming the first differences.
    """
    differences = shard_differences(dataset, built, found)
    if differences:
        raise InputError(
            f"{len(differences)} shard(s) are not as {DATASET_FILE} says: {first_of(differences)}",
            expected=f"the {len(built.shards)} shard(s) that it lists, and no others",
            where=str(_folder(dataset)),
            next_step=AS_LISTED,
        )


def first_of(differences: Sequence[str]) -> str:
    """The first ten, in one line."""
    return "; ".join(differences[:10]) + ("; …" if len(differences) > 10 else "")


def _folder(dataset: Path) -> Path:
    return dataset if dataset.is_dir() else dataset.parent


def set_aside(dataset: Path) -> set[str]:
    """Ids of the genes that the base model was not fitted on.

    Raises
    ------
    InputError
        gene_manifest.csv is missing or does not tell them.
    """
    file = _folder(dataset) / MANIFEST_FILE
    try:
        table = pl.read_csv(file, columns=["gene_id", "split"], schema_overrides={"gene_id": pl.String})
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{file} does not tell the genes set aside: {str(error).splitlines()[0]}",
            expected="as build-dataset wrote it, with gene_id and split",
        ) from None
    return set(table.filter(pl.col("split") == "holdout")["gene_id"])
