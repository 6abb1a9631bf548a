"""The parquet files of a data set: found, fingerprinted and compared with what a plan recorded."""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from metabatch.errors import InputError
from metabatch.rundir.manifests import Dataset, Shard
from metabatch.rundir.publish import sha256_file

# Bytes a column.
READ_BUFFER = 16_384
# Text of unknown length, a row.
_TEXT_BYTES = 32


def find_parquet(path: str | os.PathLike[str]) -> list[Path]:
    """The parquet files at `path` (a file, or a folder's ``*.parquet``), by name.

    Raises
    ------
    InputError
        When there is nothing there, or no parquet file in the folder.
    """
    place = Path(path)
    if place.is_file():
        return [place]
    if not place.is_dir():
        raise InputError(f"data set {path} does not exist", expected="a parquet file or a folder of them")
    files = sorted(p for p in place.glob("*.parquet") if p.is_file() and not p.name.startswith((".", "_")))
    if not files:
        raise InputError(f"no *.parquet file in {path}", expected="a folder of parquet shards")
    return files


def open_parquet(path: Path) -> pq.ParquetFile:
    """Open one file's footer; a truncated or foreign file is an InputError that names it."""
    try:
        # Checksums where the writer made them; read through a buffer, or Arrow holds the whole compressed row group.
        return pq.ParquetFile(path, page_checksum_verification=True, buffer_size=READ_BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise InputError(
            f"{path.name} cannot be read as parquet: {str(error).splitlines()[0]}",
            expected="a complete parquet file",
            where=f"{path} ({path.stat().st_size if path.exists() else 0} bytes)",
            next_step="write the file again, or take it out of the folder",
        ) from None


def cell_bytes(schema: pa.Schema) -> dict[str, int]:
    """Bytes of a decoded cell of each column, about where it is not a number."""
    return {
        field.name: max(1, field.type.bit_width // 8) if pa.types.is_primitive(field.type) else _TEXT_BYTES
        for field in schema
    }


def scan_shards(path: str | os.PathLike[str]) -> list[Shard]:
    """Read every footer and hash every file, in canonical order (by content, so names do not matter)."""
    shards = []
    for file in find_parquet(path):
        with open_parquet(file) as parquet:
            meta = parquet.metadata
            groups = tuple(meta.row_group(i).num_rows for i in range(meta.num_row_groups))
        stat = file.stat()
        shards.append(
            Shard(
                name=file.name,
                bytes=stat.st_size,
                mtime_ns=stat.st_mtime_ns,
                sha256=sha256_file(file),
                rows=sum(groups),
                row_groups=groups,
            )
        )
    shards.sort(key=lambda s: (s.sha256, s.name))
    for first, second in pairwise(shards):
        if first.sha256 == second.sha256:
            raise InputError(
                f"{first.name} and {second.name} have the same content",
                expected="every shard once",
                where=str(path),
                next_step="remove one of the two",
            )
    if sum(s.rows for s in shards) == 0:
        raise InputError(f"all {len(shards)} shard(s) are empty", expected="at least one row", where=str(path))
    return shards


def shard_path(dataset: Dataset, shard: Shard) -> Path:
    place = Path(dataset.path)
    return place if place.is_file() else place / shard.name


def verify_unchanged(dataset: Dataset) -> None:
    """Compare the data set on disk with the plan's record.

    Size and modification time equal: taken as unchanged. Otherwise the content is hashed, so that a
    copy or a touched file passes and an altered one does not.

    Raises
    ------
    InputError
        Listing every shard that is missing, new or changed.
    """
    problems = []
    for shard in dataset.shards:
        file = shard_path(dataset, shard)
        if not file.is_file():
            problems.append(f"{shard.name} is missing")
            continue
        stat = file.stat()
        if (stat.st_size, stat.st_mtime_ns) == (shard.bytes, shard.mtime_ns):
            continue
        if stat.st_size != shard.bytes:
            problems.append(f"{shard.name} has {stat.st_size} bytes, planned with {shard.bytes}")
        elif sha256_file(file) != shard.sha256:
            problems.append(f"{shard.name} has other content than planned (sha256)")
    if Path(dataset.path).is_dir():
        known = {s.name for s in dataset.shards}
        problems += [f"{p.name} is new" for p in find_parquet(dataset.path) if p.name not in known]
    if problems:
        raise InputError(
            f"the data set changed since the plan was made: {'; '.join(problems)}",
            expected=f"the {len(dataset.shards)} shard(s) recorded in plan.json",
            where=dataset.path,
            next_step="restore the files, or plan a new run directory on the changed data",
        )
