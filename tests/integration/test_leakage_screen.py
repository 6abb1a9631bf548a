"""`plan` finds features that give the label away, in all shards and in training genes only, and says what to do."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from metabatch.data.index import class_column
from metabatch.errors import InputError
from metabatch.options import Options
from metabatch.planning.planner import make_plan
from metabatch.planning.screening import ENOUGH_GENES, MOST_ROWS, draw_genes
from metabatch.rundir.layout import RunDir
from metabatch.rundir.tables import read_genes, read_leakage
from tests.conftest import DEMO, plan_of, small_table, start, succeed, write_table

CONTEXT = ["gc_content", "donor_signal_strength", "splice_probability", "donor_is_local_peak", "3mer_ACG"]
PLANTED = ("filled", "noisy", "missing_flag", "zeros", "inverse", "one_class", "code", "one_shard")


def planted(folder: Path) -> Path:
    """The demo with leaks beside a few honest columns, shard by shard."""
    folder.mkdir()
    rng = np.random.default_rng(5)
    for number, file in enumerate(sorted(DEMO.glob("*.parquet"))):
        table = pl.read_parquet(file)
        site = (table["splice_type"] != "neither").to_numpy()
        donor = (table["splice_type"] == "donor").to_numpy()
        code = table["splice_type"].replace_strict(["neither", "donor", "acceptor"], [0, 1, 2]).to_numpy()
        n = len(site)
        noise = rng.normal(size=n).astype(np.float32)
        leaks = {
            "filled": np.where(site, noise, np.float32("nan")),
            "noisy": np.where(rng.random(n) < 0.05, ~donor, donor).astype(np.uint8),
            "missing_flag": (~site).astype(np.uint8),
            "zeros": np.where(site, noise, np.float32(0)),
            "inverse": (1 - donor).astype(np.float32),
            "one_class": noise + 50 * (code == 2),
            "code": code.astype(np.int32),
            "one_shard": np.where(site if number == 3 else False, noise, np.float32("nan")),
        }
        kept = ["gene_id", "locus_id", "position", "splice_type", "donor_score", "acceptor_score", "neither_score"]
        frame = table.select(*kept, *CONTEXT).with_columns(pl.Series(k, v).fill_nan(None) for k, v in leaks.items())
        frame.write_parquet(folder / file.name, row_group_size=2_000)
    return folder


@pytest.fixture(scope="module")
def leaky(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return planted(tmp_path_factory.mktemp("leaky") / "data")


def plan_with(data: Path, run: Path, **options: Any) -> tuple[RunDir, dict[str, str]]:
    """The run, and the flagged features with the classes and reasons."""
    made = RunDir(run)
    make_plan(data, made, Options(**options), options.keys())
    flagged = read_leakage(made).filter("flagged")
    reasons: dict[str, str] = {}
    for feature, name, reason in flagged.select("feature", "class", "reason").iter_rows():
        reasons[feature] = f"{reasons.get(feature, '')}{name}: {reason}\n"
    return made, reasons


@pytest.mark.parametrize("seed", [0, 1, 42])
def test_nothing_of_the_demo_is_flagged(tmp_path: Path, seed: int) -> None:
    run, reasons = plan_with(DEMO, tmp_path / "run", seed=seed, holdout_fraction=0.3)
    assert reasons == {}
    assert not any("leak" in w or "label" in w for w in plan_of(run.root)["warnings"])
    table = read_leakage(run)
    assert set(table["feature"]) > {"donor_signal_strength", "probability_entropy", "donor_score_p1", "3mer_CGA"}
    assert table.filter(feature="donor_score")["reason"].to_list() == ["base score"] * 3


@pytest.mark.parametrize("seed", [3, 42])
def test_every_planted_leak_is_reported_with_what_tells(leaky: Path, tmp_path: Path, seed: int) -> None:
    run, reasons = plan_with(leaky, tmp_path / "run", seed=seed, holdout_fraction=0.2)
    assert sorted(reasons) == sorted(PLANTED)
    assert "neither: missing in 100% of its rows and 0% of the others: missingness AUC 1.00" in reasons["filled"]
    assert "donor: present in 100% of its rows" in reasons["filled"]
    assert re.search(r"donor: AUC 0\.9\d+ alone, and 0\.9\d among rows of like base scores", reasons["noisy"])
    assert "neither: AUC 1.000 alone" in reasons["missing_flag"]
    assert "neither: zero in 100% of its rows and 0% of the others: zero-ness AUC 1.00" in reasons["zeros"]
    assert "donor: AUC 1.000 alone" in reasons["inverse"]
    assert reasons["one_class"].splitlines()[0].startswith("acceptor: AUC 1.000 alone")
    assert "acceptor: " in reasons["code"]
    assert "rows where it is present are not neither" in reasons["one_shard"]
    features = json.loads(run.features.read_text())
    assert set(PLANTED) < {f["name"] for f in features["features"]}  # reported, and trained on all the same
    assert any(all(name in w for name in PLANTED) for w in plan_of(run.root)["warnings"])


def test_leaks_are_left_out_on_request_and_base_scores_stay(leaky: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    words = ("--holdout-fraction", "0.2", leaky)
    told = succeed("plan", *words, tmp_path / "told")
    block = told.out[told.out.index("these features may give the label away") :]
    for word in ("filled (neither)", "--auto-exclude-leaky", "--exclude-features", "--allow-features", "AUC 1.00"):
        assert word in block
    assert re.search(r"leakage screen: [\d,]+ rows of \d+ genes read for [\d,]+ asked", told.err)
    done = succeed("plan", "--auto-exclude-leaky", *words, run)
    assert "left out because they give the label away" in done.out
    features = json.loads((run / "features.json").read_text())
    kept = {f["name"] for f in features["features"]}
    gone = {e["name"]: e["reason"] for e in features["excluded"]}
    assert kept == {"donor_score", "acceptor_score", "neither_score", *CONTEXT}
    assert all(gone[name].startswith("leak: ") for name in PLANTED)
    assert "missingness AUC 1.00" in gone["filled"]
    assert plan_of(run)["options"]["auto_exclude_leaky"] is True
    assert plan_of(run)["fingerprint"] != plan_of(tmp_path / "told")["fingerprint"]
    again = Options(holdout_fraction=0.2, auto_exclude_leaky=True)
    assert make_plan(leaky, RunDir(run), again).already
    with pytest.raises(InputError, match="auto_exclude_leaky True -> False"):
        make_plan(leaky, RunDir(run), Options(holdout_fraction=0.2))


def test_what_is_allowed_by_name_is_kept_and_not_asked_about(leaky: Path, tmp_path: Path) -> None:
    run, reasons = plan_with(
        leaky, tmp_path / "run", auto_exclude_leaky=True, allow_features=("filled", "gc_content"),
        exclude_features=("noisy",), holdout_fraction=0.2,
    )  # fmt: skip
    assert sorted(reasons) == sorted(set(PLANTED) - {"filled", "noisy"})
    table = read_leakage(run)
    assert all("allowed by --allow-features: " in r for r in table.filter(feature="filled")["reason"])
    assert table.filter(feature="gc_content")["reason"].to_list() == ["allowed by --allow-features"] * 3
    features = json.loads(run.features.read_text())
    assert "filled" in {f["name"] for f in features["features"]}
    reason = {e["name"]: e["reason"] for e in features["excluded"]}
    assert reason["noisy"] == "excluded by --exclude-features"


def test_the_report_decides_no_model_and_does_not_hang_on_the_names_of_shards(leaky: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    renamed.mkdir()
    for number, file in enumerate(sorted(leaky.glob("*.parquet"), reverse=True)):
        (renamed / f"x{number}.parquet").write_bytes(file.read_bytes())
    one, _ = plan_with(leaky, tmp_path / "one", holdout_fraction=0.2)
    two, _ = plan_with(renamed, tmp_path / "two", holdout_fraction=0.2)
    assert one.leakage.read_bytes() == two.leakage.read_bytes()
    assert plan_of(one.root)["fingerprint"] == plan_of(two.root)["fingerprint"]
    one.leakage.write_bytes(b"")  # a table of the plan all the same
    said = start("train-instance", one.root, "0")
    assert said.code == 3
    assert "leakage.parquet was changed" in said.err


def test_holdout_genes_are_not_looked_at(tmp_path: Path) -> None:
    """A column that copies the label in the holdout and is noise elsewhere, and the other way about."""
    frame = small_table(genes=60)
    data = write_table(tmp_path / "data", frame)
    run = RunDir(tmp_path / "first")
    make_plan(data, run, Options(holdout_fraction=0.5))
    held = frame["gene_id"].is_in(read_genes(run).filter(split="holdout")["gene_id"].implode()).to_numpy()
    label = (frame["splice_type"] == "donor").to_numpy()
    noise = np.random.default_rng(0).random(len(label))
    with_leaks = frame.with_columns(
        there=pl.Series(np.where(held, label, noise)), here=pl.Series(np.where(held, noise, label))
    )
    again = write_table(tmp_path / "again", with_leaks)
    _, reasons = plan_with(again, tmp_path / "second", holdout_fraction=0.5)
    assert "here" in reasons
    assert "there" not in reasons


def generic(genes: int = 80, rows: int = 50) -> pl.DataFrame:
    """Flights by aircraft: no base score, a strong honest feature (AUC 0.9) and a copy of the label."""
    rng = np.random.default_rng(1)
    n = genes * rows
    late = rng.random(n) < 0.3
    return pl.DataFrame(
        {
            "tail": np.repeat([f"N{i:03d}" for i in range(genes)], rows),
            "late": np.where(late, "yes", "no"),
            "wind": (1.8 * late + rng.normal(size=n)).astype(np.float32),
            "delay_code": late.astype(np.float32) * 15,
            "hour": rng.integers(0, 24, n).astype(np.int64),
            "cold": rng.random(n) < 0.2,
        }
    )


GENERIC = {"group_column": "tail", "label_column": "late", "classes": ("no", "yes"), "calibration": "platt"}


def test_a_table_without_base_scores(tmp_path: Path) -> None:
    data = tmp_path / "flights.parquet"
    generic().write_parquet(data)
    _, reasons = plan_with(data, tmp_path / "run", **GENERIC)
    assert list(reasons) == ["delay_code"]
    assert "|Pearson| 1.00 with the label" in reasons["delay_code"]
    generic().select("tail", "late", "delay_code").write_parquet(data)
    words = ("--group-column", "tail", "--label-column", "late", "--classes", "no,yes")
    none = start("plan", *words, "--auto-exclude-leaky", data, tmp_path / "none")
    assert none.code == 3
    assert "every feature gives the label away: delay_code" in none.err
    assert "--allow-features" in none.err
    assert not (tmp_path / "none").exists()


def test_a_class_of_too_few_rows_is_not_judged_and_said(tmp_path: Path) -> None:
    frame = generic(genes=8, rows=20).with_columns(
        late=pl.when((pl.int_range(pl.len()) % 20) == 3).then(pl.lit("yes")).otherwise(pl.lit("no"))
    )
    frame.with_columns(copy=(pl.col("late") == "yes").cast(pl.Float32)).write_parquet(tmp_path / "few.parquet")
    run, reasons = plan_with(tmp_path / "few.parquet", tmp_path / "run", n_folds=2, **GENERIC)
    assert reasons == {}
    assert any("7 row(s) of class yes" in w and "too few" in w for w in plan_of(run.root)["warnings"])


def test_the_sample_holds_all_classes_and_is_bounded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    rng = np.random.default_rng(2)
    sizes = rng.integers(50, 900, 2000)
    rare = np.zeros(2000, dtype=int)
    rare[rng.choice(2000, 3, replace=False)] = 2
    genes = pl.DataFrame({"gene_id": [f"G{i}" for i in range(2000)], "rows": sizes}).with_columns(
        pl.Series(class_column(0), sizes - rare), pl.Series(class_column(1), rare)
    )
    drawn = draw_genes(genes, 2, 7)
    assert 0.9 * MOST_ROWS < drawn["rows"].sum() <= MOST_ROWS
    assert drawn[class_column(1)].sum() == 6
    assert drawn.equals(draw_genes(genes.sample(fraction=1, shuffle=True, seed=1), 2, 7))
    assert not drawn.equals(draw_genes(genes, 2, 8))
    huge = genes.with_columns(rows=pl.col("rows") * 100)
    assert draw_genes(huge, 2, 7).height >= ENOUGH_GENES
    long = generic(genes=40, rows=2_000)
    long.with_columns(late=pl.when(pl.int_range(pl.len()) % 500 == 0).then(pl.lit("yes")).otherwise(pl.lit("no"))
                      ).write_parquet(tmp_path / "long.parquet")  # fmt: skip
    with caplog.at_level(logging.INFO, logger="metabatch.planning.screening"):
        plan_with(tmp_path / "long.parquet", tmp_path / "run", **GENERIC)
    said = re.search(r"for ([\d,]+) asked, ([\d,]+) judged", caplog.text)
    assert said is not None
    asked, judged = (int(x.replace(",", "")) for x in said.groups())
    assert asked >= ENOUGH_GENES * 2_000 > MOST_ROWS >= judged > 0.5 * MOST_ROWS
