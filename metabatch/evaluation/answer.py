"""The answer in words: did the meta-model help, on what, by how much. Same text on screen and in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def answer_lines(metrics: dict[str, Any]) -> list[str]:
    """One line per class: base AP, meta AP, difference and what it means; the loud line first when due."""
    lines = []
    lost = [n for n, d in metrics["difference"].items() if d["ap"] is not None and d["ap"] <= 0]
    if lost:
        lines.append(f"The meta-model DOES NOT BEAT ITS BASE for: {', '.join(lost)}.")
    for name, d in metrics["difference"].items():
        base, meta = metrics["base"][name]["ap"], metrics["meta"][name]["ap"]
        if d["ap"] is None:
            lines.append(f"{name}: {d['verdict']}.")
        else:
            lines.append(
                f"{name}: AP {number(base)} (base) to {number(meta)} (meta), difference {signed(d['ap'])}, "
                f"95 % interval {band(d['ci95'])}: {d['verdict']}."
            )
    if not metrics["difference"]:
        lines.append("There are no base scores to compare with.")
        lines += [f"{name}: AP {number(m['ap'])}." for name, m in metrics["meta"].items()]
    return lines


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3f}"


def band(value: Sequence[float] | None) -> str:
    return "-" if value is None else f"{value[0]:.3f} to {value[1]:.3f}"
