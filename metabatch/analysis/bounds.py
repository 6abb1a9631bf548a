"""How many rows the analyses hold, and the memory of it; `plan` counts with it, so no heavy library is imported."""

from __future__ import annotations

# Rows whose contributions are computed at once (fewer take longer, more only take memory), rows summed at once (float64
# copies of so many fit a CPU's cache), and rows kept for the plots.
CHUNK_ROWS, BLOCK_ROWS, PLOT_ROWS = 1_024, 128, 1_000
# Of the chunk: values, XGBoost's copy (twice while it is made), contributions, and the rows of both that are kept.
_CELL_BYTES, _BLOCK_COPIES, _SUM_COPIES = 4 + 16 + 4 + 4, 9, 30
# Measured: libraries' pages and the allocator's; shap with what it imports, and figures of 1,000 rows, 15 features.
_FIXED_BYTES, _PICTURE_BYTES, _PICTURE_CLASS_BYTES = 32 << 20, 16 << 20, 8 << 20
# Rows on which features are permuted, and on which they are held against the label.
PERMUTED_ROWS, COMPARED_ROWS = 4_096, 8_192
# Held-out rows on which the variants of the ablation are compared, in whole genes: each is resampled often.
JUDGED_ROWS = 60_000


def shap_bytes(features: int, classes: int, width: float) -> int:
    """Most bytes that the SHAP analysis holds beside its input chunk and the boosters.

    Parameters
    ----------
    width : float
        Bytes of a row in the types of the features: the table of the chunk before is held while the next is made.
    """
    sums = classes * features * 8 * _SUM_COPIES
    kept = (PLOT_ROWS + classes) * features * 4 * (classes + 1)
    chunk = CHUNK_ROWS * (width + (features + 1) * _CELL_BYTES) + BLOCK_ROWS * features * 8 * _BLOCK_COPIES
    return round(_FIXED_BYTES + sums + kept + max(chunk, _PICTURE_BYTES + classes * _PICTURE_CLASS_BYTES))


def importance_bytes(width: float) -> int:
    """What the drawn rows of the importance analysis take, the copies in which a column is exchanged included."""
    return round(2 * (PERMUTED_ROWS + COMPARED_ROWS) * width)
