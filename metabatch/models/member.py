"""One trained member: a booster and a calibration per class."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import pyarrow as pa
import xgboost as xgb

from metabatch.errors import InputError
from metabatch.models.calibration import Calibrator, normalise
from metabatch.rundir.publish import write_bytes

CALIBRATION_FILE = "calibration.json"


class CalibrationFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """calibration.json: the classes in order, and each one's calibration."""

    format_version: int = 1
    classes: tuple[str, ...]
    calibrators: dict[str, Calibrator]


@dataclass(frozen=True)
class Member:
    """Boosters and calibrators by class, in the order of `classes`."""

    classes: tuple[str, ...]
    boosters: Mapping[str, xgb.Booster]
    calibrators: Mapping[str, Calibrator]

    def raw(self, batch: pa.Table) -> np.ndarray:
        """One-vs-rest booster probabilities of a preprocessed batch, float32, shape (n, k)."""
        return np.stack([self.boosters[c].inplace_predict(batch) for c in self.classes], axis=1)

    def predict_proba(self, batch: pa.Table) -> np.ndarray:
        """Calibrated probabilities that add up to 1, float64, shape (n, k)."""
        return calibrate(self.raw(batch), self.classes, self.calibrators)

    def set_threads(self, threads: int) -> None:
        for booster in self.boosters.values():
            booster.set_param({"nthread": threads})


def calibrate(raw: np.ndarray, classes: Sequence[str], calibrators: Mapping[str, Calibrator]) -> np.ndarray:
    """Raw one-vs-rest scores (n, k) -> calibrated, normalised probabilities (n, k)."""
    return normalise(np.stack([calibrators[c].apply(raw[:, i]) for i, c in enumerate(classes)], axis=1))


def save_member(folder: Path, member: Member) -> None:
    """Write {class}.ubj and calibration.json into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, name in enumerate(member.classes):
        # Not save_model: on a full disk it raises XGBoost's own error instead of an OSError with its errno.
        write_bytes(folder / booster_file(index, name), bytes(member.boosters[name].save_raw("ubj")))
    record = CalibrationFile(classes=member.classes, calibrators=dict(member.calibrators))
    write_bytes(folder / CALIBRATION_FILE, msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")


def load_member(folder: Path, threads: int) -> Member:
    """Read what `save_member` wrote."""
    try:
        record = msgspec.json.decode((folder / CALIBRATION_FILE).read_bytes(), type=CalibrationFile)
        boosters = {}
        for index, name in enumerate(record.classes):
            boosters[name] = xgb.Booster({"nthread": threads}, model_file=folder / booster_file(index, name))
    except (OSError, msgspec.MsgspecError, xgb.core.XGBoostError) as error:
        raise InputError(f"model in {folder} cannot be read: {str(error).splitlines()[0]}") from None
    return Member(record.classes, boosters, record.calibrators)


def booster_file(index: int, name: str) -> str:
    """``donor.ubj``; a class name that is no file name is numbered instead."""
    plain = name.replace("-", "").replace("_", "").replace(".", "")
    return f"{name}.ubj" if plain.isalnum() and not name.startswith(".") else f"class{index}.ubj"
