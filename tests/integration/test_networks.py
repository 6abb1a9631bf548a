"""Networks as base models, where their packages are installed: scores as their own code gives them, at true sites."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from metabatch.building.base_networks import _CHANNELS, _DILATIONS, _ONE_HOT, _ORDER, _WINDOWS, OpenSpliceAI
from metabatch.building.genes import Gene
from tests.conftest import succeed

# On the two strands; ten donor and ten acceptor sites together.
GENES = "ENSG00000157119,ENSG00000187094"


def needs(*packages: str) -> pytest.MarkDecorator:
    lacking = [name for name in packages if find_spec(name) is None]
    return pytest.mark.skipif(bool(lacking), reason=f"not installed: {', '.join(lacking)}")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """A network of 80 nt that has learned nothing: its scores are as good for comparing."""
    import torch
    from openspliceai.train_base.openspliceai import SpliceAI as Network

    torch.manual_seed(0)
    network = Network(_CHANNELS, np.array(_WINDOWS[:4]), np.array(_DILATIONS[:4]))
    torch.save(network.state_dict(), tmp_path / "network.pt")
    return tmp_path / "network.pt"


@needs("torch", "openspliceai")
def test_openspliceai_scores_a_gene_in_blocks_as_its_network_does_at_once(weights: Path) -> None:
    import torch

    model, none = OpenSpliceAI(weights), np.array([], dtype=np.int64)
    assert model.flank == 40
    codes = np.random.default_rng(1).integers(0, 4, 12_345 + 2 * model.flank).astype(np.uint8)
    found = model.scores(Gene("G", "G", "", "c", "+", 1, 12_345, none, none), codes)
    with torch.inference_mode():
        whole = model._network(torch.from_numpy(np.ascontiguousarray(_ONE_HOT[codes].T[None])))[0].numpy().T
    assert np.abs(found - whole[:, _ORDER]).max() < 1e-6


@needs("torch", "openspliceai")
def test_a_data_set_by_openspliceai_is_the_same_for_any_number_of_workers(
    weights: Path, hg19_windows: Path, tmp_path: Path
) -> None:
    sources = (hg19_windows / "genome.fa.gz", hg19_windows / "annotation.gtf.gz")
    for workers in ("1", "2"):
        words = ("--workers", workers, "--rows-per-shard", "400", "--base-model", f"openspliceai:{weights}")
        succeed("build-dataset", "--quiet", *words, "--gene-ids", GENES, *sources, tmp_path / workers)
    one, two = ({f.name: f.read_bytes() for f in (tmp_path / w).glob("positions-*")} for w in ("1", "2"))
    assert one == two
    assert len(one) == 2


@needs("torch", "keras", "spliceai")
def test_spliceai_finds_most_sites_of_genes_on_both_strands(hg19_windows: Path, tmp_path: Path) -> None:
    sources = (hg19_windows / "genome.fa.gz", hg19_windows / "annotation.gtf.gz")
    words = ("--workers", "1", "--base-model", "spliceai", "--gene-ids", GENES)
    succeed("build-dataset", "--quiet", *words, *sources, tmp_path / "out")
    rows = pl.read_parquet(tmp_path / "out/positions-*.parquet")
    for site in ("donor", "acceptor"):
        for (gene,), own in rows.filter(pl.col("splice_type") == site).group_by("gene_id"):
            assert own[f"{site}_score"].median() > 0.8, f"{gene}, {site}"
