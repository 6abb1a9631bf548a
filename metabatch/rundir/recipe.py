"""What a data set says of itself beside its shards (`build-dataset` writes it), as far as `plan` needs to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import msgspec
import polars as pl

from metabatch.errors import InputError

DATASET_FILE, MANIFEST_FILE = "dataset.json", "gene_manifest.csv"


class Built(msgspec.Struct, frozen=True, kw_only=True):
    """Of dataset.json.

    recipe : how the columns were computed. holdout : how genes were set aside, empty: none were.
    shards : what is known of each file.
    """

    recipe: dict[str, Any] | None = None
    holdout: str = ""
    shards: dict[str, Any] = {}


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
    except msgspec.MsgspecError as error:
        raise InputError(
            f"{file} cannot be read: {error}", expected="as build-dataset wrote it",
            next_step="restore it, or take it away: the models then do not know how their features are computed",
        ) from None  # fmt: skip


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
