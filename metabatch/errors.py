"""The errors a user can meet: what was found, what was expected, where, and what to do next.

Every error carries the exit code documented in the usage texts. A user's mistake never shows a
traceback; anything that is not one of these is a bug and exits 70.
"""

from __future__ import annotations

from typing import ClassVar


class MetabatchError(Exception):
    """Base of all expected errors.

    Parameters
    ----------
    found : str
        What was found, with the name and the value at fault.
    expected : str, optional
        What was expected instead.
    where : str, optional
        File, column, gene, instance.
    next_step : str, optional
        What the user can type or change.
    """

    exit_code: ClassVar[int] = 70

    def __init__(
        self,
        found: str,
        *,
        expected: str | None = None,
        where: str | None = None,
        next_step: str | None = None,
    ) -> None:
        super().__init__(found)
        self.found = found
        self.expected = expected
        self.where = where
        self.next_step = next_step

    def __str__(self) -> str:
        parts = [self.found]
        for name, text in (
            ("expected", self.expected),
            ("where", self.where),
            ("next", self.next_step),
        ):
            if text:
                parts.append(f"  {name}: {text}")
        return "\n".join(parts)


class UsageError(MetabatchError):
    """An option or argument that cannot be used as given."""

    exit_code = 2


class InputError(MetabatchError):
    """A data set, manifest or artefact that is not valid, or a place that cannot be written."""

    exit_code = 3


class BudgetError(MetabatchError):
    """The work would exceed the memory (or disk) it is given; training: in every way there is."""

    exit_code = 4


class OwnedError(MetabatchError):
    """Another live process owns this work."""

    exit_code = 5


class InterruptedRunError(MetabatchError):
    """Stopped by a signal; the same command continues."""

    exit_code = 75
