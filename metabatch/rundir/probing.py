"""What `plan` asks of the process that tries a few rows for it (`metabatch.training.probe`)."""

from __future__ import annotations

import msgspec

from metabatch.options import Options
from metabatch.rundir.manifests import Booster, Columns


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """What to try: `rows` of two sizes out of `pieces` (file, row group), beside features.json and cuts.parquet.

    large : the row group that takes most to read, if it is too large to be decoded whole.
    """

    parent: int
    pieces: list[tuple[str, int]]
    large: tuple[str, int] | None
    rows: list[int]
    columns: Columns
    options: Options
    booster: Booster
    threads: int
