"""What all executables share: parsing, logging, exit codes. No logic of any stage."""

from __future__ import annotations

import errno
import logging
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
from docopt import DocoptExit, docopt

from metabatch import __version__
from metabatch.errors import BudgetError, InputError, MetabatchError, UsageError
from metabatch.resources.signals import interrupted_by_signals

EXIT_CODES = """Exit codes:
  0   done, or already done
  2   an option or argument cannot be used
  3   input or manifest invalid, or a place that cannot be written
  4   would exceed the memory or disk budget (training: in every way there is)
  5   another live process owns this work
  70  internal error (please report it)
  75  interrupted; run the same command again
"""

FORCE = "  --force                 Do it again even when it is done.\n"
REPORTING = """  --json                  Print the result as JSON.
  --quiet                 Only warnings and errors on stderr.
  --verbose               More detail on stderr.
  -h --help               Show this text.
  --version               Show the version.
"""
COMMON = FORCE + REPORTING

Arguments = dict[str, Any]


def run_command(usage: str, action: Callable[[Arguments], Any], argv: Sequence[str] | None = None) -> int:
    """Parse `argv` by `usage`, call `action`, print what it returns, and turn errors into exit codes.

    `action` returns an object to print: with --json as JSON, otherwise by ``str``.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        arguments: Arguments = docopt(usage, words, version=f"metabatch {__version__}")
    except DocoptExit as error:
        print(f"error: the arguments do not fit: {' '.join(words)}\n{error.usage.strip()}", file=sys.stderr)
        return UsageError.exit_code
    except SystemExit:  # --help or --version, printed by docopt
        return 0
    _set_up_logging(arguments)
    try:
        with interrupted_by_signals():
            result = action(arguments)
    except MetabatchError as error:
        return _fail(error)
    except MemoryError as error:
        return _fail(_memory_error(error))
    except OSError as error:
        expected = _file_error(error)
        if expected is None:
            return _internal_error()
        logging.getLogger(__name__).debug("raised at", exc_info=True)
        return _fail(expected)
    except KeyboardInterrupt:
        print("interrupted; run the same command again", file=sys.stderr)
        return 75
    except Exception:  # a bug: said as one, with its traceback and exit code 70
        return _internal_error()
    if result is not None:
        print(_as_json(result) if arguments.get("--json") else str(result))
    return 0


def _set_up_logging(arguments: Arguments) -> None:
    level = logging.INFO
    if arguments.get("--quiet"):
        level = logging.WARNING
    elif arguments.get("--verbose"):
        level = logging.DEBUG
    logging.basicConfig(
        level=level, stream=sys.stderr, format="%(asctime)s %(levelname)s %(message)s", datefmt="%H:%M:%S"
    )
    for name in ("matplotlib", "filelock"):
        logging.getLogger(name).setLevel(max(level, logging.WARNING))


def _fail(error: MetabatchError) -> int:
    print(f"error: {error}", file=sys.stderr)
    return error.exit_code


def _internal_error() -> int:
    traceback.print_exc()
    print("internal error: this is a bug in metabatch; please report the lines above", file=sys.stderr)
    return MetabatchError.exit_code


def _memory_error(error: MemoryError) -> BudgetError:
    """Memory that could not be had is the surroundings' fault, not a bug."""
    logging.getLogger(__name__).debug("raised at", exc_info=True)
    return BudgetError(
        f"memory ran out{f': {error}' if str(error) else ''}",
        next_step="the same command with more memory, or with fewer --workers or --threads where it has them",
    )


def _file_error(error: OSError) -> InputError | None:
    """A full or read-only disk and missing rights are the surroundings' fault, not a bug."""
    where = str(error.filename) if error.filename else None
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InputError(
            "no space left on the disk", where=where, next_step="make space, then run the same command again"
        )
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return InputError(
            f"cannot write or read: {os.strerror(error.errno)}", where=where, expected="a place you may write to"
        )
    if error.errno == errno.ENOENT:
        return InputError(
            "a file or folder that was expected is not there", where=where,
            next_step="restore it, or run the command that makes it (bin/status says which)",
        )  # fmt: skip
    if error.errno in (errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG):
        return InputError(f"{os.strerror(error.errno or 0)}", where=where)
    return None


def _as_json(value: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=_encode), indent=2).decode()


def _encode(value: Any) -> Any:
    if hasattr(value, "to_json"):
        return value.to_json()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    raise TypeError(f"cannot write {type(value).__name__} as JSON")


def name_list(text: str) -> tuple[str, ...]:
    """Names separated by commas."""
    return tuple(part.strip() for part in text.split(",") if part.strip())


class Text:
    """A result for people (`str`) that is also an object for --json."""

    def __init__(self, text: str, data: Any) -> None:
        self._text, self._data = text, data

    def __str__(self) -> str:
        return self._text

    def to_json(self) -> Any:
        return self._data
