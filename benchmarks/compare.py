"""The one command for all comparisons: run them and write their tables into benchmarks/RESULTS.md.

    PYTHONPATH=. python benchmarks/compare.py [--sections law,limits,ladder,peers,growth,…] [--data DIR]

A section that is not run keeps its last table. Each says when and on what it was measured. All of them need about two
hours on 2 cores and 12 GB free. The executables use their own environment as always; `peers` needs lightgbm and pandas
in this one, `limits`, `ladder`, `incremental` and `pruning` need root and METABATCH_MEMLIMIT, a script that runs a
command under a hard kernel limit.
"""

from __future__ import annotations

import argparse
import datetime as dt
import importlib.metadata
import platform
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil
from analyses import analyses_table
from building import building_lines
from checkpoints import checkpoints_table
from distributed_workers import distributed_lines
from ensembles import ensembles_lines, student_lines
from genome import genome_lines
from growth import SIZES, growth_table
from incremental import incremental_lines
from inference import inference_table, make_data
from limits import ladder_lines, limits_table, sample_lines
from memory_law import law_table
from peers import PEERS, peers_table
from pruning import pruning_lines
from reference_table import REFERENCE_FEATURES, REFERENCE_GENES, make_table

RESULTS = Path(__file__).with_name("RESULTS.md")
PACKAGES = ("xgboost-cpu", "polars", "pyarrow", "numpy")
TITLES = {
    "law": "Memory law: prediction against measurement",
    "limits": "The reference table under hard kernel limits",
    "ladder": "An instance planned for 4 GiB under 1 GiB",
    "peers": "The same genes, folds and trees by others",
    "growth": "Growth with the number of genes",
    "sample": "Rows read for ten sampled genes",
    "checkpoints": "What checkpoints cost",
    "analyses": "What the analyses of a 1,500-gene instance cost",
    "ensembles": "One model, members, combinations and the student on genes none of them saw",
    "incremental": "Linear models out of core",
    "distributed": "One model over several workers",
    "student": "The student against its seven members",
    "inference": "Prediction: rows a second",
    "genome": "From a genome to all its positions",
    "building": "Building data sets: rows a second and memory",
    "pruning": "Leaving out features under a hard 1 GiB",
}


def machine() -> str:
    cpu = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    model = cpu.group(1).strip() if cpu else platform.machine()
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    return (
        f"{dt.datetime.now(dt.UTC).date()}, {psutil.cpu_count()} CPUs ({model}), "
        f"{psutil.virtual_memory().total / 2**30:.0f} GiB, Linux {platform.release().partition('-')[0]}, "
        f"Python {platform.python_version()}, {versions}"
    )


def replace_section(text: str, name: str, lines: Iterable[str]) -> str:
    """`text` with the part between the section's two comments renewed, or appended."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    body = "\n".join([begin, f"## {TITLES[name]}", "", *lines, end])
    if begin not in text:
        return text.rstrip() + "\n\n" + body + "\n"
    return text[: text.index(begin)] + body + text[text.index(end) + len(end) :]


def main() -> None:
    """Run the sections one after the other; each is written when it is through."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sections", default=",".join(TITLES))
    parser.add_argument("--data", type=Path, help="where the tables are kept (default: made anew)")
    parser.add_argument("--repeat", type=int, default=3, help="runs of each peer; times are medians")
    parser.add_argument("--peers", default=",".join(PEERS), help="who is compared with")
    parser.add_argument("--trees", type=int, default=10, help="trees of the peers")
    parser.add_argument("--instances", default="0,1,2,3,4,5,6", help="which 1,500-gene instances to train")
    given = parser.parse_args()
    peers = given.peers.split(",")
    if "usual" not in peers or not set(peers) <= set(PEERS):
        parser.error(
            f"--peers {given.peers}: names from {', '.join(PEERS)}, usual among them (all are held against it)"
        )
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        kept = given.data or place / "tables"

        def table(genes: int) -> Path:
            folder, begun = kept / str(genes), kept / f"{genes}.being-made"
            if not folder.exists():  # one that was cut off must not be taken for a whole one
                shutil.rmtree(begun, ignore_errors=True)
                make_table(begun, genes, REFERENCE_FEATURES, psutil.cpu_count() or 1, 1)
                begun.rename(folder)
            return folder

        sections: dict[str, Callable[[], Iterable[str]]] = {
            "law": law_table,
            "limits": lambda: limits_table(table(REFERENCE_GENES), place, [int(i) for i in given.instances.split(",")]),
            "ladder": lambda: ladder_lines(table(REFERENCE_GENES), place),
            "peers": lambda: peers_table(table(1000), place, given.trees, given.repeat, peers),
            "growth": lambda: growth_table({genes: table(genes) for genes in SIZES}, place),
            "sample": lambda: sample_lines(table(REFERENCE_GENES), place),
            "checkpoints": lambda: checkpoints_table(table(500), place),
            "analyses": lambda: analyses_table(table(1500), place),
            "ensembles": lambda: ensembles_lines(place),
            "student": lambda: student_lines(place),
            "genome": lambda: genome_lines(place),
            "building": lambda: building_lines(place),
            "pruning": lambda: pruning_lines(table(REFERENCE_GENES), place),
            "incremental": lambda: incremental_lines(table(REFERENCE_GENES), table(1500), place),
            "distributed": lambda: distributed_lines(table(2000), place),
            "inference": lambda: inference_table(make_data(place), place),
        }
        for section in given.sections.split(","):
            lines = [f"{machine()}.", ""]
            for line in sections[section]():
                print(line, flush=True)
                lines.append(line)
            text = RESULTS.read_text() if RESULTS.exists() else "# Results\n"
            RESULTS.write_text(replace_section(text, section, lines))


if __name__ == "__main__":
    main()
