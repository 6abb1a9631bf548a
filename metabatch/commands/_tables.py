"""Results as text for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Any

from metabatch.analysis.answer import answer_lines, band, number, signed
from metabatch.resources.limits import cpu_limits, memory_limits
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan
from metabatch.rundir.state import RunState, sbatch_line
from metabatch.rundir.tables import read_leakage

if TYPE_CHECKING:
    from metabatch.planning.inspect import Inspection  # its libraries take a second

# Lines of the leakage screen; leakage.parquet has all.
_MOST_LEAKS = 25


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their width, numbers to the right; the first and those without a head are text."""
    widths = [max(len(r[i]) for r in (head, *rows)) for i in range(len(head))]
    lines = []
    for row in (head, *rows):
        cells = [
            c.ljust(w) if i == 0 or not head[i] else c.rjust(w)
            for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def size(value: int | None) -> str:
    """Bytes for people."""
    if value is None:
        return "-"
    return f"{value / 2**30:.2f} GB" if value >= 2**30 else f"{value / 2**20:.0f} MB"


def plan_text(run: RunDir, plan: Plan) -> str:
    d, memory, cpus = plan.dataset, memory_limits()[0], cpu_limits()[0]
    lines = [
        f"data set   {d.path}",
        f"           {d.genes:,} genes, {d.positions:,} rows, {d.features:,} features, {len(d.shards)} shard(s)",
        f"classes    {', '.join(plan.columns.classes)}; base scores for {', '.join(plan.columns.scores) or 'none'}",
        f"weights    {plan.columns.weight or 'none'}",
        f"kept whole {plan.columns.split or plan.columns.group}",
        f"holdout    {plan.holdout.genes:,} genes, {plan.holdout.rows:,} rows ({plan.holdout.how})",
        f"budget     {size(plan.budget.bytes)} per instance ({plan.budget.source})",
        f"here       {size(memory.bytes)} ({memory.source}), {cpus.count} CPUs ({cpus.source})",
        *([] if plan.teacher is None else [f"teacher    {plan.teacher.text()}"]),
        f"strategy   {plan.strategy}: {plan.why}",
        "",
        table(
            ["strategy", "instances", "memory each", "page cache", "relative time", ""],
            [
                [a.strategy, str(a.instances or "-"), size(a.predicted_peak_bytes), size(a.page_cache_bytes or None),
                 "-" if a.relative_time is None else f"{a.relative_time:.2f}", a.why_not or "<- chosen"]
                for a in plan.alternatives
            ],
        ),
        "",
        table(
            ["instance", "genes", "core", "overlap", "rows", "memory", "--mem", "expected"],
            [
                [str(p.index), f"{p.genes:,}", f"{p.core_genes:,}", f"{p.overlap_genes:,}", f"{p.rows:,}",
                 size(p.predicted_peak_bytes), f"{p.mem_request_mb}M", _duration(p.expected_seconds)]
                for p in plan.instances
            ],
        ),
        f"coverage {plan.coverage:.0%} of the training genes, "
        f"{sum(p.genes for p in plan.instances):,} slots, {sum(p.overlap_genes for p in plan.instances):,} shared",
    ]  # fmt: skip
    lines += [f"lowered or raised: {x.text()}" for x in plan.lowered]
    lines += [f"note: {w}" for w in plan.warnings]
    lines += _leaks(run, plan)
    lines += [
        "",
        "on a cluster:",
        f"  {sbatch_line(run, plan)}",
        "here:",
        f"  bin/train-instance {quote(str(run.root))} 0",
    ]
    return "\n".join(lines)


def _leaks(run: RunDir, plan: Plan) -> list[str]:
    """What the leakage screen flagged, and what to do about it."""
    if run.leakage.name not in plan.tables:  # --analyses without it
        return []
    flagged = read_leakage(run).filter("flagged")
    if flagged.is_empty():
        return []
    rows = [
        [f"{feature} ({name})", reason]
        for feature, name, reason in flagged.select("feature", "class", "reason").head(_MOST_LEAKS).iter_rows()
    ]
    if flagged.height > len(rows):
        rows.append(["…", f"and {flagged.height - len(rows)} more in {run.leakage}"])
    if plan.options.auto_exclude_leaky:
        head = "left out because they give the label away (--auto-exclude-leaky):"
        advice = ["--allow-features NAME,…     keep one that is legitimate"]
    else:
        head = "these features may give the label away, and ARE TRAINED ON; plan anew (--force) with"
        advice = [
            "--auto-exclude-leaky        to leave all of them out",
            "--exclude-features NAME,…   to leave some of them out",
            "--allow-features NAME,…     to keep one that is legitimate, and silence this",
        ]
    return ["", head, *(f"  {line}" for line in (*advice, *table(["feature (class)", ""], rows).splitlines()))]


def status_text(state: RunState) -> str:
    rows = [
        [str(i.index), i.state, str(i.attempts), i.rung or "-", size(i.predicted_peak_bytes),
         size(i.measured_peak_bytes), size(i.memory_now_bytes), size(state.budget_bytes), i.detail]
        for i in state.instances
    ]  # fmt: skip
    head = ["instance", "state", "attempts", "way", "predicted", "measured", "now", "budget", ""]
    done = sum(i.state == "done" for i in state.instances)
    return "\n".join(
        [
            f"{state.run}: {state.strategy}, {done} of {len(state.instances)} instances done",
            table(head, rows),
            f"ensemble {state.ensemble}{_aside(state.ensemble_detail)}, "
            f"evaluation {state.evaluation}{_aside(state.evaluation_detail)}",
            *([] if state.slurm is None else [f"Slurm cannot be asked, its jobs are not known: {state.slurm}"]),
            f"next: {state.next_step}",
        ]
    )


def _aside(text: str) -> str:
    return f" ({text})" if text else ""


def evaluation_text(metrics: dict[str, Any], report: Path) -> str:
    rows = []
    for name, meta in metrics["meta"].items():
        base = metrics["base"].get(name)
        d = metrics["difference"].get(name, {})
        rows.append(
            [name, number(base["ap"] if base else None), number(meta["ap"]), signed(d.get("ap")), band(d.get("ci95"))]
        )
    weighted = f", weighted by {metrics['weighted_by']}" if metrics["weighted_by"] else ""
    return "\n".join(
        [
            f"scored on {metrics['how']}: {metrics['genes']:,} genes, {metrics['rows']:,} rows{weighted}",
            table(["class", "base AP", "meta AP", "difference", "95 % interval"], rows),
            *answer_lines(metrics),
            f"report: {report}",
        ]
    )


def against_text(
    lines: Sequence[str], shown: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]], answer: str, report: Path
) -> str:  # fmt: skip
    """Runs side by side: what was compared, the tables (title, heads, rows of cells), the recommendation."""
    parts = [part for title, head, rows in shown for part in ("", title, table(head, rows))]
    return "\n".join([*lines, *parts, "", answer, f"report: {report}"])


def inspection_text(found: Inspection) -> str:
    lines = [
        f"{found.path}: {len(found.shards)} shard(s), {found.bytes / 2**20:,.1f} MB",
        f"{found.genes:,} genes, {found.positions:,} rows, {found.features:,} feature columns",
        "rows per gene: "
        + ", ".join(f"{k} {v:,.1f}" if k == "mean" else f"{k} {v:,.0f}" for k, v in found.rows_per_gene.items()),
        "classes: " + ", ".join(f"{k} {v:,} ({found.prevalence[k]:.2%})" for k, v in found.class_rows.items()),
        f"weights: {found.columns.weight or 'none'}; kept whole: {found.columns.split or found.columns.group}; "
        f"base scores: {', '.join(found.columns.scores.values()) or 'none'}",
        f"largest row group: {found.largest_row_group:,} rows",
        "memory (estimate, by strategy): " + ", ".join(f"{k} {size(v)}" for k, v in found.memory.items()),
    ]
    lines += [f"not a feature: {e.name} ({e.reason})" for e in found.excluded]
    if found.weighted_prevalence is not None:
        lines.insert(4, "weighted: " + ", ".join(f"{k} {v:.4%}" for k, v in found.weighted_prevalence.items()))
    if found.leaks is not None and found.leaks.skipped is None:
        lines.append(
            f"leaks: {len(found.leaks.flagged):,} of {found.leaks.features:,} features flagged, on a sample of "
            f"{found.leaks.genes:,} genes"
        )
    lines += ["", "problems:" if found.problems else "problems: none found"]
    for p in found.problems:
        lines += [f"  {p.severity:<8} {p.what}", f"{'':11}where: {p.where}", f"{'':11}next: {p.next_step}"]
    return "\n".join(lines)


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )
