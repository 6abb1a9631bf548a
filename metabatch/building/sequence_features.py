"""Features of the sequence around a position, on the transcript strand."""

from __future__ import annotations

import numpy as np


def nucleotides(codes: np.ndarray, at: np.ndarray, reach: int) -> dict[str, np.ndarray]:
    """`base_m{reach}` to `base_p{reach}`: uint8 A 0, C 1, G 2, T 3, N 4, of the places `at` in `codes`."""
    return {_name(offset): codes[at + offset] for offset in range(-reach, reach + 1)}


def composition(counts: np.ndarray) -> dict[str, np.ndarray]:
    """GC content and Shannon entropy in bits, float32, of the known nucleotides of windows; 0 where there are none.

    Parameters
    ----------
    counts : shape (4, n)
        A, C, G, T of each window.
    """
    counts = counts.astype(np.float64)
    known = np.maximum(counts[0] + counts[1] + counts[2] + counts[3], 1)
    entropy = np.zeros_like(known)
    for part in counts / known:
        entropy -= part * np.log2(np.where(part > 0, part, 1))
    gc = (counts[1] + counts[2]) / known
    return {"gc_content": gc.astype(np.float32), "sequence_complexity": entropy.astype(np.float32)}


def span_features(length: int, index: np.ndarray) -> dict[str, np.ndarray]:
    """Length of the gene and nt to its first and last position in transcript direction, int32."""
    return {
        "gene_length": np.full(len(index), length, np.int32),
        "distance_to_start": index.astype(np.int32),
        "distance_to_end": (length - 1 - index).astype(np.int32),
    }


def _name(offset: int) -> str:
    return "base_0" if offset == 0 else f"base_{'m' if offset < 0 else 'p'}{abs(offset)}"
