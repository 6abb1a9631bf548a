"""consolidate: validate all instances and build the bundle."""

from __future__ import annotations

import sys

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import convert
from metabatch.options import COMBINATIONS
from metabatch.rundir.layout import require_run

USAGE = f"""Check every instance and make one model of them: RUN/ensemble.

Usage:
  consolidate [options] RUN

Options:
  --allow-missing         Make the model of the instances that are done; that some are missing is said wherever the
                          model is (default: a missing, failed or altered instance is an error).
  --combine RULE          auto, {", ".join(COMBINATIONS)}
                          (default: the rule that the model in RUN was asked for; at first what `plan` was told, else
                          auto).
{COMMON}
{EXIT_CODES}"""


def action(arguments: Arguments) -> Text:
    run = require_run(arguments["RUN"])
    options, given = convert(arguments)

    from metabatch.ensemble.consolidate import consolidate  # its libraries take seconds: not for a wrong option

    result = consolidate(
        run,
        combine=options.combine if "combine" in given else None,
        allow_missing=arguments["--allow-missing"],
        force=arguments["--force"],
    )
    head = "already consolidated, nothing was changed: " if result.already else ""
    rule = result.combination
    combined = f", combined by {rule.method} ({rule.note})" if result.members > 1 else ""
    lacking = f"; WITHOUT instance {', '.join(str(i) for i in result.missing)}" if result.missing else ""
    return Text(
        f"{head}{result.members} member(s){combined}, {result.genes:,} genes, in {run.ensemble}{lacking}", result
    )


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
