"""What makes two plans the same: the content of the data, the options, and what was decided from them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from metabatch.errors import InputError
from metabatch.options import LATER_FIELDS, Options
from metabatch.rundir.layout import RunDir
from metabatch.rundir.manifests import Plan, Shard, load, to_json
from metabatch.rundir.publish import sha256_file

# Tables that decide nothing: what they led to stands in features.json.
_REPORTS = frozenset({"leakage.parquet"})


def dataset_fingerprint(shards: Sequence[Shard]) -> str:
    """sha256 over the content hashes of the shards, whatever their names."""
    return hash_texts(sorted(s.sha256 for s in shards))


def plan_fingerprint(plan: Plan) -> str:
    """sha256 over what decides the models: data content, options, columns, tables, teacher and who trains what.

    Where the data lies, threads, budgets, analyses and estimates do not count as such: the same decisions made on
    another machine have the same fingerprint. (A budget can decide the strategy, the instances and the missing-value
    policy.)
    """
    usual = Options()
    options = msgspec.structs.replace(
        plan.options, threads=None, learn_from=None, **{name: getattr(usual, name) for name in LATER_FIELDS}
    )
    decided = {
        "format_version": plan.format_version,
        "dataset": dataset_fingerprint(plan.dataset.shards),
        "options": options,
        "columns": plan.columns,
        "strategy": plan.strategy,
        "tables": {name: plan.tables[name] for name in sorted(plan.tables) if name not in _REPORTS},
        "booster": plan.booster,
        "seed": plan.seed,
        "instances": [(p.index, p.genes, p.core_genes, p.overlap_genes, p.rows) for p in plan.instances],
        "holdout": plan.holdout,
        "coverage": plan.coverage,
        "lowered": [x for x in plan.lowered if not x.option.startswith(LATER_FIELDS)],
    }
    if plan.teacher is not None:
        decided["teacher"] = plan.teacher.fingerprint
    return hashlib.sha256(to_json(decided)).hexdigest()


def plan_seal(plan: Plan) -> str:
    """sha256 over all of plan.json but the seal itself and the place of the data (which may be moved)."""
    as_read = msgspec.json.decode(to_json(plan), type=Plan)  # 1 is 1.0 where the type says so
    dataset = msgspec.structs.replace(as_read.dataset, path="")
    return hashlib.sha256(to_json(msgspec.structs.replace(as_read, seal="", dataset=dataset))).hexdigest()


def open_plan(run: RunDir) -> Plan:
    """plan.json, after checking that it and its tables are as `plan` wrote them.

    Raises
    ------
    InputError
        Naming the file that is missing or altered.
    """
    plan = load(run.plan, Plan)
    if plan_seal(plan) != plan.seal:
        raise InputError(
            f"{run.plan} was changed after it was made (its seal does not match)",
            expected="plan.json as written by `plan`",
            next_step="plan a new run directory with the options you want",
        )
    for name, expected in plan.tables.items():
        file = run.root / name
        if not file.is_file():
            raise InputError(f"{file} is missing", expected="the tables written by `plan`")
        if sha256_file(file) != expected:
            raise InputError(f"{file} was changed after the plan was made", expected=f"sha256 {expected}")
    return plan


def hash_texts(texts: Sequence[str]) -> str:
    """sha256 over the lines."""
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()
