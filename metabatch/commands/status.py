"""status: what is done, running, failed and why, and what to type next."""

from __future__ import annotations

import sys

from metabatch.commands._cli import EXIT_CODES, REPORTING, Arguments, Text, run_command
from metabatch.commands._tables import status_text
from metabatch.rundir.layout import require_run
from metabatch.rundir.state import survey

USAGE = f"""Tell how far a run is, and what to type next.

Usage:
  status [options] RUN

Options:
{REPORTING}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    state = survey(require_run(arguments["RUN"]))
    return Text(status_text(state), state)


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
