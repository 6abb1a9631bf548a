"""run-all: plan, every instance, consolidate, evaluate, one after the other on this machine."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import msgspec

from metabatch.commands._cli import COMMON, EXIT_CODES, Arguments, Text, run_command
from metabatch.commands._options import SECTIONS, checkpoint_seconds, convert, options_text
from metabatch.commands._tables import evaluation_text
from metabatch.errors import InputError, MetabatchError
from metabatch.options import flag
from metabatch.resources.process import signal_on_death_of
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import require_run

DEMO_DATA = Path(__file__).resolve().parents[2] / "examples" / "hg19-demo"
DEMO_RUN = "demo-run"
# 37 genes in 26 loci: a tenth would be 3 genes, and the difference luck.
DEMO_OPTIONS = {"--holdout-fraction": "0.35"}

USAGE = f"""Plan, train every instance, consolidate and evaluate, each in a process of its own.

Usage:
  run-all [options] --demo [RUN]
  run-all [options] DATASET RUN

With --demo the shipped real data is used, and RUN is {DEMO_RUN} unless given.

Options:
  --demo                  Run on the shipped data (37 human genes).

{options_text()}
  --checkpoint-seconds S  As for train-instance.

Common:
{COMMON}
{EXIT_CODES}"""


class StageError(MetabatchError):
    """A stage failed; its own message was printed already, its exit code is passed on."""

    def __init__(self, stage: str, code: int) -> None:
        super().__init__(
            f"{stage} ended with exit code {code}", next_step="see its message above; then the same command again"
        )
        self.exit_code = code  # type: ignore[misc]


def action(arguments: Arguments) -> Text:
    convert(arguments)  # refuse wrong options before anything runs
    checkpoint_seconds(arguments)
    demo = arguments["--demo"]
    dataset = str(DEMO_DATA) if demo else arguments["DATASET"]
    run = arguments["RUN"] or DEMO_RUN
    if demo and not DEMO_DATA.is_dir():
        raise InputError(f"the demo data is not at {DEMO_DATA}")
    common = [o for o in ("--quiet", "--verbose") if arguments[o]]
    force = ["--force"] if arguments["--force"] else []
    seconds = arguments["--checkpoint-seconds"]
    checkpoints = [] if seconds is None else ["--checkpoint-seconds", seconds]
    with stop_on_signal() as stop:
        planning = _plan_options(arguments, DEMO_OPTIONS if demo else {})
        _stage(stop, "plan", [*common, *force, *planning, dataset, run])
        for planned in open_plan(require_run(run)).instances:
            _stage(stop, "train_instance", [*common, *checkpoints, run, str(planned.index)])
        _stage(stop, "consolidate", [*common, run])
        _stage(stop, "evaluate", [*common, run], shown=False)  # its table is this command's own result, printed below
    folder = require_run(run).evaluation
    metrics: dict[str, Any] = msgspec.json.decode((folder / "metrics.json").read_bytes())
    return Text(evaluation_text(metrics, folder / "report.html"), metrics)


def _plan_options(arguments: Arguments, defaults: dict[str, str]) -> list[str]:
    words: list[str] = []
    for fields in SECTIONS.values():
        for field, (metavar, _) in fields.items():
            name = flag(field)
            value = arguments[name] if arguments[name] not in (None, False) else defaults.get(name)
            if value is not None:
                words += [name, value] if metavar else [name]
    return words


def _stage(stop: StopFlag, module: str, words: list[str], *, shown: bool = True) -> None:
    """Run one command as users do, its result on stderr so that stdout stays this command's own."""
    command = [sys.executable, "-m", f"metabatch.commands.{module}", *words]
    stop.check()
    with subprocess.Popen(
        command,
        stdout=sys.stderr if shown else subprocess.DEVNULL,
        # Killed, this process takes its stage with it: the same command again must not find it at work.
        preexec_fn=partial(signal_on_death_of, os.getpid(), signal.SIGTERM),  # noqa: PLW1509 (no threads here)
    ) as child:
        while (code := _poll(child)) is None:
            if stop.signal is not None:
                child.send_signal(signal.SIGTERM)  # it stops at its next safe moment
                code = child.wait()
                stop.check()
    if code:
        raise StageError(module.replace("_", "-"), code if code > 0 else 128 - code)


def _poll(child: subprocess.Popen[bytes]) -> int | None:
    try:
        return child.wait(timeout=0.2)
    except subprocess.TimeoutExpired:
        return None


def main() -> int:
    return run_command(USAGE, action)


if __name__ == "__main__":
    sys.exit(main())
