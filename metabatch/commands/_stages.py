"""The stages of a run one after the other, each in a process of its own: what run-all and distill share."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

import msgspec

from metabatch.commands._cli import Arguments, Text
from metabatch.commands._tables import evaluation_text
from metabatch.errors import MetabatchError
from metabatch.options import flag
from metabatch.resources.process import signal_on_death_of
from metabatch.resources.signals import StopFlag, stop_on_signal
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import require_run


class StageError(MetabatchError):
    """A stage failed; its own message was printed already, its exit code is passed on."""

    def __init__(self, stage: str, code: int) -> None:
        super().__init__(
            f"{stage} ended with exit code {code}", next_step="see its message above; then the same command again"
        )
        self.exit_code = code  # type: ignore[misc]


def run_stages(arguments: Arguments, planner: str, words: list[str], run: str, after: str = "") -> Text:
    """Plan, then train every instance, consolidate and evaluate; the evaluation's table, with the line `after`.

    Parameters
    ----------
    planner : str
        The command module that makes the plan, from `words`.

    Raises
    ------
    StageError
        Of the first stage that failed, with its exit code.
    """
    common = [o for o in ("--quiet", "--verbose") if arguments[o]]
    force = ["--force"] if arguments["--force"] else []
    seconds = arguments["--checkpoint-seconds"]
    checkpoints = [] if seconds is None else ["--checkpoint-seconds", seconds]
    with stop_on_signal() as stop:
        _stage(stop, planner, [*common, *force, *words])
        for planned in open_plan(require_run(run)).instances:
            _stage(stop, "train_instance", [*common, *checkpoints, run, str(planned.index)])
        _stage(stop, "consolidate", [*common, run])
        _stage(stop, "evaluate", [*common, run], shown=False)  # its table is this command's own result, printed below
    folder = require_run(run).evaluation
    metrics: dict[str, Any] = msgspec.json.decode((folder / "metrics.json").read_bytes())
    return Text("\n".join(filter(None, (evaluation_text(metrics, folder / "report.html"), after))), metrics)


def given_options(
    arguments: Arguments, sections: Iterable[Mapping[str, tuple[str, str]]], defaults: Mapping[str, str] | None = None
) -> list[str]:
    """The options of some sections as they were given, or else by `defaults`, as words for another command."""
    words: list[str] = []
    for fields in sections:
        for field, (metavar, _) in fields.items():
            name = flag(field)
            value = arguments[name] if arguments[name] not in (None, False) else (defaults or {}).get(name)
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
