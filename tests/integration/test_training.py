"""What an instance promises: exact cross-validation, reproducible bits, flat memory, every planned gene."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow.parquet as pq
import pytest
import xgboost as xgb

import metabatch
from metabatch.data.batches import RowCount
from metabatch.data.cuts import cuts_of
from metabatch.data.index import pieces_for
from metabatch.data.preprocess import Preprocessor
from metabatch.options import Options
from metabatch.rundir.fingerprint import open_plan
from metabatch.rundir.layout import RunDir
from metabatch.rundir.tables import instance_genes, read_cuts, read_features, read_segments
from metabatch.training.boosters import booster_params, train_final, train_fold
from metabatch.training.matrix import build_matrix, read_rows
from tests.conftest import DEMO, NO_ANALYSES, QUICK, plan_of, small_table, succeed, train_all, write_table

MODEL_FILES = ("neither.ubj", "donor.ubj", "acceptor.ubj", "calibration.json")


def model_bytes(run: Path, index: int = 0) -> list[bytes]:
    return [(run / "instances" / f"{index:02d}" / "model" / f).read_bytes() for f in MODEL_FILES]


def test_folds_by_weight_zero_equal_training_on_the_subset_tree_for_tree(trained: Path) -> None:
    """Same cuts, no row sampling (its draws fall on other rows): every tree and prediction is the same."""
    run = RunDir(trained)
    plan = open_plan(run)
    files = [DEMO / s.name for s in plan.dataset.shards]
    prepare = Preprocessor(read_features(run).features)
    genes = instance_genes(run, 0)
    pieces = pieces_for(read_segments(run), genes, files)
    rows = read_rows(pieces, genes, plan.columns, RowCount(), 32_768)
    options = Options(subsample=1.0, n_estimators=20, early_stopping_patience=0)
    params = booster_params(options, plan.booster, 2, 1)
    held_out = rows.gene % 5 == 0
    positive = rows.label == 1
    with build_matrix(
        pieces, prepare, cuts_of(read_cuts(run)), plan.columns, rows.batches, missing=read_features(run).has_missing,
        max_bin=256, threads=2, where="test", count=RowCount(), on_batch=lambda _: None, batch_rows=32_768,
    ) as matrix:  # fmt: skip
        fold = train_fold(matrix, params, positive, rows.weight, held_out, 20, 0, lambda: None)
        by_weight = train_final(matrix, params, positive, np.where(held_out, 0, rows.weight), 20, lambda: None)
        # The subset alone, quantised with the cuts of the whole matrix.
        kept_names = [g for i, g in enumerate(rows.genes) if i % 5]
        batches = [
            prepare.transform(pq.read_table(p.file).filter(_among(p.file, kept_names)), where="test")
            for p in {p.file: p for p in pieces}.values()
        ]
        kept = read_rows(
            pieces_for(read_segments(run), kept_names, files), kept_names, plan.columns, RowCount(), 32_768
        )
        assert sum(b.num_rows for b in batches) == len(kept)
        subset = xgb.QuantileDMatrix(_Once(batches), ref=matrix, max_bin=256)
        on_subset = train_final(subset, params, kept.label == 1, kept.weight, 20, lambda: None)
        assert by_weight.get_dump(dump_format="json") == on_subset.get_dump(dump_format="json")
        assert np.array_equal(by_weight.predict(matrix), on_subset.predict(matrix))
        assert np.array_equal(fold.scores, on_subset.predict(matrix)[held_out])
        fast = params | {"learning_rate": 0.9}
        stopped = train_fold(matrix, fast, positive, rows.weight, held_out, 100, 3, lambda: None)
        assert stopped.stopped_early
        up_to_best = train_final(subset, fast, kept.label == 1, kept.weight, stopped.rounds, lambda: None)
        assert np.array_equal(stopped.scores, up_to_best.predict(matrix)[held_out])


def _among(file: Path, names: list[str]) -> object:
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.is_in(pq.read_table(file, columns=["gene_id"]).column(0), pa.array(names))


class _Once(xgb.DataIter):
    def __init__(self, batches: list[object]) -> None:
        self._batches, self._at = batches, 0
        super().__init__()

    def reset(self) -> None:
        self._at = 0

    def next(self, input_data: object) -> bool:
        if self._at == len(self._batches):
            return False
        input_data(data=self._batches[self._at])  # type: ignore[operator]
        self._at += 1
        return True


def test_bits_do_not_depend_on_threads_or_shard_names(tmp_path: Path, demo: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for i, file in enumerate(sorted(demo.glob("*.parquet"), reverse=True)):
        (renamed / f"x{i}.parquet").write_bytes(file.read_bytes())
    models = []
    for name, data, threads in (("a", demo, "1"), ("b", demo, "2"), ("c", renamed, "2")):
        run = tmp_path / name
        succeed("plan", "--quiet", *QUICK, data, run)
        succeed("train-instance", "--quiet", "--threads", threads, run, "0")
        models.append([*model_bytes(run), (run / "instances/00/oof.parquet").read_bytes()])
    assert models[0] == models[1] == models[2]


def test_external_memory_gives_the_same_model(tmp_path: Path, demo: Path) -> None:
    for strategy in ("single", "external"):
        run = tmp_path / strategy
        succeed("plan", "--quiet", "--strategy", strategy, *QUICK, demo, run)
        scratch = tmp_path / f"scratch-{strategy}"
        scratch.mkdir()
        said = succeed("train-instance", "--quiet", run, "0", env={"TMPDIR": str(scratch)}).err
        assert "page" not in said
        assert list(scratch.iterdir()) == []  # the page files are gone
    single, external = (pl.read_parquet(tmp_path / s / "instances/00/oof.parquet") for s in ("single", "external"))
    assert single.equals(external)
    assert model_bytes(tmp_path / "single") == model_bytes(tmp_path / "external")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """A generated table whose matrix (about 200 MB) is large beside what folds could add."""
    rng = np.random.default_rng(1)
    rows, features, shards = 37_500, 600, 4
    (tmp_path / "wide").mkdir()
    for shard in range(shards):
        label = rng.choice(3, rows, p=[0.9, 0.05, 0.05])
        columns = {f"x{i:03d}": rng.integers(0, 200, rows, dtype=np.uint8) for i in range(features)}
        genes = [f"G{shard}{i:02d}" for i in range(10)]
        names = np.array(["neither", "donor", "acceptor"])[label]
        frame = pl.DataFrame({"gene_id": np.repeat(genes, rows // 10), "splice_type": names, **columns})
        frame.write_parquet(tmp_path / "wide" / f"part-{shard}.parquet", row_group_size=8_192, compression="lz4")
    return tmp_path / "wide"


def test_tables_in_small_row_groups_make_few_pages_and_the_same_model(tmp_path: Path) -> None:
    frame = small_table(genes=40, rows=500)  # 20,000 rows
    models, pages = [], []
    for row_group, strategy in ((20_000, "single"), (100, "external"), (9_000, "external")):
        data = write_table(tmp_path / f"data-{row_group}", frame, shards=1, row_group=row_group)
        run = tmp_path / f"run-{row_group}"
        succeed("plan", "--quiet", "--strategy", strategy, "--holdout-fraction", "0", *QUICK, data, run)
        succeed("train-instance", "--quiet", run, "0")
        models.append(model_bytes(run))
        plan = open_plan(RunDir(run))
        pieces = pieces_for(read_segments(RunDir(run)), instance_genes(RunDir(run), 0), sorted(data.glob("*.parquet")))
        rows = read_rows(pieces, instance_genes(RunDir(run), 0), plan.columns, RowCount(), 32_768)
        pages.append([sum(batch) for batch in rows.batches])
        assert plan.memory_law.page_rows == sum(pages[-1]) // len(pages[-1])
    assert models[0] == models[1] == models[2]
    assert pages == [[20_000], [16_300, 3_700], [9_000, 11_000]]


def test_folds_cost_no_memory_and_leave_none_behind(tmp_path: Path, wide: Path) -> None:
    peaks = []
    for name, words in (("none", ("--n-folds", "0", "--calibration", "none")), ("five", ("--n-folds", "5"))):
        run = tmp_path / name
        succeed("plan", "--quiet", *words, *NO_ANALYSES, "--n-estimators", "2", "--holdout-fraction", "0", wide, run)
        succeed("train-instance", "--quiet", run, "0")
        usage = json.loads((run / "instances/00/resource_usage.json").read_text())
        peaks.append(usage["measured_peak_bytes"])
    after = usage["after_fold_bytes"]
    assert len(after) == 3 * 5
    assert min(after) > 200 << 20  # the matrix is in it
    assert max(after[1:]) - min(after[1:]) < 8 << 20, [a >> 20 for a in after]
    matrix = 2.25 * 150_000 * 600
    assert peaks[0] > 250e6 + matrix  # a second matrix would stand out
    assert peaks[1] <= 1.1 * peaks[0], f"{peaks[0] >> 20} and {peaks[1] >> 20} MiB"


def test_shards_with_other_columns_train_every_planned_gene(tmp_path: Path) -> None:
    frame = small_table()
    data = write_table(tmp_path / "data", frame, shards=3)
    second = data / "part-1.parquet"
    pl.read_parquet(second).drop("3mer_CGA", "gc_content").write_parquet(second)
    third = data / "part-2.parquet"
    pl.read_parquet(third).with_columns(pl.col("3mer_AAA").cast(pl.Int32), pl.lit(1).alias("note")).write_parquet(third)
    run = tmp_path / "run"
    said = succeed(
        "plan", "--strategy", "multi-instance", "--n-folds", "2", "--n-estimators", "5", *NO_ANALYSES, data, run
    ).out
    assert "absent from some shards" in said
    features = {f["name"]: f for f in json.loads((run / "features.json").read_text())["features"]}
    assert features["3mer_CGA"]["if_absent"] == "zero"
    assert features["gc_content"]["if_absent"] == "null"
    assert features["3mer_AAA"]["dtype"] == "int32"
    train_all(run)
    succeed("consolidate", "--quiet", run)
    planned = pl.read_parquet(run / "assignments.parquet")
    for instance in plan_of(run)["instances"]:
        done = json.loads((run / "instances" / f"{instance['index']:02d}" / "done.json").read_text())
        wanted = planned.filter(pl.col("instance") == instance["index"])["gene_id"].sort().to_list()
        assert done["ledger"] == wanted
    ledger = pl.read_parquet(run / "ensemble" / "ledger.parquet")
    assert set(ledger["gene_id"]) == set(planned["gene_id"])


@pytest.mark.parametrize("holdout", ["0", "0.3"])
def test_sampled_genes_are_trained_on_alone_where_others_share_their_row_groups(tmp_path: Path, holdout: str) -> None:
    data = write_table(tmp_path / "data", small_table(genes=40, rows=40), shards=2, row_group=400)
    run = tmp_path / "run"
    succeed("run-all", "--quiet", "--sample-genes", "12", "--holdout-fraction", holdout, "--n-folds", "2",
            "--n-estimators", "5", *NO_ANALYSES, data, run)  # fmt: skip
    plan = plan_of(run)
    assert plan["dataset"]["positions"] == 12 * 40
    trained = json.loads((run / "instances/00/done.json").read_text())["ledger"]
    assert len(trained) == plan["instances"][0]["genes"] == 12 - plan["holdout"]["genes"]
    usage = json.loads((run / "instances/00/resource_usage.json").read_text())
    phases = [p for p in usage["phases"] if p["rows_asked"]]
    assert min(p["rows_asked"] for p in phases) == 40 * len(trained)
    assert all(p["rows_asked"] % (40 * len(trained)) == 0 and p["rows_read"] > p["rows_asked"] for p in phases)
    scored = pl.read_parquet(run / "evaluation/predictions.parquet")
    assert scored.height == 40 * (plan["holdout"]["genes"] or 12)
    assert set(scored["gene_id"]).isdisjoint(trained) == (holdout != "0")


def test_sparse_counts_are_stored_as_missing_in_training_and_prediction(tmp_path: Path) -> None:
    frame = small_table()
    rng = np.random.default_rng(5)
    counts = {f"4mer_{a}{b}CG": rng.poisson(0.1, frame.height).astype(np.uint8) for a in "ACGT" for b in "ACGT"}
    data = write_table(tmp_path / "data", frame.with_columns(**{k: pl.Series(v) for k, v in counts.items()}))
    run = tmp_path / "run"
    succeed("run-all", "--quiet", "--n-folds", "2", "--n-estimators", "10", *NO_ANALYSES, data, run)
    features = json.loads((run / "features.json").read_text())
    policy = {f["name"]: f["missing"] for f in features["features"]}
    assert policy["4mer_AACG"] == "zero-as-missing"
    assert policy["signal"] == "native"
    bundle = json.loads((run / "ensemble" / "bundle.json").read_text())
    assert bundle["features"] == features["features"]
    # The same rows: evaluated from the run's data, and predicted from the parquet files.
    succeed("predict", "--quiet", run, data, tmp_path / "out")
    predicted = pl.read_parquet(tmp_path / "out" / "*.parquet")
    scored = pl.read_parquet(run / "evaluation" / "predictions.parquet")
    both = scored.join(predicted, on=["gene_id", "position"], suffix="_predict")
    assert both.height == scored.height
    assert (both["donor_meta"] == both["donor_meta_predict"]).all()


def test_missing_cells_get_a_bin_of_their_own_that_trees_can_tell_apart(tmp_path: Path) -> None:
    """The only feature that tells the donors apart is missing there, and hardly anywhere else."""
    frame = small_table(genes=40)
    rng = np.random.default_rng(8)
    noise = {name: rng.normal(size=frame.height) for name in ("gap", "signal")}
    frame = frame.with_columns(pl.Series(name, values) for name, values in noise.items())
    donor = pl.col("splice_type") == "donor"
    frame = frame.with_columns(gap=pl.when(donor | (pl.col("position") % 50 == 0)).then(None).otherwise(pl.col("gap")))
    data = write_table(tmp_path / "data", frame)
    cells, ap = {}, {}
    for policy in ("auto", "native"):
        run = tmp_path / policy
        succeed("run-all", "--quiet", "--n-folds", "2", "--n-estimators", "20", "--holdout-fraction", "0", *NO_ANALYSES,
                "--exclude-features", "donor_score,acceptor_score", "--missing-policy", policy, data, run)  # fmt: skip
        (gap,) = [f for f in json.loads((run / "features.json").read_text())["features"] if f["name"] == "gap"]
        assert gap["missing"] == {"auto": "sentinel", "native": "native"}[policy]
        cells[policy] = plan_of(run)["memory_law"]["cell_bytes"]
        metrics = json.loads((run / "instances/00/metrics.json").read_text())
        ap[policy] = metrics["classes"]["donor"]["before_calibration"]["ap"]
    assert cells["auto"] < cells["native"] / 2
    assert ap["auto"] == pytest.approx(ap["native"], abs=0.02)
    assert min(ap.values()) > 0.5 > frame.select(donor.mean()).item() * 3
    # The model carries the policy: the same rows with the gaps filled are other rows.
    model = metabatch.load(tmp_path / "auto")
    filled = model.predict_proba(frame.with_columns(pl.col("gap").fill_null(0.0)))
    assert model.predict_proba(frame)[:, 1].mean() > 2 * filled[:, 1].mean()


@pytest.mark.parametrize("classes", ["late,early", "none,low,high,extreme"])
def test_any_table_trains_without_base_scores(tmp_path: Path, classes: str) -> None:
    """Flights by aircraft: other names, integer groups, two and four classes, no scores, no weights."""
    names = classes.split(",")
    rng = np.random.default_rng(1)
    n = 2400
    label = rng.integers(0, len(names), n)
    frame = pl.DataFrame(
        {
            "tail": np.repeat(np.arange(40), 60),
            "outcome": np.array(names)[label],
            "wind [kt]": label + rng.normal(0, 0.5, n),
            "distance": rng.integers(100, 3000, n),
            "night": rng.random(n) < 0.4,
        }
    )
    data = tmp_path / "flights.parquet"
    frame.write_parquet(data)
    run = tmp_path / "run"
    words = ("--group-column", "tail", "--label-column", "outcome", "--classes", classes, "--n-folds", "3")
    out = succeed("run-all", "--quiet", *words, "--n-estimators", "30", "--learning-rate", "0.3", data, run).out
    assert "it has no base score" in out
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["base"] == {}
    assert all(metrics["meta"][c]["roc_auc"] > 0.7 for c in names)
    assert plan_of(run)["booster"]["min_child_weight"] == 1.0


def test_without_holdout_each_gene_is_scored_by_members_that_did_not_train_on_it(
    ensemble: Path, copy_of: Callable[[Path], Path]
) -> None:
    run = copy_of(ensemble)
    succeed("consolidate", "--quiet", run)
    succeed("evaluate", "--quiet", run)
    metrics = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert metrics["genes"] == 37
    assert "did not train on it" in metrics["how"]
    ledger = pl.read_parquet(run / "ensemble" / "ledger.parquet")
    loci = pl.read_parquet(run / "genes.parquet").select("gene_id", "split_group")
    trained = ledger.join(loci, on="gene_id").group_by("split_group").agg(pl.col("instance").unique())
    speakers = dict(zip(trained["split_group"], trained["instance"].to_list(), strict=True))
    for index, member in metrics["members"].items():
        may = sum(int(index) not in speakers[locus] for locus in loci["split_group"])
        assert member["donor"]["genes"] == may
