"""Contributions add up, do not depend on how the rows come, and are XGBoost's own; memory stays below its bound."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import xgboost as xgb
from matplotlib import pyplot as plt
from scipy.stats import pearsonr

from metabatch.analysis import shap_sums
from metabatch.analysis.frame import Found, ImpossibleError, study
from metabatch.analysis.sampling import MatrixRows, quotas
from metabatch.analysis.shap_sample import KeptRows
from metabatch.analysis.shap_sums import merge_shap
from metabatch.data.batches import Reader, whole_files
from metabatch.data.labels import label_codes
from metabatch.data.matrices import as_matrix
from metabatch.data.preprocess import Preprocessor
from metabatch.data.shards import find_parquet
from tests.conftest import DEMO, ROOT
from tests.unit.test_instance_rows import described, expected

CLASSES = ("neither", "donor", "acceptor")
ROWS = 2600  # more than a block, more than two chunks


@dataclass(frozen=True)
class Trained:
    """Rows of the demo, k-mer counts of 0 missing, and quick boosters on them."""

    rows: MatrixRows
    prepare: Preprocessor
    boosters: dict[str, xgb.Booster]
    values: np.ndarray

    def explain(self, *chunks: MatrixRows, **changed: Any) -> Found:
        asked = {"on": "demo rows", "seed": 3, "threads": 1, "check": lambda: None} | changed
        boosters = asked.pop("boosters", self.boosters)
        source = chunks or (self.rows,)
        names = self.prepare.matrix_names
        return shap_sums.explain(boosters, source, self.prepare.features, names, CLASSES, **asked)

    def sums(self, *chunks: MatrixRows, **changed: Any) -> Found:
        """`explain` without pictures, which take most of its time here."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(shap_sums, "shap_pictures", lambda *_: [])
            return self.explain(*chunks, **changed)

    def contributions(self, name: str) -> np.ndarray:
        matrix = xgb.DMatrix(self.values, feature_names=self.prepare.matrix_names)
        return self.boosters[name].predict(matrix, pred_contribs=True).astype(np.float64)


def part(rows: MatrixRows, which: np.ndarray | slice) -> MatrixRows:
    chosen = np.arange(len(rows))[which]
    return MatrixRows(
        rows.table.take(pa.array(chosen)).combine_chunks(), rows.label[chosen], rows.weight[chosen], rows.unit[chosen]
    )


def cut(rows: MatrixRows, size: int) -> Iterator[MatrixRows]:
    return (part(rows, slice(at, at + size)) for at in range(0, len(rows), size))


@pytest.fixture(scope="module")
def demo_trained() -> Trained:
    prepare, columns, _ = described(DEMO)
    pieces = whole_files(find_parquet(DEMO))
    label = np.concatenate([label_codes(t, columns) for t in Reader(pieces, [columns.label], columns.group)])
    # All sites and some of the other rows.
    rng = np.random.default_rng(0)
    sites = np.flatnonzero(label > 0)
    others = rng.choice(np.flatnonzero(label == 0), ROWS - len(sites), replace=False)
    chosen = np.sort(np.concatenate([sites, others]))
    table = expected(pieces, prepare, columns).take(pa.array(chosen)).combine_chunks()
    rows = MatrixRows(table, label[chosen], rng.integers(1, 9, ROWS) / 2, chosen)
    values = as_matrix(table)
    matrix = xgb.DMatrix(values, feature_names=prepare.matrix_names)
    boosters = {}
    for code, name in enumerate(CLASSES):
        matrix.set_info(label=(rows.label == code).astype(np.float32))
        params = {"objective": "binary:logistic", "max_depth": 4, "learning_rate": 0.3, "nthread": 1, "seed": 1}
        boosters[name] = xgb.train(params, matrix, 15)
    return Trained(rows, prepare, boosters, values)


def shap_of(found: Found) -> pl.DataFrame:
    return found.tables["shap"]


def numbers(table: pl.DataFrame) -> np.ndarray:
    return table.select(pl.exclude("class", "feature").cast(pl.Float64).fill_null(-9.0)).to_numpy()


def test_missing_values_and_compact_types_become_what_xgboost_computes_with() -> None:
    table = pa.table({
        "count": pa.array([0, 3, None, 255], pa.uint8()), "x": pa.array([1.5, float("nan"), None, 2], pa.float32()),
        "n": pa.array([2**24 + 1, -1, 0, 7], pa.int32()),
    })  # fmt: skip
    found = as_matrix(table.slice(1, 3))
    assert found.dtype == np.float32
    assert found.tolist()[2] == [255, 2, 7]
    assert np.isnan(found).tolist() == [[False, True, False], [True, True, False], [False, False, False]]
    assert as_matrix(table)[0, 2] == 2**24  # float32 has no more digits


def test_sums_are_those_of_all_contributions_at_once(demo_trained: Trained) -> None:
    found = demo_trained.sums()
    table, rows = shap_of(found), demo_trained.rows
    weight, values = rows.weight, demo_trained.values
    assert np.isnan(values).any()
    assert table["class"].unique(maintain_order=True).to_list() == list(CLASSES)
    for code, name in enumerate(CLASSES):
        here = table.filter(pl.col("class") == name)
        assert here["feature"].to_list() == [f.name for f in demo_trained.prepare.features]
        whole = demo_trained.contributions(name)
        shap = whole[:, :-1]
        close = {"rel": 1e-9, "abs": 1e-12}
        mean = np.average(shap, axis=0, weights=weight)
        of_class = rows.label == code
        assert here["mean_abs_shap"].to_numpy() == pytest.approx(np.average(abs(shap), axis=0, weights=weight), **close)
        assert here["mean_shap"].to_numpy() == pytest.approx(mean, **close)
        sd = np.sqrt(np.average((shap - mean) ** 2, axis=0, weights=weight))
        assert here["sd_shap"].to_numpy() == pytest.approx(sd, **close)
        on_true = np.average(abs(shap[of_class]), axis=0, weights=weight[of_class])
        assert here["mean_abs_shap_of_class"].to_numpy() == pytest.approx(on_true, **close)
        assert found.facts["base_values"][name] == pytest.approx(whole[0, -1])
        assert (here["rows"] == ROWS).all()
        assert here["weight"].to_numpy() == pytest.approx(weight.sum())


def test_direction_is_the_correlation_of_value_and_contribution_where_there_is_a_value(demo_trained: Trained) -> None:
    once = replace(demo_trained, rows=replace(demo_trained.rows, weight=np.ones(ROWS)))
    found = shap_of(once.sums())
    with_gaps = 0
    for name in CLASSES:
        shap = once.contributions(name)[:, :-1]
        for number, direction in enumerate(found.filter(pl.col("class") == name)["direction"]):
            known = ~np.isnan(once.values[:, number])
            x, y = once.values[known, number].astype(np.float64), shap[known, number]
            if direction is None:
                assert np.ptp(x) == 0 or np.ptp(y) < 1e-6
            else:
                with_gaps += not known.all()
                assert direction == pytest.approx(pearsonr(x, y).statistic, abs=1e-6)
    assert with_gaps > 5


def test_contributions_and_base_value_add_up_to_the_margin(demo_trained: Trained) -> None:
    found = demo_trained.sums()
    assert set(found.facts["additivity_max_error"]) == set(CLASSES)
    assert all(0 < error < 1e-4 for error in found.facts["additivity_max_error"].values())
    assert found.says[-1].startswith("Sums of contributions equal the margins of all 2,600 rows to ")


@pytest.mark.parametrize("what", [0.01, float("nan")])
def test_contributions_that_do_not_add_up_fail_the_analysis(demo_trained: Trained, what: float) -> None:
    class Off(xgb.Booster):
        def predict(self, *words: Any, **named: Any) -> np.ndarray:
            found = super().predict(*words, **named)
            if named.get("pred_contribs") and len(found) < 1024:  # one row of the last chunk
                found[-1, 3] += what
            return found

    off = Off(model_file=demo_trained.boosters["donor"].save_raw("ubj"))
    with pytest.raises(ValueError, match=r"donor: .* differ from its margin"):
        demo_trained.sums(boosters=demo_trained.boosters | {"donor": off})


@pytest.mark.parametrize("size", [1, 129, 1500])
def test_how_the_rows_come_does_not_matter(demo_trained: Trained, size: int) -> None:
    trained = demo_trained
    if size == 1:
        trained = replace(trained, rows=part(trained.rows, slice(0, 40)))
    look = trained.explain if size == 129 else trained.sums  # the pictures' numbers too
    whole, chunks = look(), look(*cut(trained.rows, size), threads=2)
    assert numbers(shap_of(chunks)) == pytest.approx(numbers(shap_of(whole)), rel=1e-6, abs=1e-6)
    for one, other in zip(whole.pictures, chunks.pictures, strict=True):
        assert one.name == other.name
        if "bar" not in one.name:
            places = ["row", "class", "feature", "value"]
            assert one.numbers.select(places).equals(other.numbers.select(places))
            assert other.numbers["shap"].to_numpy() == pytest.approx(one.numbers["shap"].to_numpy(), abs=1e-5)


def test_a_row_of_weight_2_is_two_rows(demo_trained: Trained) -> None:
    rows = part(demo_trained.rows, slice(0, 300))
    times = np.random.default_rng(5).integers(1, 4, 300)
    weighted = shap_of(demo_trained.sums(replace(rows, weight=times.astype(np.float64))))
    repeated = part(replace(rows, weight=np.ones(300)), np.repeat(np.arange(300), times))
    twice = shap_of(demo_trained.sums(repeated))
    assert numbers(weighted.drop("rows")) == pytest.approx(numbers(twice.drop("rows")), rel=1e-6, abs=1e-9)


def test_merging_is_one_pass_over_the_union(demo_trained: Trained) -> None:
    rows = demo_trained.rows
    # The last part has no acceptor at all.
    bounds = [np.arange(900), np.arange(900, 1400), np.arange(1400, ROWS)]
    bounds[2] = bounds[2][rows.label[bounds[2]] != 2]
    parts = [part(rows, which) for which in bounds]
    tables = [(float(p.weight.sum()), shap_of(demo_trained.sums(p))) for p in parts]
    assert tables[2][1].filter(pl.col("class") == "acceptor")["mean_abs_shap_of_class"].null_count() > 0
    whole = shap_of(demo_trained.sums(part(rows, np.concatenate(bounds))))
    merged = merge_shap(tables)
    assert merged.columns == whole.columns
    assert merged.select("class", "feature", "rows").equals(whole.select("class", "feature", "rows"))
    assert numbers(merged) == pytest.approx(numbers(whole), rel=1e-6, abs=1e-7)


def test_members_count_by_their_weight_not_by_their_rows(demo_trained: Trained) -> None:
    tables = [shap_of(demo_trained.sums(part(demo_trained.rows, slice(*at)))) for at in ((0, 2000), (2000, ROWS))]
    merged = merge_shap([(1.0, tables[0]), (3.0, tables[1])])
    for column in ("mean_abs_shap", "mean_shap"):
        mean = tables[0][column].to_numpy() / 4 + tables[1][column].to_numpy() * 3 / 4
        assert merged[column].to_numpy() == pytest.approx(mean)
    with pytest.raises(ValueError, match="other classes or features"):
        merge_shap([(1.0, tables[0]), (1.0, tables[1].head(-1))])


@pytest.mark.parametrize("size", [1, 7, 100])
def test_the_kept_rows_do_not_depend_on_the_chunks(size: int) -> None:
    rng = np.random.default_rng(2)
    label = np.concatenate([np.zeros(150, int), rng.integers(0, 3, 250), np.full(40, 1), np.zeros(160, int)])
    values = rng.random((len(label), 2)).astype(np.float32)
    samples = []
    for chunk in (len(label), size):
        kept = KeptRows(50, 3, 2, seed=7)
        for start in range(0, len(label), chunk):
            here = slice(start, start + chunk)
            came, places = kept.admit(label[here], values[here])
            for code in range(3):
                kept.put(code, places, values[here][came] * (code + 1))
        samples.append(kept.sample(1, np.array([1])))
    whole, cut_up = samples
    assert np.array_equal(whole.row, cut_up.row)
    assert np.bincount(whole.label).tolist() == quotas(np.bincount(label), 50).tolist()
    for found in samples:
        assert np.array_equal(found.label, label[found.row])
        assert np.array_equal(found.values, values[found.row][:, [1]])
        assert np.array_equal(found.contributions, values[found.row][:, [1]] * 2)


def test_every_row_is_kept_as_often_as_another_of_its_class() -> None:
    label = np.random.default_rng(0).permutation(np.repeat([0, 1], [60, 10]))
    times = np.zeros(len(label))
    for seed in range(1000):
        kept = KeptRows(30, 2, 1, seed)
        for start in range(0, len(label), 9):
            kept.admit(label[start : start + 9], np.zeros((len(label[start : start + 9]), 1), np.float32))
        times[kept.sample(0, np.array([0])).row] += 1
    assert np.abs(times[label == 0] / 1000 - 1 / 3).max() < 0.075  # standard error 0.015
    assert (times[label == 1] == 1000).all()


def test_findings_name_the_top_feature_and_its_direction(demo_trained: Trained) -> None:
    found = demo_trained.sums()
    table = shap_of(found).filter(pl.col("class") == "donor").sort("mean_abs_shap", descending=True)
    assert found.facts["top_features"]["donor"] == table["feature"].head(15).to_list()
    assert found.shown[1].rows[0][0] == table["feature"][0]
    said = next(s for s in found.says if s.startswith("donor: "))
    assert said.startswith(f"donor: {table['feature'][0]} moves the margin most (mean |SHAP| ")
    assert "higher values speak for donor" in said


def test_pictures_are_written_with_what_they_show(demo_trained: Trained, tmp_path: Path) -> None:
    odd = pa.array(np.full(ROWS, np.nan), pa.float32())
    names = [*demo_trained.prepare.matrix_names]
    place = demo_trained.prepare.matrix_names.index("donor_score")
    gone = MatrixRows(  # a feature the boosters use that is missing in every row
        demo_trained.rows.table.set_column(place, names[place], odd), demo_trained.rows.label,
        demo_trained.rows.weight, demo_trained.rows.unit,
    )  # fmt: skip
    open_before = plt.get_fignums()
    section = study("shap", "SHAP", lambda: demo_trained.explain(gone), tmp_path)
    assert plt.get_fignums() == open_before
    assert section.status == "made", section.why
    assert [p.name for p in section.pictures] == [
        "shap_neither_beeswarm", "shap_neither_bar", "shap_donor_beeswarm", "shap_donor_bar", "shap_donor_dependence",
        "shap_acceptor_beeswarm", "shap_acceptor_bar", "shap_acceptor_dependence",
    ]  # fmt: skip
    assert all((tmp_path / "figures" / f"{p.name}.png").stat().st_size > 10_000 for p in section.pictures)
    swarm = pl.read_csv(tmp_path / "figures" / "shap_donor_beeswarm.csv")
    assert swarm.height == 15 * 1000
    assert swarm.filter(pl.col("feature") == "donor_score")["value"].null_count() == 1000
    dependence = pl.read_csv(tmp_path / "figures" / "shap_donor_dependence.csv")
    assert dependence["feature"].n_unique() <= 4
    assert dependence["value"].null_count() == 0
    whole = demo_trained.contributions("acceptor")
    for row in (
        pl.read_csv(tmp_path / "figures" / "shap_acceptor_beeswarm.csv").sample(50, seed=1).iter_rows(named=True)
    ):
        assert row["class"] == CLASSES[demo_trained.rows.label[row["row"]]]
    assert len(whole) == ROWS


def test_drawing_leaves_numpys_global_generator_alone(demo_trained: Trained) -> None:
    np.random.seed(11)
    before = np.random.get_state()[1].tolist()  # type: ignore[index, union-attr]
    demo_trained.explain(part(demo_trained.rows, slice(0, 200)))
    assert np.random.get_state()[1].tolist() == before  # type: ignore[index, union-attr]


def test_boosters_that_nothing_moves_and_no_rows_at_all(demo_trained: Trained) -> None:
    few = part(demo_trained.rows, slice(0, 50))
    matrix = xgb.DMatrix(demo_trained.values[:50], np.arange(50) % 2, feature_names=demo_trained.prepare.matrix_names)
    flat = xgb.train({"objective": "binary:logistic", "gamma": 1e9, "nthread": 1}, matrix, 2)
    found = demo_trained.explain(few, boosters=demo_trained.boosters | {"donor": flat})
    assert "donor: no feature moves the margin." in found.says
    assert not any("donor" in p.name for p in found.pictures)
    with pytest.raises(ImpossibleError):
        demo_trained.explain(part(few, slice(0, 0)))
    with pytest.raises(ImpossibleError):
        demo_trained.explain(replace(few, weight=np.zeros(50)))


def test_a_feature_that_decides_alone_and_is_no_score_is_flagged(demo_trained: Trained) -> None:
    matrix = xgb.DMatrix(demo_trained.values, feature_names=demo_trained.prepare.matrix_names)
    leak = demo_trained.prepare.matrix_names.index("gc_content")
    values = demo_trained.values[:, leak]
    matrix.set_info(label=(values > np.median(values)).astype(np.float32))
    booster = xgb.train({"objective": "binary:logistic", "max_depth": 2, "nthread": 1}, matrix, 3)
    found = demo_trained.sums(boosters=demo_trained.boosters | {"donor": booster})
    assert any(flag.startswith("donor: gc_content, which is no base score") for flag in found.flags)


def test_a_stop_ends_the_work_between_chunks(demo_trained: Trained) -> None:
    class StopError(Exception):
        pass

    looked = []

    def check() -> None:
        looked.append(1)
        if len(looked) == 2:
            raise StopError

    with pytest.raises(StopError):
        demo_trained.sums(check=check)


def test_shap_is_imported_only_for_pictures() -> None:
    code = "import sys, metabatch.analysis.shap_sums; sys.exit('shap' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0


def test_memory_stays_below_its_bound() -> None:
    """40,000 rows of 400 features: contributions of one class alone would take 64 MB, of all three 192 MB."""
    code = textwrap.dedent("""
        import numpy as np, pyarrow as pa, xgboost as xgb
        from metabatch.analysis.sampling import MatrixRows
        from metabatch.analysis.bounds import CHUNK_ROWS, shap_bytes
        from metabatch.analysis.shap_sums import explain
        from metabatch.resources.usage import peak_rss, reset_peak_rss, resident_bytes, trim_memory
        from metabatch.rundir.manifests import Feature
        n, f, classes = 40_000, 400, ["a", "b", "c"]
        names = [f"x{j}" for j in range(f)]
        features = [Feature(name=x, dtype="uint8", missing="native", if_absent="zero", group="kmer") for x in names]
        def chunks():
            for start in range(0, n, CHUNK_ROWS):
                rng = np.random.default_rng(start)
                size = min(CHUNK_ROWS, n - start)
                values = rng.poisson(1, (size, f)).astype(np.uint8)
                label = (values[:, 0] + values[:, 1] * values[:, 2]) % 3
                table = pa.Table.from_arrays([pa.array(np.ascontiguousarray(c)) for c in values.T], names=names)
                yield MatrixRows(table, label, np.ones(size), label)
        boosters = {}
        first = next(chunks())
        values = np.stack([c.to_numpy() for c in first.table.columns], axis=1)
        for code, name in enumerate(classes):
            matrix = xgb.DMatrix(values, first.label == code, feature_names=names, nthread=1)
            boosters[name] = xgb.train({"max_depth": 3, "nthread": 1, "objective": "binary:logistic"}, matrix, 2)
        del first, values, matrix
        trim_memory()
        assert reset_peak_rss()
        before = resident_bytes()
        found = explain(boosters, chunks(), features, names, classes, on="", seed=0, threads=1, check=lambda: None)
        assert found.facts["rows"] == n
        input_chunk = CHUNK_ROWS * f * 3  # as generated: int64 draws for a moment are far more than the table
        print(peak_rss() - before, shap_bytes(f, 3, f), CHUNK_ROWS * f * 8 + input_chunk)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    added, bound, chunk = map(int, done.stdout.split())
    assert bound < 192_000_000 / 1.5
    assert added <= bound + chunk
    assert bound <= added * 2  # a bound far above would bound nothing
