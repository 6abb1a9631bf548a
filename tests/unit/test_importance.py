"""Importance on tables whose truth is known: the order, the groups, the flags, and merging members."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xgboost as xgb
from hypothesis import given, settings
from hypothesis import strategies as st

from metabatch.analysis.feature_groups import group_of
from metabatch.analysis.frame import Found, ImpossibleError, study
from metabatch.analysis.importance import importance, importance_pictures, merge_groups, merge_importance
from metabatch.analysis.importance_table import METHODS, ranked
from metabatch.analysis.sampling import MatrixRows
from metabatch.rundir.manifests import Feature

CLASSES = ("neither", "donor", "acceptor")
NAMES = ("a", "b", "c", "d", "e", "donor_score", "3mer_AAA")
SCORES = ("donor_score", "acceptor_score")


def feature(name: str) -> Feature:
    group = "kmer" if "mer_" in name else "score" if name in SCORES else "context"
    return Feature(name=name, dtype="float32", missing="native", if_absent="null", group=group)  # type: ignore[arg-type]


def rows_of(units: int, seed: int) -> MatrixRows:
    """a (and its copy d) tells donors, b tells acceptors, c is noise, e is the same in all rows of a gene."""
    rng = np.random.default_rng(seed)
    n = units * 25
    label = rng.choice(3, n, p=[0.7, 0.15, 0.15]).astype(np.uint8)
    unit = np.repeat(np.arange(units), 25)
    a = 2.5 * (label == 1) + rng.normal(0, 0.7, n)
    columns = {
        "a": a, "b": -2.5 * (label == 2) + rng.normal(0, 0.7, n), "c": rng.normal(size=n), "d": a,
        "e": rng.normal(size=units)[unit], "donor_score": rng.random(n), "3mer_AAA": rng.poisson(0.3, n),
    }  # fmt: skip
    return MatrixRows(
        pa.table({k: v.astype(np.float32) for k, v in columns.items()}), label, np.where(label == 0, 3.0, 1.0), unit
    )


def trained(rows: MatrixRows, classes: tuple[str, ...] = CLASSES) -> dict[str, xgb.Booster]:
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1, "colsample_bynode": 0.6, "seed": 1}
    return {
        c: xgb.train(settings, xgb.QuantileDMatrix(rows.table, label=rows.label == CLASSES.index(c)), 20)
        for c in classes
    }


def shap_of(rows: MatrixRows, models: dict[str, xgb.Booster]) -> pl.DataFrame:
    matrix = xgb.DMatrix(rows.table)
    means = {c: np.abs(m.predict(matrix, pred_contribs=True))[:, :-1].mean(axis=0) for c, m in models.items()}
    return pl.DataFrame(
        [(c, n, float(v)) for c, m in means.items() for n, v in zip(NAMES, m, strict=True)],
        schema=["class", "feature", "mean_abs_shap"],
        orient="row",
    )


@pytest.fixture(scope="module")
def world() -> dict[str, Any]:
    rows = rows_of(80, 0)
    models = trained(rows)
    return {"rows": rows, "models": models, "held": rows_of(60, 1), "shap": shap_of(rows, models)}


def study_of(world: dict[str, Any], *, threads: int = 1, seed: int = 0, **changes: Any) -> Found:
    given = {"held_out": (world["models"], world["held"]), "shap": world["shap"], "final": world["models"]} | changes
    return importance(
        rows=given.pop("rows", world["rows"]), features=[feature(n) for n in NAMES], matrix_names=NAMES,
        classes=CLASSES, on="instance 0", seed=seed, threads=threads, check=lambda: None, **given,
    )  # fmt: skip


@pytest.fixture(scope="module")
def found(world: dict[str, Any]) -> Found:
    return study_of(world)


def cell(found: Found, name: str, feature: str) -> dict[str, Any]:
    table = found.tables["importance"]
    return table.filter((pl.col("class") == name) & (pl.col("feature") == feature)).row(0, named=True)


def test_the_features_that_decide_come_first_and_noise_last(found: Found) -> None:
    table = found.tables["importance"].sort("rank")
    order = {c: table.filter(pl.col("class") == c)["feature"].to_list() for c in CLASSES}
    assert set(order["donor"][:2]) == {"a", "d"}
    assert order["acceptor"][0] == "b"
    assert set(order["neither"][:3]) == {"a", "b", "d"}
    assert cell(found, "donor", "a")["overall_rank"] <= 3
    assert "donor: most important are" in found.says[1]
    assert found.facts["donor"]["methods"] == list(METHODS)


def test_every_method_puts_the_truth_above_the_noise(found: Found) -> None:
    for method in METHODS:
        value = "rank_" + method
        assert cell(found, "acceptor", "b")[value] < cell(found, "acceptor", "c")[value]


def test_signs_and_significance(found: Found) -> None:
    assert cell(found, "donor", "a")["effect_size"] > 0.8
    assert cell(found, "acceptor", "b")["effect_size"] < -0.8
    assert cell(found, "donor", "a")["q_value"] < 1e-6
    assert cell(found, "donor", "c")["q_value"] > 0.01
    assert cell(found, "donor", "e")["p_value"] == 1.0


def test_gain_shares_add_up_and_groups_carry_their_features(found: Found) -> None:
    table, groups = found.tables["importance"], found.tables["importance_groups"]
    for part in (table, groups):
        assert part.group_by("class").agg(pl.col("gain_share").sum())["gain_share"].to_list() == pytest.approx([1] * 3)
    donor = groups.filter(pl.col("class") == "donor")
    assert set(donor["group"]) == {"context", "base scores", "3-mers"}
    assert donor.filter(pl.col("group") == "context")["permutation"][0] > cell(found, "donor", "a")["permutation"]


def test_without_cross_validation_or_shap_the_other_methods_rank_and_it_says_so(world: dict[str, Any]) -> None:
    found = study_of(world, held_out=None, shap=None)
    table = found.tables["importance"]
    assert table["permutation"].is_null().all()
    assert table["rank_permutation"].is_null().all()
    assert set(table["permutation_note"]) == {"no cross-validation: no rows that a model did not train on"}
    assert any("Not there: permutation, SHAP" in s for s in found.says)
    assert "5 methods" in found.says[0]
    assert table.filter((pl.col("class") == "acceptor") & (pl.col("rank") == 1))["feature"][0] == "b"


def test_a_class_without_held_out_rows_has_no_permutation_and_the_others_do(world: dict[str, Any]) -> None:
    held = world["held"]
    keep = held.label != 2
    some = MatrixRows(held.table.filter(pa.array(keep)), held.label[keep], held.weight[keep], held.unit[keep])
    found = study_of(world, held_out=(world["models"], some))
    assert cell(found, "acceptor", "b")["permutation"] is None
    assert cell(found, "acceptor", "b")["permutation_note"] == "held-out rows are all of one side"
    assert cell(found, "donor", "a")["permutation"] > 0


def test_no_model_or_no_rows_is_impossible(world: dict[str, Any]) -> None:
    with pytest.raises(ImpossibleError, match="no model"):
        study_of(world, final={})
    none = MatrixRows(world["rows"].table.slice(0, 0), np.zeros(0, np.uint8), np.zeros(0), np.zeros(0, np.int64))
    with pytest.raises(ImpossibleError, match="no rows"):
        study_of(world, rows=none)


def test_the_same_for_any_number_of_threads(world: dict[str, Any], found: Found) -> None:
    assert study_of(world, threads=2).tables["importance"].equals(found.tables["importance"])


def test_names_that_xgboost_refuses_keep_their_own_in_the_table(world: dict[str, Any]) -> None:
    rows = world["rows"]
    names = ["f0" if n == "a" else n for n in NAMES]
    renamed = MatrixRows(rows.table.rename_columns(names), rows.label, rows.weight, rows.unit)
    models = trained(renamed, ("donor",))
    features = [feature("a[0]" if n == "a" else n) for n in NAMES]
    found = importance(
        models, (models, renamed), renamed, None, features, names, CLASSES, on="", seed=0, threads=1,
        check=lambda: None,
    )  # fmt: skip
    assert cell(found, "donor", "a[0]")["gain"] > 0
    assert cell(found, "donor", "a[0]")["permutation"] > 0


def test_a_feature_that_carries_nearly_all_gain_is_flagged() -> None:
    rows = rows_of(40, 0)
    leak = rows.table.set_column(2, "c", pa.array((rows.label == 1).astype(np.float32)))
    leaky = MatrixRows(leak, rows.label, rows.weight, rows.unit)
    settings = {"objective": "binary:logistic", "max_depth": 3, "nthread": 1}
    models = {"donor": xgb.train(settings, xgb.QuantileDMatrix(leak, label=rows.label == 1), 10)}
    flags = study_of({"rows": leaky, "models": models, "held": leaky, "shap": None}).flags
    assert len(flags) == 1
    assert flags[0].startswith("donor: c alone carries 100% of the gain")


def test_a_feature_most_methods_praise_but_held_out_rows_do_not_is_flagged() -> None:
    """Trained where c tells donors; in the held-out genes it tells the others."""
    rows, held = rows_of(80, 0), rows_of(60, 1)
    sign = [np.where(r.label == 1, s, -s) for r, s in ((rows, 1.0), (held, -1.0))]
    tables = [
        r.table.set_column(2, "c", pa.array((x + np.random.default_rng(i).normal(0, 1, len(x))).astype(np.float32)))
        for i, (r, x) in enumerate(zip((rows, held), sign, strict=True))
    ]
    noise = [t.set_column(0, "a", t["e"]).set_column(3, "d", t["e"]).set_column(1, "b", t["e"]) for t in tables]
    turned = [MatrixRows(t, r.label, r.weight, r.unit) for t, r in zip(noise, (rows, held), strict=True)]
    models = trained(turned[0], ("donor",))
    flags = study_of({"rows": turned[0], "models": models, "held": turned[1], "shap": shap_of(turned[0], models)}).flags
    assert any(re.search(r"held-out rows are predicted better .*: c \(-", f) for f in flags)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("donor_score", "base scores"), ("donor_score_m3", "neighbouring scores"),
        ("acceptor_score_p10", "neighbouring scores"), ("donor_peak_fraction", "derived scores"),
        ("acceptor_max_up300", "derived scores"), ("splice_probability", "derived scores"), ("3mer_AAA", "3-mers"),
        ("5mer_ACGTA", "5-mers"), ("base_0", "nucleotides"), ("base_m12", "nucleotides"), ("base_p1", "nucleotides"),
        ("gc_content", "sequence composition"), ("gene_length", "context"), ("baseline_m1", "context"),
        ("other_m3", "context"),
    ],
)  # fmt: skip
def test_groups_are_told_by_name(name: str, group: str) -> None:
    assert group_of(feature(name), SCORES) == group


def test_ranking_by_hand() -> None:
    empty = {m: [None] * 3 for m in METHODS}
    given = empty | {"gain": [5.0, 3.0, 0.0], "permutation": [None, -0.1, 0.2], "effect_size": [0.1, -0.9, 0.5]}
    rest = ("gain_share", "permutation_sd", "permutation_ap", "p_value", "q_value")
    table = pl.DataFrame(given, schema=dict.fromkeys(METHODS, pl.Float64)).with_columns(
        pl.Series("class", ["x"] * 3), pl.Series("feature", ["p", "q", "r"]), pl.lit("g").alias("group"),
        pl.lit("").alias("permutation_note"), *(pl.lit(None, dtype=pl.Float64).alias(c) for c in rest),
    )  # fmt: skip
    result = ranked(table)
    assert result["rank_gain"].to_list() == [1, 2, 3]
    assert result["rank_permutation"].to_list() == [2.5, 2.5, 1]  # not measured and below 0: both no better than 0
    assert result["rank_effect_size"].to_list() == [3, 1, 2]
    assert result["rank_shap"].to_list() == [None] * 3
    assert result["mean_rank"].to_list() == pytest.approx([(0 + 0.75 + 1) / 3, (0.5 + 0.75 + 0) / 3, (1 + 0 + 0.5) / 3])
    assert result["rank"].to_list() == [3, 1, 2]


def test_merged_with_itself_a_table_stays_what_it_is(found: Found) -> None:
    table, groups = found.tables["importance"], found.tables["importance_groups"]
    merged = merge_importance([(1.0, table), (3.0, table)])
    assert merged.columns == table.columns
    for column in table.columns:
        if table[column].dtype == pl.Float64:
            same = np.allclose(merged[column].to_numpy(), table[column].to_numpy(), rtol=1e-9, equal_nan=True)
            assert same, column
        else:
            assert merged[column].equals(table[column]), column
    again = merge_groups([(1.0, groups), (3.0, groups)])
    assert again["permutation"].to_list() == pytest.approx(groups["permutation"].to_list())


@settings(deadline=None, max_examples=25)
@given(st.floats(0.1, 10), st.floats(0.1, 10), st.integers(0, 100))
def test_merged_values_lie_between_those_of_the_members(found: Found, one: float, two: float, seed: int) -> None:
    first = found.tables["importance"]
    factor = pl.Series(np.random.default_rng(seed).uniform(0, 1, first.height))
    second = first.with_columns(pl.col("gain", "shap", "effect_size", "p_value") * factor)
    merged = merge_importance([(one, first), (two, second)])
    for column in ("gain", "shap", "effect_size", "p_value"):
        both = np.stack([first[column].to_numpy(), second[column].to_numpy()])
        value = merged[column].to_numpy()
        assert (value >= both.min(axis=0) - 1e-9 - abs(value) * 1e-9).all()
        assert (value <= both.max(axis=0) + 1e-9 + abs(value) * 1e-9).all()
    expected = (one * first["gain"] + two * second["gain"]) / (one + two)
    assert merged["gain"].to_numpy() == pytest.approx(expected.to_numpy())


def test_a_member_that_did_not_measure_does_not_count(found: Found) -> None:
    table = found.tables["importance"]
    without = table.with_columns(pl.lit(None, dtype=pl.Float64).alias("permutation"), permutation_note=pl.lit("why"))
    merged = merge_importance([(1.0, without), (1.0, table)])
    assert merged["permutation"].to_list() == pytest.approx(table["permutation"].to_list())
    assert set(merged["permutation_note"]) == {""}
    assert set(merge_importance([(1.0, without)])["permutation_note"]) == {"why"}


def test_pictures_are_written_with_their_numbers(found: Found, tmp_path: Path) -> None:
    section = study("importance", "Feature importance", lambda: found, tmp_path)
    assert section.status == "made", section.why
    names = [
        "importance_neither",
        "importance_donor",
        "importance_acceptor",
        "importance_groups",
        "importance_agreement",
    ]
    assert [p.name for p in section.pictures] == names
    for picture in section.pictures:
        assert (tmp_path / "figures" / f"{picture.name}.png").stat().st_size > 5000
        assert pl.read_csv(tmp_path / "figures" / f"{picture.name}.csv").height > 0
    bars = pl.read_csv(tmp_path / "figures" / "importance_donor.csv")
    assert bars["gain_share"].to_list() == pytest.approx(
        found.tables["importance"].filter(pl.col("class") == "donor").sort("rank")["gain_share"].to_list()
    )
    assert len(section.shown) == 4


def test_long_names_are_not_cut() -> None:
    long = "a_feature_with_a_name_that_nobody_would_want_to_read_twice_in_a_day_$x$_" * 2
    rows = rows_of(30, 0)
    names = [long if n == "a" else n for n in NAMES]
    renamed = MatrixRows(rows.table.rename_columns(names), rows.label, rows.weight, rows.unit)
    models = trained(renamed)
    features = [feature(n) for n in names]
    found = importance(
        models, None, renamed, None, features, names, CLASSES, on="", seed=0, threads=1, check=lambda: None
    )
    for picture in importance_pictures(found.tables["importance"], found.tables["importance_groups"], ""):
        picture.figure.draw_without_rendering()
        for text in picture.figure.axes[0].get_yticklabels():
            assert text.get_window_extent().x0 >= 0
