"""report.html of a run: one file, no network, the answer first."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from metabatch import __version__
from metabatch.analysis.answer import answer_lines, helps
from metabatch.analysis.frame import Sections
from metabatch.analysis.page import picture_url, render_page
from metabatch.analysis.report import plan_facts
from metabatch.resources.usage import ResourceUsage
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Lowered, Plan


def render(
    run: RunDir, plan: Plan, metrics: dict[str, Any], folder: Path, sections: Sections, lowered: Sequence[Lowered]
) -> str:
    """The report's HTML; every number comes from `metrics`, the sections, the bundle's `lowered` or the run's files.

    Parameters
    ----------
    folder : Path
        Where the figures of `sections` lie.
    sections : Sections
        Analyses of the scored rows and of all instances together; each instance's own are read from its folder.
    """
    return render_page(
        "report.html.j2",
        "metabatch.evaluation",
        metrics=metrics,
        classes=plan.columns.classes,
        answer=answer_lines(metrics),
        helps=helps(metrics),
        sections=sections.analyses,
        off=sections.off,
        instances=_instances(run, plan),
        url=functools.partial(picture_url, folder),
        facts=plan_facts(plan, lowered),
        resources=_resources(run, plan),
        warnings=plan.warnings,
        version=__version__,
        fingerprint=plan.fingerprint[:12],
    )


def _instances(run: RunDir, plan: Plan) -> list[dict[str, Any]]:
    """What each instance found about itself; none when no analyses were asked for."""
    found = []
    for planned in plan.instances:
        root = run.instance(planned.index).root
        if (root / "analysis.json").is_file():
            sections = msgspec.json.decode((root / "analysis.json").read_bytes(), type=Sections)
            url = functools.partial(picture_url, root)
            found.append({"index": planned.index, "sections": sections.analyses, "off": sections.off, "url": url})
    return found


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
