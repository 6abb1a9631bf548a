"""Networks as base models: OpenSpliceAI (torch) and SpliceAI (Keras on torch).

Both come with optional extras, and are imported when they are opened. Written after the packages' published code
(openspliceai 0.0.7: `train_base/openspliceai.py`, `predict/predict.py`; spliceai 1.3.1: `utils.py`).
tests/integration/test_networks.py runs both where they are installed, which the tests' own environment has not: torch.

Sequence goes through in blocks of one shape, one at a time: the values of a position then do not depend on the length
of its gene. One thread, always on the CPU. Another version of torch or another kind of processor may round differently,
so features for a model want the same ones.
"""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from metabatch.building.base import BaseDescription, Source, not_installed, source_of, versions_of
from metabatch.building.base_scores import check_scores
from metabatch.building.genes import Gene
from metabatch.building.genome import UNKNOWN
from metabatch.errors import InputError
from metabatch.lean import let_pandas_in

# Positions scored at a time: the output length both networks were trained with.
BLOCK = 5000
# Window and dilation of the residual units (openspliceai/predict/predict.py): the first 4, 8, 12 or all 16 of them for
# 80, 400, 2,000 and 10,000 nt.
_WINDOWS = [11] * 8 + [21] * 4 + [41] * 4
_DILATIONS = [1] * 4 + [4] * 4 + [10] * 4 + [25] * 4
_CHANNELS = 32
# Both networks say neither, acceptor, donor.
_ORDER = [0, 2, 1]
_ONE_HOT = np.vstack([np.eye(UNKNOWN, dtype=np.float32), np.zeros((1, UNKNOWN), dtype=np.float32)])


class OpenSpliceAI:
    """OpenSpliceAI with the weights of one ``.pt`` file: a state dictionary, as the project publishes them."""

    def __init__(self, path: Path, known: Sequence[Source] = ()) -> None:
        try:
            torch = _one_thread()
            from openspliceai.train_base.openspliceai import SpliceAI as Network
        except ImportError as error:
            raise not_installed("openspliceai", "openspliceai", error) from None
        self.path, self._known = Path(path), tuple(known)
        self.name = f"openspliceai:{self.path.name}"
        if not self.path.is_file():
            raise InputError(f"{path} does not exist", expected="the weights of an OpenSpliceAI model (.pt)")
        try:
            weights = torch.load(self.path, map_location="cpu", weights_only=True)
            units = sum(str(name).endswith(".conv1.weight") for name in weights)
            network = Network(_CHANNELS, np.array(_WINDOWS[:units]), np.array(_DILATIONS[:units]))
            network.load_state_dict(weights)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, ValueError, TypeError) as error:
            raise InputError(
                f"{self.path.name} is not the weights of an OpenSpliceAI network: {str(error)[:200]}",
                expected="a state dictionary (.pt) of a published architecture: 80, 400, 2,000 or 10,000 nt",
                where=str(path),
            ) from None
        network.eval()
        self._torch, self._network = torch, network
        self.flank = int(network.CL) // 2

    def __reduce__(self) -> tuple[type[OpenSpliceAI], tuple[Path, tuple[Source, ...]]]:
        return OpenSpliceAI, (self.path, self._known)

    def describe(self) -> BaseDescription:
        """With the weights' sha256."""
        versions = versions_of("openspliceai")
        return BaseDescription(kind="openspliceai", sources=self._known or (source_of(self.path),), versions=versions)

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:
        """As `BaseModel.scores`."""
        return _in_blocks(gene, codes, self.flank, self._block, self.name)

    def _block(self, one_hot: np.ndarray) -> np.ndarray:
        with self._torch.inference_mode():
            out = self._network(self._torch.from_numpy(np.ascontiguousarray(one_hot.T[None])))
        return np.asarray(out[0].numpy().T)


class SpliceAI:
    """The five published models of the package `spliceai` (weights: CC BY-NC 4.0), averaged as it does."""

    name = "spliceai"
    flank = 5000

    def __init__(self) -> None:
        # Keras looks at this when it is imported.
        os.environ.setdefault("KERAS_BACKEND", "torch")
        try:
            let_pandas_in()  # torch._dynamo, which keras imports, asks whether it is there
            import keras

            _one_thread()
        except ImportError as error:
            raise not_installed("spliceai", "spliceai", error) from None
        # Found, not imported: the package imports what scoring does not need.
        package = find_spec("spliceai")
        if package is None or package.origin is None:
            raise not_installed("spliceai", "spliceai", ImportError("No module named 'spliceai'"))
        self._files = [Path(package.origin).parent / "models" / f"spliceai{number}.h5" for number in range(1, 6)]
        self._networks: list[Any] = [keras.models.load_model(str(file), compile=False) for file in self._files]

    def __reduce__(self) -> tuple[type[SpliceAI], tuple[()]]:
        return SpliceAI, ()

    def describe(self) -> BaseDescription:
        """With the sha256 of each model."""
        sources = tuple(source_of(file) for file in self._files)
        return BaseDescription(kind="spliceai", sources=sources, versions=versions_of("spliceai"))

    def scores(self, gene: Gene, codes: np.ndarray) -> np.ndarray:
        """As `BaseModel.scores`."""
        return _in_blocks(gene, codes, self.flank, self._block, self.name)

    def _block(self, one_hot: np.ndarray) -> np.ndarray:
        outs = [np.asarray(network.predict_on_batch([one_hot[None]]))[0] for network in self._networks]
        return np.asarray(np.mean(outs, axis=0))


def _one_thread() -> Any:
    """torch, with one thread: sums in several end in other bits, and workers are processes already."""
    import torch

    torch.set_num_threads(1)
    return torch


def _in_blocks(
    gene: Gene, codes: np.ndarray, flank: int, block: Callable[[np.ndarray], np.ndarray], name: str
) -> np.ndarray:
    """Scores of a gene; `block` takes (BLOCK + 2 * flank, 4) and gives (BLOCK, 3) in the networks' order."""
    found = np.empty((gene.length, 3), dtype=np.float32)
    for start in range(0, gene.length, BLOCK):
        piece = codes[start : start + BLOCK + 2 * flank]
        piece = np.pad(piece, (0, BLOCK + 2 * flank - piece.size), constant_values=UNKNOWN)
        stop = min(start + BLOCK, gene.length)
        found[start:stop] = block(_ONE_HOT[piece])[: stop - start, _ORDER]
    check_scores(found, gene=gene, where=name)
    return found
