"""One trained member: a booster, or a line, and a calibration per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import xgboost as xgb
from scipy.sparse import csr_matrix

from metabatch.errors import InputError
from metabatch.models.calibration import Calibration
from metabatch.models.linear import LINEAR_FILE, LinearMember, linear_table, read_linear
from metabatch.rundir.layout import class_stems
from metabatch.rundir.publish import write_bytes
from metabatch.rundir.tables import write_table

CALIBRATION_FILE = "calibration.json"
_PART = "part-"


@dataclass(frozen=True)
class Member:
    """A booster per class, and the calibration of them all."""

    boosters: Mapping[str, xgb.Booster]
    calibration: Calibration

    def raw(self, batch: np.ndarray | csr_matrix) -> np.ndarray:
        """One-vs-rest booster probabilities of preprocessed rows (`as_rows`), float32, shape (n, k)."""
        return np.stack([self.boosters[c].inplace_predict(batch) for c in self.calibration.classes], axis=1)

    def predict_proba(self, batch: np.ndarray | csr_matrix) -> np.ndarray:
        """Calibrated probabilities that add up to 1, float64, shape (n, k)."""
        return self.calibration.apply(self.raw(batch))

    def set_threads(self, threads: int) -> None:
        for booster in self.boosters.values():
            booster.set_param({"nthread": threads})


@dataclass(frozen=True)
class MemberInParts:
    """An instance whose genes were trained in parts: the mean of the parts' probabilities."""

    parts: Sequence[Member | LinearMember]

    def predict_proba(self, batch: np.ndarray | csr_matrix) -> np.ndarray:
        """As `Member.predict_proba`."""
        return np.mean([part.predict_proba(batch) for part in self.parts], axis=0)

    def set_threads(self, threads: int) -> None:
        for part in self.parts:
            part.set_threads(threads)


type AnyMember = Member | LinearMember | MemberInParts


def trees_only(member: AnyMember) -> bool:
    """Whether it takes rows with gaps left out (`as_rows`), as lines do not."""
    parts = member.parts if isinstance(member, MemberInParts) else [member]
    return not any(isinstance(part, LinearMember) for part in parts)


def save_member(folder: Path, parts: Sequence[Member | LinearMember]) -> None:
    """Write {class}.ubj, or linear.parquet, and calibration.json into `folder`, or its ``part-0``, ``part-1``, …"""
    if len(parts) == 1:
        _save(folder, parts[0])
        return
    for number, part in enumerate(parts):
        _save(folder / f"{_PART}{number}", part)


def load_member(folder: Path, threads: int) -> AnyMember:
    """Read what `save_member` wrote."""
    parts = sorted(folder.glob(f"{_PART}*"), key=lambda p: int(p.name.removeprefix(_PART)))
    if parts:
        return MemberInParts([_load(part, threads) for part in parts])
    return _load(folder, threads)


def _save(folder: Path, member: Member | LinearMember) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    classes = member.calibration.classes
    if isinstance(member, LinearMember):
        write_table(folder / LINEAR_FILE, linear_table(member.linear, classes))
    else:
        for name, stem in zip(classes, class_stems(classes), strict=True):
            # Not save_model: on a full disk it raises XGBoost's own error instead of an OSError with its errno.
            write_bytes(folder / f"{stem}.ubj", bytes(member.boosters[name].save_raw("ubj")))
    record = msgspec.json.format(msgspec.json.encode(member.calibration), indent=2)
    write_bytes(folder / CALIBRATION_FILE, record + b"\n")


def _load(folder: Path, threads: int) -> Member | LinearMember:
    try:
        calibration = msgspec.json.decode((folder / CALIBRATION_FILE).read_bytes(), type=Calibration)
        if (folder / LINEAR_FILE).is_file():
            return read_linear(folder, calibration)
        classes = calibration.classes
        boosters = {
            name: xgb.Booster({"nthread": threads}, model_file=folder / f"{stem}.ubj")
            for name, stem in zip(classes, class_stems(classes), strict=True)
        }
    except (OSError, msgspec.MsgspecError, xgb.core.XGBoostError) as error:
        raise InputError(f"model in {folder} cannot be read: {str(error).splitlines()[0]}") from None
    return Member(boosters, calibration)
