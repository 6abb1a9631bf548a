"""What a finished ensemble was made from, by the inputs of its marker: instances, and the rule that was asked for."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping

from metabatch.rundir.layout import RunDir
from metabatch.rundir.markers import MARKER
from metabatch.rundir.publish import sha256_file

# The rule of combination that was asked for; the other inputs are instances.
COMBINE = "combine"


def instance_markers(run: RunDir, indices: Collection[int]) -> dict[str, str]:
    """sha256 of the markers of instances, as they stand among the inputs: ``instances/NN``."""
    return {f"instances/{i:02d}": sha256_file(run.instance(i).root / MARKER) for i in indices}


def markers_of(inputs: Mapping[str, str]) -> dict[int, str]:
    """The instances among the inputs, with the sha256 that their markers had."""
    found = {re.fullmatch(r"instances/(\d+)", name): value for name, value in inputs.items()}
    return {int(match[1]): value for match, value in found.items() if match is not None}
