"""The one preprocessing object: types, fills, zero-as-missing, refusals."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from metabatch.data.preprocess import Preprocessor
from metabatch.errors import InputError
from metabatch.rundir.manifests import Feature


def feature(name: str, dtype: str = "float32", missing: str = "native", if_absent: str = "null") -> Feature:
    return Feature(name=name, dtype=dtype, missing=missing, if_absent=if_absent, group="context")  # type: ignore[arg-type]


def test_an_absent_kmer_is_zero_and_another_absent_feature_is_missing() -> None:
    prepare = Preprocessor([feature("3mer_AAA", "uint8", if_absent="zero"), feature("x")])
    batch = prepare.transform(pa.table({"y": [1, 2, 3]}), where="test")
    assert batch.column("3mer_AAA").to_pylist() == [0, 0, 0]
    assert batch.column("x").to_pylist() == [None, None, None]


def test_zero_as_missing_marks_zeros_and_keeps_values() -> None:
    prepare = Preprocessor([feature("c", "uint8", "zero-as-missing", "zero")])
    batch = prepare.transform(pa.table({"c": pa.array([0, 3, 0, 1, None], pa.uint8())}), where="test")
    assert batch.column("c").to_pylist() == [None, 3, None, 1, None]


def test_wider_types_are_brought_to_the_planned_one() -> None:
    prepare = Preprocessor([feature("a", "int32"), feature("b"), feature("c", "uint8")])
    table = pa.table({"a": pa.array([1], pa.int64()), "b": pa.array([1.5], pa.float64()), "c": pa.array([True])})
    batch = prepare.transform(table, where="test")
    assert [batch.column(i).type for i in range(3)] == [pa.int32(), pa.float32(), pa.uint8()]


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e300])
def test_infinite_values_are_named(value: float) -> None:
    with pytest.raises(InputError, match="column b holds 1 infinite value"):
        Preprocessor([feature("b")]).transform(pa.table({"b": [0.5, value]}), where="shard 3")


def test_a_value_beyond_the_trained_type_is_refused_not_wrapped() -> None:
    with pytest.raises(InputError, match="holds values from 1 to 300"):
        Preprocessor([feature("c", "uint8")]).transform(pa.table({"c": [1, 300]}), where="test")
    with pytest.raises(InputError, match="column c"):
        Preprocessor([feature("c", "uint8")]).transform(pa.table({"c": [1.5, 2.0]}), where="test")


def test_a_sliced_table_is_read_from_its_own_start() -> None:
    prepare = Preprocessor([feature("a", "int32"), feature("c", "uint8", "zero-as-missing", "zero")])
    table = pa.table({"a": pa.array(range(10), pa.int32()), "c": pa.array([0, 1] * 5, pa.uint8())}).slice(7, 2)
    batch = prepare.transform(table, where="test")
    assert batch.column("a").to_pylist() == [7, 8]
    assert batch.column("c").to_pylist() == [1, None]
    assert all(batch.column(i).chunk(0).offset == 0 for i in range(2))


def test_missing_features_are_named_and_only_kmers_may_be_filled() -> None:
    prepare = Preprocessor([feature("3mer_AAA", "uint8"), feature("signal")])
    with pytest.raises(InputError, match=r"3mer_AAA") as caught:
        prepare.require(["signal"], fill_missing_kmers=False, where="data")
    assert "--fill-missing-kmers" in str(caught.value)
    prepare.require(["signal"], fill_missing_kmers=True, where="data")
    with pytest.raises(InputError, match="signal"):
        prepare.require(["3mer_AAA"], fill_missing_kmers=True, where="data")


def test_names_xgboost_refuses_are_replaced_inside_only() -> None:
    prepare = Preprocessor([feature("age[0,10)"), feature("b")])
    batch = prepare.transform(pa.table({"age[0,10)": [1.0], "b": [2.0]}), where="test")
    assert batch.column_names == ["f0", "b"]
