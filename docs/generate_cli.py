"""Write docs/cli.md from the usage texts. tests/unit/test_docs.py checks that it is up to date."""

from __future__ import annotations

import importlib
from pathlib import Path

COMMANDS = (
    "inspect-dataset", "plan", "train-instance", "consolidate", "evaluate", "predict", "status", "submit", "run-all",
    "distill", "build-dataset", "prune-features",
)  # fmt: skip
HEAD = (
    "# Command line reference\n\n"
    "Made by `docs/generate_cli.py` from the usage texts (`bin/COMMAND --help`); do not edit.\n"
)


def cli_reference() -> str:
    """The whole reference as Markdown."""
    parts = [HEAD]
    for command in COMMANDS:
        usage = importlib.import_module(f"metabatch.commands.{command.replace('-', '_')}").USAGE
        parts.append(f"## {command}\n\n```text\n{usage.strip()}\n```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(cli_reference())
