"""The answer in words: did the meta-model help, on what, by how much. Same text on screen and in the report."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def answer_lines(metrics: dict[str, Any]) -> list[str]:
    """The loud lines first when due; then a line per class, rarest first; then the out-of-fold evidence."""
    lines = []
    if metrics.get("missing_instances"):
        named = ", ".join(str(i) for i in metrics["missing_instances"])
        lines.append(
            f"The model LACKS instance {named} (--allow-missing): genes only these trained on taught it nothing."
        )
    lost = [n for n, d in metrics["difference"].items() if d["ap"] is not None and d["ap"] <= 0]
    if lost:
        lines.append(f"The meta-model DOES NOT BEAT ITS BASE for: {', '.join(lost)}.")
    for name in _rarest_first(metrics):
        d = metrics["difference"].get(name)
        if d is None:
            gaps = metrics["base_missing"].get(name)
            why = f"its base score is missing in {gaps:,} rows" if gaps else "it has no base score"
            lines.append(f"{name}: AP {number(metrics['meta'][name]['ap'])}; not compared: {why}.")
        elif d["ap"] is None:
            lines.append(f"{name}: {d['verdict']}.")
        else:
            base, meta = metrics["base"][name]["ap"], metrics["meta"][name]["ap"]
            lines.append(
                f"{name}: AP {number(base)} (base) to {number(meta)} (meta), difference {signed(d['ap'])}, "
                f"95 % interval {band(d['ci95'])}: {d['verdict']}."
            )
    for key, words in (("out_of_fold", "out of fold"), ("out_of_instance", "by members that did not train on them")):
        found = metrics.get(key)
        if found and found["difference"]:
            parts = [
                f"{n} {signed(found['difference'][n]['ap'])} ({band(found['difference'][n]['ci95'])})"
                for n in _rarest_first(metrics)
                if n in found["difference"]
            ]
            lines.append(f"Difference on {found['genes']:,} training genes, {words}: {', '.join(parts)}.")
    return lines


def helps(metrics: dict[str, Any]) -> bool:
    """Whether no class is worse off by the meta-model."""
    return not any(d["ap"] is not None and d["ap"] <= 0 for d in metrics["difference"].values())


def _rarest_first(metrics: dict[str, Any]) -> list[str]:
    return sorted(metrics["meta"], key=lambda name: metrics["meta"][name]["prevalence"])


def number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def signed(value: float | None) -> str:
    return "-" if value is None else _short(value, "+")


def band(value: Sequence[float] | None) -> str:
    return "-" if value is None else f"{_short(value[0])} to {_short(value[1])}"


def _short(value: float, sign: str = "") -> str:
    """Three digits; a difference too small for them keeps its first digit (-3e-06, not -0.000)."""
    return f"{value:{sign}.0e}" if 0 < abs(value) < 0.0005 else f"{value:{sign}.3f}"
