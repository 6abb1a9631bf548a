"""Mutual information, effect size and the test by genes, against known truths and scikit-learn."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from scipy.stats import mannwhitneyu
from sklearn.metrics import mutual_info_score, roc_auc_score

from metabatch.analysis.associations import associations
from metabatch.analysis.sampling import MatrixRows
from metabatch.rundir.manifests import Feature

CLASSES = ("neither", "donor", "acceptor")


def feature(name: str, missing: str = "native", sentinel: float | None = None) -> Feature:
    return Feature(
        name=name, dtype="float32", missing=missing, if_absent="null", group="context", sentinel=sentinel  # type: ignore[arg-type]
    )  # fmt: skip


def rows_of(
    columns: dict[str, np.ndarray | pa.Array], label: np.ndarray, unit: np.ndarray, weight: np.ndarray | None = None
) -> MatrixRows:
    arrays = {n: c if isinstance(c, pa.Array) else pa.array(c.astype(np.float32)) for n, c in columns.items()}
    return MatrixRows(pa.table(arrays), label, np.ones(len(label)) if weight is None else weight, unit)


def found(rows: MatrixRows, features: list[Feature] | None = None) -> dict[tuple[str, str], dict[str, float | None]]:
    features = features or [feature(n) for n in rows.table.column_names]
    table = associations(rows, features, CLASSES, lambda: None)
    return {(r["class"], r["feature"]): r for r in table.iter_rows(named=True)}


def genes(units: int = 60, size: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.random.Generator]:
    """Label and gene: two donors and two acceptors at random places of every gene."""
    rng = np.random.default_rng(seed)
    one = np.array([1, 1, 2, 2] + [0] * (size - 4))
    return np.concatenate([rng.permutation(one) for _ in range(units)]), np.repeat(np.arange(units), size), rng


def test_effect_size_is_that_of_the_ranks_with_its_sign() -> None:
    label, unit, rng = genes()
    up = np.round((label == 1) + rng.normal(0, 1, len(label)), 1)  # ties too
    result = found(rows_of({"up": up, "down": -up}, label, unit))
    u = mannwhitneyu(up[label == 1], up[label != 1]).statistic
    expected = 2 * u / ((label == 1).sum() * (label != 1).sum()) - 1
    assert expected > 0.2
    assert result["donor", "up"]["effect_size"] == pytest.approx(expected, abs=1e-6)
    assert result["donor", "down"]["effect_size"] == pytest.approx(-expected, abs=1e-6)
    assert result["donor", "up"]["q_value"] < 1e-4


def test_weights_count_as_repeated_rows() -> None:
    label, unit, rng = genes()
    x, times = rng.normal(0.5 * label, 1), rng.integers(1, 4, len(label))
    result = found(rows_of({"x": x}, label, unit, times.astype(float)))["acceptor", "x"]
    expected = 2 * roc_auc_score(label == 2, x.astype(np.float32), sample_weight=times) - 1
    assert result["effect_size"] == pytest.approx(expected, abs=1e-9)
    repeated = np.repeat(np.arange(len(label)), times)
    plain = found(rows_of({"x": x[repeated]}, label[repeated], unit[repeated]))["acceptor", "x"]
    assert result["effect_size"] == pytest.approx(plain["effect_size"], abs=1e-9)
    assert result["p_value"] == pytest.approx(plain["p_value"], rel=1e-6)


def test_information_of_few_values_is_scikit_learns_less_the_bias() -> None:
    label, unit, rng = genes()
    x = np.where(label == 1, rng.integers(0, 4, len(label)), rng.integers(2, 6, len(label)))
    got = found(rows_of({"x": x}, label, unit))["donor", "x"]["mutual_information"]
    cells = len(set(zip(x, label == 1, strict=True)))
    bias = (cells - len(set(x)) - 2 + 1) / (2 * len(x))
    assert got == pytest.approx(mutual_info_score(x, label == 1) - bias, abs=1e-9)


def test_information_of_the_label_itself_is_its_entropy_and_of_noise_nearly_nothing() -> None:
    label, unit, rng = genes(200)
    result = found(rows_of({"label": label == 1, "noise": rng.normal(size=len(label))}, label, unit))
    share = (label == 1).mean()
    entropy = -share * np.log(share) - (1 - share) * np.log(1 - share)
    assert result["donor", "label"]["mutual_information"] == pytest.approx(entropy, abs=0.001)
    assert result["donor", "noise"]["mutual_information"] < 0.005


def test_missingness_that_follows_the_label_is_information_but_no_effect() -> None:
    label, unit, rng = genes()
    x = pa.array(rng.normal(size=len(label)).astype(np.float32), mask=label == 1)
    result = found(rows_of({"x": x}, label, unit))
    assert result["donor", "x"]["mutual_information"] > 0.3
    assert result["donor", "x"]["effect_size"] is None
    assert result["donor", "x"]["p_value"] is None
    assert abs(result["acceptor", "x"]["effect_size"]) < 0.2


@pytest.mark.parametrize("how", ["zero-as-missing", "sentinel"])
def test_what_the_matrix_does_to_zeros_and_gaps_changes_nothing(how: str) -> None:
    label, unit, rng = genes()
    x = rng.poisson(0.3 + (label == 1)).astype(np.float32)
    if how == "zero-as-missing":
        plain = found(rows_of({"x": x}, label, unit))
        marked = found(rows_of({"x": pa.array(x, mask=x == 0)}, label, unit), [feature("x", "zero-as-missing")])
    else:
        gone = rng.random(len(x)) < 0.1
        plain = found(rows_of({"x": pa.array(x, mask=gone)}, label, unit))
        filled = np.where(gone, np.float32(-1.5), x)
        marked = found(rows_of({"x": filled}, label, unit), [feature("x", "sentinel", -1.5)])
    assert marked == plain


def test_a_feature_of_the_gene_is_not_called_significant_however_many_rows_it_has() -> None:
    """Tested by rows, a value that is the same in all rows of a gene would seem to be evidence many times over."""
    rng = np.random.default_rng(3)
    share = rng.uniform(0.05, 0.4, 40)
    label = np.concatenate([(rng.random(200) < s).astype(int) for s in share])
    unit = np.repeat(np.arange(40), 200)
    x = (share + rng.normal(0, 0.1, 40))[unit]
    by_rows = mannwhitneyu(x[label == 1], x[label == 0]).pvalue
    result = found(rows_of({"x": x}, label, unit))["donor", "x"]
    assert by_rows < 1e-6
    assert result["p_value"] == 1.0


def test_noise_is_not_discovered_even_if_skewed_or_alike_within_genes() -> None:
    label, unit, rng = genes(300, 12)
    columns = {f"rare{i}": rng.random(len(label)) < 0.1 for i in range(60)}
    columns |= {f"count{i}": rng.poisson(0.4, len(label)) for i in range(60)}
    columns |= {f"gene{i}": rng.normal(size=300)[unit] * 3 + rng.normal(size=len(label)) for i in range(60)}
    result = found(rows_of(columns, label, unit))
    p = np.array([r["p_value"] for r in result.values()])
    assert 0.02 < (p < 0.05).mean() < 0.09
    assert sum(r["q_value"] < 0.05 for r in result.values()) <= 1


def test_what_the_rows_do_not_allow_is_null() -> None:
    label, unit, rng = genes(5)
    label[label == 2] = 0
    result = found(rows_of({"x": rng.normal(size=len(label)), "gone": pa.nulls(len(label), pa.float32())}, label, unit))
    absent = result["acceptor", "x"]
    assert absent["mutual_information"] is absent["effect_size"] is absent["p_value"] is None
    assert result["donor", "x"]["effect_size"] is not None
    assert result["donor", "x"]["p_value"] is None  # five genes
    assert result["donor", "gone"]["effect_size"] is None


def test_it_stops_between_blocks_of_features() -> None:
    label, unit, rng = genes(10)
    rows = rows_of({f"x{i}": rng.normal(size=len(label)) for i in range(100)}, label, unit)
    asked = []

    def stop() -> None:
        asked.append(1)
        if len(asked) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        associations(rows, [feature(n) for n in rows.table.column_names], CLASSES, stop)
    assert len(asked) == 2


def test_the_table_is_typed_and_in_matrix_order() -> None:
    label, unit, rng = genes(10)
    rows = rows_of({n: rng.normal(size=len(label)) for n in ("z", "a", "m")}, label, unit)
    table = associations(rows, [feature(n) for n in ("z", "a", "m")], CLASSES, lambda: None)
    assert table["class"].to_list() == [c for c in CLASSES for _ in range(3)]
    assert table["feature"].to_list() == ["z", "a", "m"] * 3
    assert set(table.schema.values()) == {pl.String(), pl.Float64()}
