"""A FASTA file made ready to be read by contig and position: unpacked, and with its index, both in a scratch folder."""

from __future__ import annotations

import contextlib
import gzip
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, cast

from pyfaidx import Faidx, FastaIndexingError, UnsupportedCompressionFormat

from metabatch.building.copies import complete_gzip, is_gzip, need_space
from metabatch.errors import InputError
from metabatch.rundir.publish import replace_file

_PIECE = 2**20
# Nucleotides take some 2 bits each under gzip, and 8 unpacked; soft-masked or repetitive sequence less.
_UNPACKED_RATIO = 5
# Lines indexed between two looks at whether to stop.
_LINES = 2**16


def unpacked(path: Path, copy: Path, stop: Callable[[], None]) -> Path:
    """`path` itself, or of a gzip file the unpacked copy; made under another name, so never half there."""
    if not is_gzip(path):
        return path
    if not copy.is_file():
        need_space(copy.parent, _UNPACKED_RATIO * path.stat().st_size, f"unpacking {path.name}", "give plain FASTA")
        with complete_gzip(path), gzip.open(path, "rb") as packed:
            replace_file(copy, _pieces(cast("BinaryIO", packed), stop))
    return copy


def _pieces(packed: BinaryIO, stop: Callable[[], None]) -> Iterator[bytes]:
    while piece := packed.read(_PIECE):
        stop()
        yield piece


class _Indexer(Faidx):
    """Makes an index as `Faidx` does, but can be stopped: of a human genome it takes a minute."""

    file: Any

    def __init__(self, fasta: Path, index: Path, stop: Callable[[], None]) -> None:
        self._stop = stop
        super().__init__(str(fasta), indexname=str(index), as_raw=True)

    def build_index(self) -> None:
        whole = self.file
        self.file = _Lines(whole, self._stop)
        try:
            super().build_index()
        finally:
            self.file = whole


class _Lines:
    """What `Faidx` makes an index from: a file of lines, with a look at `stop` every now and then."""

    def __init__(self, file: BinaryIO, stop: Callable[[], None]) -> None:
        self.tell, self.seek, self._file, self._stop = file.tell, file.seek, file, stop

    def __iter__(self) -> Iterator[bytes]:
        for number, line in enumerate(self._file):
            if number % _LINES == 0:
                self._stop()
            yield line


def indexed(fasta: Path, index: Path, path: Path, stop: Callable[[], None]) -> Faidx:
    """The FASTA with its index, which is made under another name: workers may open the genome at the same time."""
    try:
        if not index.is_file():
            with (
                tempfile.TemporaryDirectory(dir=index.parent) as folder,
                contextlib.closing(_Indexer(fasta, Path(folder) / "fai", stop)) as made,
            ):
                # pyfaidx takes an index older than its FASTA for stale.
                times = fasta.stat().st_mtime_ns
                os.utime(made.indexname, ns=(times, times))
                os.replace(made.indexname, index)
        return Faidx(str(fasta), indexname=str(index), as_raw=True, rebuild=False, build_index=False)
    except (FastaIndexingError, UnsupportedCompressionFormat, ImportError, ValueError) as error:
        raise InputError(
            f"{path.name} cannot be read as FASTA: {error}",
            expected="lines of sequence of one length under > lines with distinct names; plain or gzip",
            where=str(path),
        ) from None
