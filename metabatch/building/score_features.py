"""Features of the base model's scores: the position's own, its neighbours', and the highest ones within reach.

Formulas: SOURCE.md of the demo (examples/hg19-demo). Scores outside of the gene count 0. Both channels are treated
alike, and nothing here sees a label. Reckoned in float64 and rounded to float32 once.
"""

from __future__ import annotations

import numpy as np

from metabatch.building.base_scores import check_scores
from metabatch.building.genes import ACCEPTOR, DONOR, NEITHER

_CHANNELS = {"donor": DONOR, "acceptor": ACCEPTOR}
# Keeps logarithms and ratios finite where scores are 0.
_EPSILON = 1e-6
# A peak must be higher than this.
_PEAK = 1e-3
# Neighbours on each side that go into the context features.
_NEAR = 2


def score_features(
    scores: np.ndarray, index: np.ndarray, *, score_context: int, peak_context: int, reach: int
) -> dict[str, np.ndarray]:
    """Columns of the positions `index`, in column order.

    Parameters
    ----------
    scores : float32, shape (length, 3)
    index : int64, shape (n,)
    score_context, peak_context, reach : int
        nt on each side: of the `_mN`/`_pN` columns, of `_context_max`, of `_max_upN`/`_max_downN` (0: no such columns).

    Raises
    ------
    InputError
        Scores that are no probabilities.
    """
    length = len(scores)
    # A window longer than the gene holds nothing more than one as long.
    peak_context, width = min(peak_context, length), min(reach, length)
    pad = max(_NEAR, score_context, peak_context, width)
    first, last = (int(index.min()), int(index.max()) + 1) if len(index) else (0, 0)
    # Only what the rows can see is looked at, so that batches of a long gene do not each cost the whole gene.
    seen = scores[max(first - pad, 0) : last + pad]
    check_scores(seen)
    at = index - first + pad
    padded = {name: _padded(scores[:, column], first, last, pad) for name, column in _CHANNELS.items()}
    columns = {f"{name}_score": padded[name][at] for name in _CHANNELS}
    columns["neither_score"] = scores[index, NEITHER].astype(np.float32)
    offsets = [o for o in range(-score_context, score_context + 1) if o != 0]
    for name, values in padded.items():
        columns |= {f"{name}_score_{'m' if o < 0 else 'p'}{abs(o)}": values[at + o] for o in offsets}
    columns |= _joint(*(columns[f"{name}_score"].astype(np.float64) for name in ("neither", "donor", "acceptor")))
    for name, values in padded.items():
        columns |= _context(name, values, at, peak_context)
    for name, values in padded.items():
        if reach:
            up, down = _sides(values, at, width)
            columns |= {f"{name}_max_up{reach}": up, f"{name}_max_down{reach}": down}
    return columns


def _joint(n: np.ndarray, d: np.ndarray, a: np.ndarray) -> dict[str, np.ndarray]:
    e = _EPSILON
    columns = {
        "splice_probability": (d + a) / (d + a + n + e),
        "donor_acceptor_logodds": np.log((d + e) / (a + e)),
        "splice_neither_logodds": np.log((d + a + e) / (n + e)),
        "probability_entropy": -(n * np.log(n + e) + d * np.log(d + e) + a * np.log(a + e)),
    }
    return {name: values.astype(np.float32) for name, values in columns.items()}


def _context(name: str, values: np.ndarray, at: np.ndarray, peak_context: int) -> dict[str, np.ndarray]:
    """One channel's score against its neighbours."""
    m2, m1, s, p1, p2 = (values[at + offset].astype(np.float64) for offset in range(-_NEAR, _NEAR + 1))
    mean = (m2 + m1 + p1 + p2) / 4
    highest = np.maximum(*_sides(values, at, peak_context))
    columns = {
        "context_neighbor_mean": mean,
        "context_asymmetry": m2 + m1 - p1 - p2,
        "context_max": highest,
        "signal_strength": s - mean,
        "second_derivative": 2 * s - m1 - p1,
        "peak_fraction": s / (s + highest.astype(np.float64) + _EPSILON),
    }
    rounded = {f"{name}_{feature}": column.astype(np.float32) for feature, column in columns.items()}
    return rounded | {f"{name}_is_local_peak": ((s > m1) & (s > p1) & (s > _PEAK)).astype(np.uint8)}


def _padded(column: np.ndarray, first: int, last: int, pad: int) -> np.ndarray:
    """float32 scores of first - pad to last + pad, 0 outside of the gene."""
    padded = np.zeros(last - first + 2 * pad, np.float32)
    inside = column[max(first - pad, 0) : last + pad]
    skipped = max(pad - first, 0)
    padded[skipped : skipped + len(inside)] = inside
    return padded


def _sides(values: np.ndarray, at: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Highest of the `width` values before and of those after each place, its own left out."""
    # Windows grow by laying two of them side by side: log2(width) passes and no memory beyond one pass.
    highest, covered = values, 1
    while covered < width:
        step = min(covered, width - covered)
        highest = np.maximum(highest[:-step], highest[step:])
        covered += step
    return highest[at - width], highest[at + 1]
