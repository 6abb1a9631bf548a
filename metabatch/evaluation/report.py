"""report.html: one file, no network, the answer first."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jinja2
import msgspec

from metabatch import __version__
from metabatch.analysis.answer import answer_lines, band, number, signed
from metabatch.resources.usage import ResourceUsage
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Lowered, Plan


def render(
    run: RunDir, plan: Plan, metrics: dict[str, Any], figures: Sequence[Path], lowered: Sequence[Lowered]
) -> str:
    """The report's HTML; every number comes from `metrics`, the bundle's `lowered` or the run's JSON files."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("metabatch.evaluation", ""), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {"num": number, "small": _small, "band": band, "signed": signed, "mb": _megabytes}
    differences = metrics["difference"].values()
    return environment.get_template("report.html.j2").render(
        metrics=metrics,
        classes=plan.columns.classes,
        answer=answer_lines(metrics),
        helps=not any(d["ap"] is not None and d["ap"] <= 0 for d in differences),
        figures=[{"name": f.stem, "data": _data_url(f)} for f in figures],
        facts=_facts(plan, lowered),
        resources=_resources(run, plan),
        warnings=plan.warnings,
        version=__version__,
        fingerprint=plan.fingerprint[:12],
    )


def _resources(run: RunDir, plan: Plan) -> list[dict[str, Any]]:
    rows = []
    for planned in plan.instances:
        file = run.instance(planned.index).root / "resource_usage.json"
        usage = msgspec.json.decode(file.read_bytes(), type=ResourceUsage)
        rows.append(
            {
                "index": planned.index, "genes": planned.genes, "rows": planned.rows,
                "predicted": usage.predicted_peak_bytes, "measured": usage.measured_peak_bytes,
                "budget": usage.budget_bytes, "seconds": sum(p.seconds for p in usage.phases),
            }
        )  # fmt: skip
    return rows


def _data_url(path: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(path.read_bytes()).decode()


def _small(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _megabytes(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"
