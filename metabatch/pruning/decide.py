"""Which features go: constant, near-constant, duplicate, then correlated ones, with the reason of each."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from metabatch import __version__
from metabatch.errors import InputError
from metabatch.pruning.columns import Table
from metabatch.pruning.confirm import Seen, equal_in_sample, look_at_all_rows, most_frequent
from metabatch.pruning.correlation import redundant
from metabatch.pruning.record import Pruned, PrunedFeatures
from metabatch.pruning.request import PruneRequest
from metabatch.pruning.sample import Sample, draw_sample
from metabatch.resources.signals import StopFlag

# A feature is looked at in all rows for being near-constant when its share in the sample is so much lower at most: as
# many times the rows without the value, and one in a hundred rows where that is more (they may lie in few genes).
_TIMES, _SLACK = 1.5, 0.01


@dataclass(frozen=True)
class _Preference:
    """Which of two features that say the same is kept.

    protected : column -> why; missing : feature -> missing cells in the sample; place : its number in the table.
    """

    protected: Mapping[str, str]
    missing: Mapping[str, int]
    place: Mapping[str, int]

    def order(self, names: Iterable[str]) -> list[str]:
        """The one to keep first."""
        return sorted(names, key=lambda n: (n not in self.protected, self.missing[n], self.place[n]))

    def why(self, kept: str, gone: str) -> str:
        if kept in self.protected:
            return f"{kept} is kept: {self.protected[kept]}"
        if self.missing[kept] < self.missing[gone]:
            return f"{kept} is kept: fewer missing cells"
        return f"{kept} is kept: earlier in the table"


def decide(table: Table, request: PruneRequest, seed: int, stop: StopFlag) -> PrunedFeatures:
    """Draw the sample, look at the suspects in all rows, and correlate what is left.

    Raises
    ------
    InputError
        Bad data, or no feature would be left.
    """
    sample = draw_sample(table, request, seed, stop)
    prefer = _Preference(
        protected={c.name: table.protected[c.name] for c in table.features if c.name in table.protected},
        missing={name: int(np.isnan(column).sum()) for name, column in sample.values.items()},
        place={name: number for number, name in enumerate(table.order)},
    )
    frequent = {name: most_frequent(column) for name, column in sample.values.items()}
    suspected = suspect_share(request.near_constant)
    constant = {n: value for n, (value, share) in frequent.items() if share >= suspected}
    equal = {n: frequent[n][0] for names in equal_in_sample(sample.values) for n in names}
    seen = look_at_all_rows(table, constant | equal, stop)
    pruned = [_excluded(name) for name in table.excluded]
    pruned += _uniform({n: seen[n] for n in constant if n not in prefer.protected}, table.rows, request.near_constant)
    gone = {p.feature for p in pruned}
    pruned += _duplicates({n: s for n, s in seen.items() if n not in gone}, prefer, table.rows)
    gone |= {p.feature for p in pruned}
    left = [c.name for c in table.features if c.name not in gone]
    if not left:
        raise InputError("every feature is constant or empty", expected="at least one feature that varies")
    share = {n: frequent[n][1] for n in left}
    correlated, not_correlated = _correlated(share, sample, prefer, request, stop)
    pruned += correlated
    notes = list(sample.notes)
    if all(n in prefer.protected for n in left if n not in {p.feature for p in correlated}):
        notes.append("no feature is left but those that stay whatever they hold: " + ", ".join(prefer.protected))
    beyond = [n for n in not_correlated if share[n] < 1]
    if beyond and request.max_correlation < 1:
        notes.append(
            f"{len(beyond):,} of {len(left):,} features did not enter the correlation (--max-corr-cols "
            f"{request.max_corr_cols:,}): those that vary least; they are kept, and may be correlated with others"
        )
    return PrunedFeatures(
        metabatch_version=__version__,
        seed=seed,
        request=request,
        inputs={s.name: s.sha256 for s in sorted(table.shards, key=lambda s: s.name)},
        columns=len(table.order),
        rows=table.rows,
        sample=sample.drawn,
        protected=table.protected,
        pruned=tuple(sorted(pruned, key=lambda p: prefer.place[p.feature])),
        not_correlated=tuple(not_correlated),
        notes=tuple(notes),
    )


def suspect_share(near_constant: float) -> float:
    """The share of the sample with one value from which on a feature is counted in all rows."""
    rest = 1 - near_constant
    return near_constant if not rest else 1 - max(_TIMES * rest, rest + _SLACK)


def _excluded(name: str) -> Pruned:
    return Pruned(
        feature=name, reason="excluded", against=None, statistic=None, value=None, rows=0,
        said="named by --exclude-features",
    )  # fmt: skip


def _uniform(seen: Mapping[str, Seen], rows: int, near_constant: float) -> list[Pruned]:
    """Features that have one value in all rows, or in nearly all."""
    found = []
    for name, column in seen.items():
        share = column.same / rows
        what = "no value" if math.isnan(column.value) else f"{column.value:g}"
        if column.same == rows or share >= near_constant:
            found.append(
                Pruned(
                    feature=name, reason="constant" if column.same == rows else "near-constant", against=None,
                    statistic="share", value=share, rows=rows,
                    said=f"{what} in every row" if column.same == rows
                    else f"{what} in all rows but {rows - column.same:,}",
                )
            )  # fmt: skip
    return found


def _duplicates(seen: Mapping[str, Seen], prefer: _Preference, rows: int) -> list[Pruned]:
    """Features that are equal to another one in all rows."""
    groups: dict[bytes, list[str]] = {}
    for name, column in seen.items():
        groups.setdefault(column.digest.digest(), []).append(name)
    found = []
    for names in groups.values():
        kept, *others = prefer.order(names)
        found += [
            Pruned(
                feature=name, reason="duplicate", against=kept, statistic=None, value=None, rows=rows,
                said=f"equal to {kept} in every row; {prefer.why(kept, name)}",
            )
            for name in others
            if name not in prefer.protected
        ]  # fmt: skip
    return found


def _correlated(
    share: Mapping[str, float], sample: Sample, prefer: _Preference, request: PruneRequest, stop: StopFlag
) -> tuple[list[Pruned], list[str]]:
    """Features to drop for their correlation with another one, and those that were not looked at.

    Of more than `max_corr_cols` those enter that vary most: whose most frequent value has the smallest `share`.
    """
    if request.max_correlation >= 1:
        return [], list(share)
    vary = sorted(
        (n for n in share if share[n] < 1), key=lambda n: (n not in prefer.protected, share[n], prefer.place[n])
    )
    entered = prefer.order(vary[: request.max_corr_cols])
    strong = redundant(
        entered, sample.values, correlation=request.correlation, above=request.max_correlation,
        most_differing=1 - request.near_constant, protected=prefer.protected, stop=stop,
    )  # fmt: skip
    pruned = [
        Pruned(
            feature=s.feature, reason="correlated", against=s.against, statistic=s.kind, value=round(s.r, 6),
            rows=sample.drawn.rows,
            said=f"{s.kind.capitalize()} {s.r:+.4f} with {s.against} in {sample.drawn.rows:,} rows; "
            f"{prefer.why(s.against, s.feature)}",
        )
        for s in strong
    ]  # fmt: skip
    there = set(entered)
    return pruned, [n for n in share if n not in there]
