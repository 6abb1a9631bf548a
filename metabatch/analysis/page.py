"""Reports: one HTML file each, no network, every number from the JSON beside it."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import jinja2

from metabatch.analysis.answer import band, number, signed
from metabatch.analysis.frame import FIGURES, Cell, Kind


def render_page(template: str, package: str, **values: Any) -> str:
    """A template of `package` (a module with templates beside it), with the macros and the page of this one.

    Every value is escaped; a name that a template uses and nobody gave is an error.
    """
    loaders = [jinja2.PackageLoader(name, "") for name in dict.fromkeys((package, "metabatch.analysis"))]
    environment = jinja2.Environment(
        loader=jinja2.ChoiceLoader(loaders), autoescape=True, undefined=jinja2.StrictUndefined
    )
    environment.filters |= {
        "num": number, "small": small, "band": band, "signed": signed, "mb": _megabytes, "cell": cell_text,
    }  # fmt: skip
    return environment.get_template(template).render(**values)


def cell_text(value: Cell, kind: Kind) -> str:
    """A cell of a table as it is written in reports; a dash where nothing is defined."""
    if value is None:
        return "–"
    if isinstance(value, str) or kind == "text":
        return str(value)
    return {
        "count": lambda: f"{value:,.0f}",
        "number": lambda: f"{value:.3f}",
        "small": lambda: small(value),
        "signed": lambda: signed(value),
        "percent": lambda: f"{value:.1%}",
    }[kind]()


def small(value: float | None) -> str:
    """Three digits, whatever the size."""
    return "–" if value is None else f"{value:.3g}"


def picture_url(folder: Path, name: str) -> str:
    """A picture of `folder`/figures as a data URL."""
    return "data:image/png;base64," + base64.b64encode((folder / FIGURES / f"{name}.png").read_bytes()).decode()


def _megabytes(value: int) -> str:
    return f"{value / 2**20:,.0f} MiB"
