"""The options of `plan` and `run-all`: usage text and conversion, both from the one record `Options`."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import msgspec

from metabatch.commands._cli import name_list
from metabatch.errors import UsageError
from metabatch.options import (
    ANALYSES,
    COMBINATIONS,
    DEFAULT_CLASSES,
    DEFAULT_SCORES,
    DEFAULT_SPLIT,
    DEFAULT_WEIGHT,
    Options,
    flag,
)
from metabatch.training.job import CHECKPOINT_SECONDS

# field -> (metavar, help). The default is added from Options unless the help says it.
_DATA = {
    "group_column": ("NAME", "Column that names the group of a row (gene)."),
    "label_column": ("NAME", "Column with the class of a row."),
    "classes": ("LIST", f"Classes in order, separated by commas (default: {','.join(DEFAULT_CLASSES)})."),
    "score_columns": ("LIST", "Base-model scores: CLASS_score or CLASS=COLUMN, separated by commas "
                              f"(default: those of {','.join(DEFAULT_SCORES)} that are there)."),
    "split_column": ("NAME", f"Coarser group kept whole in every split (default: {DEFAULT_SPLIT} if there)."),
    "id_columns": ("LIST", "Columns carried to outputs, never features (default: known names, e.g. chrom, position)."),
    "weight_column": ("NAME", f"Sampling weights for training and metrics (default: {DEFAULT_WEIGHT} if there)."),
    "exclude_features": ("LIST", "Columns to leave out: names separated by commas, or a file with one name a line."),
    "allow_features": ("LIST", "Columns to use although they are left out by default; list or file as above."),
}  # fmt: skip
_PLANNING = {
    "strategy": (
        "NAME",
        "auto, single, external, multi-instance; and, never by auto, incremental: linear models, or distributed: one "
        "model over several workers.",
    ),
    "genes_per_instance": ("N", "Genes per instance."),
    "instance_overlap": ("FRACTION", "Part of an instance's genes shared with others."),
    "max_instances": ("N", "Most instances."),
    "min_instances": ("N", "Fewest instances when an ensemble is used."),
    "workers": ("N", "Workers that train one model together (--strategy distributed)."),
    "memory_per_gene_mb": ("MB", "Predict memory per gene instead of by the measured law (default: the law)."),
    "max_memory_per_instance_gb": ("GB", "Memory of one job; the budget (default: 15, or less where less can be had)."),
    "safety_factor": ("FRACTION", "Part of the memory available here that counts when no budget is given."),
    "auto_adjust_instance_size": ("", "Keep --genes-per-instance as given; refuse when it does not fit."),
    "sample_genes": ("N", "Use N complete genes drawn over all shards, and nothing else (default: all)."),
    "holdout_fraction": ("FRACTION", "Part of the genes set aside for evaluation; 0: out-of-fold evaluation."),
    "holdout_chrom": ("LIST", "Chromosomes set aside for evaluation instead of a fraction, split groups whole."),
    "profile": ("NAME", "default, auto, low, standard or high: genes per instance and trees by memory tier."),
    "learn_from": ("RUN", "Correct the predicted memory by what an earlier run on the same data measured."),
    "missing_policy": ("NAME", "auto: zeros and missing cells by their cost in memory and time; native: as they are."),
    "auto_exclude_leaky": ("", "Leave out features that give the label away (default: they are reported)."),
    "seed": ("N", "Seed of every random choice."),
}
_TRAINING = {
    "n_estimators": ("N", "Most trees per class."),
    "learning_rate": ("X", "Shrinkage."),
    "max_depth": ("N", "Depth of a tree."),
    "subsample": ("FRACTION", "Rows per tree."),
    "colsample_bytree": ("FRACTION", "Features per tree."),
    "max_bin": ("N", "Bins per feature."),
    "n_folds": ("N", "Folds of the cross-validation by group; 0: none."),
    "early_stopping_patience": ("N", "Rounds without gain on the held-out fold before stopping; 0: never."),
    "calibration": ("METHOD", "platt, isotonic, temperature, none, or auto: by class, what predicts other genes best."),
    "prior": (
        "LIST",
        "Natural prevalence, CLASS=P separated by commas; the other classes share the rest "
        "(default: that of the weighted rows).",
    ),
    "device": (
        "NAME",
        "cpu; cuda: an NVIDIA GPU, for single and multi-instance, or an error; auto: a GPU where one can be had.",
    ),
    "threads": ("N", "Threads (default: the CPUs this process may use)."),
}
_LINEAR = {
    "model_spec": ("NAME", "Loss of the linear models: sgd_logistic, sgd_modified_huber or sgd_hinge."),
    "batch_size": ("N", "Rows in memory at a time, shuffled; fewer where so many do not fit."),
    "epochs": ("N", "Most passes of learning over the rows; it ends after one that no held-out fold gained by."),
    "alpha": ("X", "Strength of the L2 penalty."),
    "hash_kmers": ("N", "Columns that k-mers of 6 bases and more are hashed into; 0: each is a column of its own."),
}
_ENSEMBLE = {
    "combine": (
        "RULE",
        f"How members are combined: {', '.join(COMBINATIONS)}, or auto: the mean, unless another is better on genes it "
        "was not fitted on.",
    ),
}
_ANALYSIS = {
    "analyses": ("LIST", f"all, none, or some of {','.join(ANALYSES)} (default: all)."),
    "diagnostic_rows": ("N", "Rows that SHAP values are computed for, drawn by class."),
    "neigh_sample": ("N", "True sites of a class whose neighbourhoods are looked at."),
    "neigh_window": ("NT", "Positions on either side of a true site."),
}
type Sections = Mapping[str, Mapping[str, tuple[str, str]]]
SECTIONS: Sections = {
    "Data": _DATA,
    "Planning": _PLANNING,
    "Training": _TRAINING,
    "Linear models (--strategy incremental)": _LINEAR,
    "Ensemble": _ENSEMBLE,
    "Analysis": _ANALYSIS,
}


# What `distill` takes; columns, genes, and training options that are not given, are the teacher's.
_STUDENTS = ("strategy", "max_memory_per_instance_gb", "safety_factor", "missing_policy", "seed")
STUDENT_SECTIONS = {
    "Planning": {f: _PLANNING[f] for f in _STUDENTS} | {"strategy": ("NAME", "auto, single or external.")},
    "Training": _TRAINING,
    "Analysis": _ANALYSIS,
}


def options_text(*titles: str) -> str:
    """The option lines of the usage text: the sections named, default all."""
    return sections_text({title: SECTIONS[title] for title in titles or SECTIONS})


def sections_text(sections: Sections, *, inherited: Collection[str] = ()) -> str:
    """The option lines of these sections; of the fields `inherited` without the default."""
    defaults = Options()
    parts = []
    for title, fields in sections.items():
        lines = [f"{title}:"]
        for field, (metavar, said) in fields.items():
            text = f"{said.partition(' (default:')[0].rstrip('.')}." if field in inherited else said
            default = getattr(defaults, field)
            known = "default:" in text or not metavar or default in (None, (), {})
            shown = "" if known or field in inherited else f" (default: {default})"
            head = f"  {flag(field)}{' ' + metavar if metavar else ''}"
            lines.append(f"{head:<36}  {text}{shown}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def checkpoint_seconds(arguments: Mapping[str, Any]) -> float:
    """--checkpoint-seconds as a number."""
    text = arguments["--checkpoint-seconds"]
    if text is None:
        return CHECKPOINT_SECONDS
    if not re.fullmatch(r"\d{1,9}(\.\d*)?", text):
        raise UsageError(f"--checkpoint-seconds {text} cannot be used", expected="seconds, 0 or more")
    return float(text)


def convert(arguments: Mapping[str, Any]) -> tuple[Options, set[str]]:
    """docopt's strings as `Options`, and the fields that were given.

    Raises
    ------
    UsageError
        A value of the wrong type, naming the option.
    """
    given: dict[str, Any] = {}
    defaults = Options()
    for fields in SECTIONS.values():
        for field, (metavar, _) in fields.items():
            value = arguments.get(flag(field))  # a command may take some sections only
            if not metavar:
                if value:  # a flag turns its option the other way
                    given[field] = not getattr(defaults, field)
            elif value is not None:
                given[field] = _value(field, value)
    try:
        options = msgspec.convert(given, Options, strict=False)
    except msgspec.ValidationError as error:
        field = str(error).rpartition("$.")[2].rstrip("`").split("[")[0]
        shown = arguments.get(flag(field), given.get(field))
        raise UsageError(
            f"{flag(field)} {shown} cannot be used: {str(error).partition(' - at')[0]}",
        ) from None
    return options, set(given)


def _value(field: str, text: str) -> Any:
    if field in ("exclude_features", "allow_features"):
        return names_of(field, text)
    if field == "analyses":
        return _analyses(text)
    if field in ("classes", "score_columns", "id_columns", "holdout_chrom"):
        return list(name_list(text))
    if field == "prior":
        return _prior(text)
    if "float" in Options.__annotations__[field]:
        try:
            return float(text)  # ".3" and "1e-2" too, which msgspec does not read
        except ValueError:
            raise UsageError(f"{flag(field)} {text} cannot be used", expected="a number") from None
    return text


def _analyses(text: str) -> list[str]:
    """In the order of the report, whatever the order given, so that it makes no other plan; unknown ones at the end."""
    if text in ("all", "none"):
        return list(ANALYSES) if text == "all" else []
    given = set(name_list(text))
    return [name for name in ANALYSES if name in given] + sorted(given - set(ANALYSES))


def names_of(field: str, text: str) -> list[str]:
    """Names separated by commas, or those of a file with one a line."""
    path = Path(text)
    if os.path.isfile(path):  # noqa: PTH113 (Path.is_file fails on a list that is too long for a name)
        try:
            lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
        except UnicodeDecodeError:
            raise UsageError(f"{flag(field)} {text}: the file is no UTF-8 text", expected="one name a line") from None
        return [line for line in lines if line and not line.startswith("#")]
    if "/" in text or text.endswith((".txt", ".csv", ".tsv")):
        raise UsageError(f"{flag(field)} {text}: no such file")
    return list(name_list(text))


def _prior(text: str) -> dict[str, float]:
    priors = {}
    for part in text.split(","):
        name, _, number = part.partition("=")
        try:
            priors[name.strip()] = float(number)
        except ValueError:
            raise UsageError(f"--prior {text} cannot be used", expected="CLASS=P,CLASS=P with numbers P") from None
    return priors
