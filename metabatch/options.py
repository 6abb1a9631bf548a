"""The options of a run: one frozen record with the defaults, stored in plan.json under the same names.

Defaults are the splice ones (SPEC: gene_id, splice_type, donor/acceptor/neither) and the notes'
hyperparameters. ``validate`` holds every range, so that the CLI and the API refuse the same values.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import msgspec

from metabatch.errors import UsageError

Strategy = Literal["auto", "single", "external", "multi-instance", "incremental", "distributed"]
Device = Literal["cpu", "cuda", "auto"]
ModelSpec = Literal["sgd_logistic", "sgd_modified_huber", "sgd_hinge"]
MissingValues = Literal["auto", "native"]
Profile = Literal["default", "auto", "low", "standard", "high"]
CalibrationMethod = Literal["platt", "isotonic", "temperature", "none", "auto"]
# The plain mean first: the others have to be better than it.
CombinationMethod = Literal["mean", "logit-mean", "convex", "selection", "top-k", "hierarchical", "routing", "stacking"]
CombineOption = Literal["auto"] | CombinationMethod

COMBINATIONS: tuple[CombinationMethod, ...] = get_args(CombinationMethod)

# In the order of the report.
ANALYSES = (
    "leakage", "curves", "overfitting", "calibration", "thresholds", "genes", "neighbourhoods", "importance",
    "shap", "ablation",
)  # fmt: skip
# Options that say what is looked at, or how members are combined; the instances do not depend on them.
LATER_FIELDS = ("analyses", "diagnostic_rows", "neigh_sample", "neigh_window", "combine")
DEFAULT_CLASSES = ("neither", "donor", "acceptor")
DEFAULT_SCORES = ("donor_score", "acceptor_score", "neither_score")
DEFAULT_WEIGHT = "sampling_weight"
DEFAULT_SPLIT = "locus_id"


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What the user asked for. ``None`` means: decided by `plan`, and written into plan.json."""

    # data
    group_column: str = "gene_id"
    label_column: str = "splice_type"
    classes: tuple[str, ...] = DEFAULT_CLASSES
    score_columns: tuple[str, ...] | None = None
    split_column: str | None = None
    id_columns: tuple[str, ...] | None = None
    weight_column: str | None = None
    exclude_features: tuple[str, ...] = ()
    allow_features: tuple[str, ...] = ()
    # planning
    strategy: Strategy = "auto"
    genes_per_instance: int = 1500
    instance_overlap: float = 0.1
    max_instances: int = 10
    min_instances: int = 3
    workers: int = 2
    memory_per_gene_mb: float | None = None
    max_memory_per_instance_gb: float | None = None
    safety_factor: float = 0.6
    auto_adjust_instance_size: bool = True
    sample_genes: int | None = None
    holdout_fraction: float = 0.1
    holdout_chrom: tuple[str, ...] = ()
    profile: Profile = "default"
    learn_from: str | None = None
    missing_policy: MissingValues = "auto"
    auto_exclude_leaky: bool = False
    seed: int = 42
    # training
    n_estimators: int = 800
    learning_rate: float = 0.1
    max_depth: int = 6
    subsample: float = 0.8
    colsample_bytree: float = 0.8
    max_bin: int = 256
    n_folds: int = 5
    early_stopping_patience: int = 20
    calibration: CalibrationMethod = "platt"
    prior: dict[str, float] = {}
    device: Device = "cpu"
    threads: int | None = None
    # training of linear models (strategy incremental)
    model_spec: ModelSpec = "sgd_logistic"
    batch_size: int = 250_000
    epochs: int = 10
    alpha: float = 1e-3
    hash_kmers: int = 0
    # ensemble
    combine: CombineOption = "auto"
    # analysis
    analyses: tuple[str, ...] = ANALYSES
    diagnostic_rows: int = 25_000
    neigh_sample: int = 2_000
    neigh_window: int = 10


_DEFAULTS = Options()
# option -> (lowest, highest, are the ends allowed)
_RANGES: dict[str, tuple[float, float, bool]] = {
    "genes_per_instance": (1, math.inf, True),
    "instance_overlap": (0.0, 0.9, True),
    "max_instances": (1, 1_000_000, True),
    "min_instances": (2, 1_000_000, True),
    "workers": (1, 10_000, True),
    "memory_per_gene_mb": (0, math.inf, False),
    "max_memory_per_instance_gb": (0, math.inf, False),
    "safety_factor": (0.05, 1.0, True),
    "sample_genes": (2, math.inf, True),
    "holdout_fraction": (0.0, 0.9, True),
    "seed": (0, 2**31 - 1, True),
    "n_estimators": (1, 100_000, True),
    "learning_rate": (0.0, 10.0, False),
    "max_depth": (1, 20, True),
    "subsample": (0.01, 1.0, True),
    "colsample_bytree": (0.01, 1.0, True),
    "max_bin": (2, 65_535, True),
    "n_folds": (0, 100, True),
    "early_stopping_patience": (0, 100_000, True),
    "threads": (1, 4096, True),
    "batch_size": (1_000, math.inf, True),
    "epochs": (1, 1_000, True),
    "alpha": (0.0, 1_000.0, True),
    "hash_kmers": (0, 65_536, True),
    "diagnostic_rows": (100, 10_000_000, True),
    "neigh_sample": (1, 1_000_000, True),
    "neigh_window": (1, 1_000, True),
}


def flag(name: str) -> str:
    """The command-line spelling of an option field, e.g. ``n_folds`` -> ``--n-folds``; what is on by default, off."""
    return f"--{'no-' if getattr(_DEFAULTS, name, None) is True else ''}{name.replace('_', '-')}"


def validate(options: Options) -> Options:
    """Check every range and combination; return `options` unchanged.

    Raises
    ------
    UsageError
        Naming the option, the value and the allowed range.
    """
    for name, (low, high, closed) in _RANGES.items():
        value: Any = getattr(options, name)
        if value is None:
            continue
        inside = low <= value <= high if closed else low < value < high
        if not inside or not math.isfinite(value):
            brackets = "[]" if closed else "()"
            raise UsageError(
                f"{flag(name)} {value} is out of range",
                expected=f"a number in {brackets[0]}{low}, {high}{brackets[1]}",
            )
    if len(options.classes) < 2 or len(set(options.classes)) != len(options.classes):
        raise UsageError(
            f"--classes {','.join(options.classes)} names {len(set(options.classes))} different class(es)",
            expected="two or more different classes, e.g. --classes neither,donor,acceptor",
        )
    if options.min_instances > options.max_instances:
        raise UsageError(
            f"--min-instances {options.min_instances} is above --max-instances {options.max_instances}",
            expected="min-instances <= max-instances",
        )
    if options.n_folds == 1:
        raise UsageError("--n-folds 1 leaves no training rows", expected="0 (no cross-validation) or at least 2")
    if options.n_folds == 0 and options.calibration != "none":
        raise UsageError(
            f"--n-folds 0 with --calibration {options.calibration}: calibration is fitted on out-of-fold scores",
            next_step="add --calibration none, or use --n-folds 2 or more",
        )
    for name, value in options.prior.items():
        if name not in options.classes or not 0 < value < 1:
            raise UsageError(
                f"--prior {name}={value} cannot be used",
                expected=f"CLASS=P with CLASS one of {', '.join(options.classes)} and 0 < P < 1",
            )
    named = sum(options.prior.values())
    whole = len(options.prior) == len(options.classes)
    if options.prior and (abs(named - 1) > 1e-6 if whole else named >= 1):
        raise UsageError(
            f"the priors add up to {named:g}",
            expected="1 when every class is named" if whole else "less than 1: the other classes share the rest",
        )
    unknown = [name for name in options.analyses if name not in ANALYSES]
    if unknown:
        raise UsageError(
            f"--analyses {','.join(unknown)}: no such analysis", expected=f"all, none, or some of {', '.join(ANALYSES)}"
        )
    _check_pairs(options)
    return options


def _check_pairs(options: Options) -> None:
    """Options that contradict each other."""
    if options.learn_from is not None and options.memory_per_gene_mb is not None:
        raise UsageError(
            "--learn-from and --memory-per-gene-mb both say what memory to predict", expected="one of them"
        )
    if options.auto_exclude_leaky and "leakage" not in options.analyses:
        raise UsageError("--auto-exclude-leaky without the leakage screen", next_step="add leakage to --analyses")
    both = set(options.exclude_features) & set(options.allow_features)
    if both:
        raise UsageError(f"{', '.join(sorted(both))} stands in both --exclude-features and --allow-features")
