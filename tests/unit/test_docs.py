"""The documents say what the program does."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_the_cli_reference_is_up_to_date() -> None:
    made = runpy.run_path(str(ROOT / "docs" / "generate_cli.py"))["cli_reference"]()
    assert (ROOT / "docs" / "cli.md").read_text() == made, "run: PYTHONPATH=. python docs/generate_cli.py"


@pytest.mark.parametrize("document", ["README.md", "docs/architecture.md", "docs/file-formats.md", "docs/how-to.md"])
def test_files_and_options_named_in_documents_exist(document: str) -> None:
    text = (ROOT / document).read_text()
    for path in re.findall(r"\]\((?!http|#)([^)#]+)", text):
        assert (ROOT / document).parent.joinpath(path).exists(), path
    for command in re.findall(r"`?bin/([a-z-]+)", text):
        assert (ROOT / "bin" / command).exists(), command
    ours = set(re.findall(r"^ +(?:-h )?(--[a-z-]+)", (ROOT / "docs/cli.md").read_text(), re.MULTILINE))
    slurms = {
        "--array", "--mem", "--mem-per-cpu", "--ntasks", "--gres", "--gpus-per-task", "--partition", "--time",
        "--signal", "--requeue", "--open-mode",
    }  # fmt: skip
    dasks = {"--tls-ca-file", "--tls-cert", "--tls-key"}
    containers = {"--build-arg", "--rm", "--network", "--read-only", "--tmpfs", "--user"}
    known = ours | slurms | containers | dasks
    for option in re.findall(r"(?<![\w-])(--[a-z][a-z-]+)", text):
        assert option in known, f"{document} names {option}"


def test_no_machine_or_registry_is_named_in_the_repository() -> None:
    listed = "".join(file.read_text() for file in sorted(ROOT.glob("requirements*.lock")))
    assert "http" not in listed
    assert "--index" not in listed
    pins = re.findall(r"^([a-z0-9-]+)==", listed, re.MULTILINE)
    assert len(pins) > 20
    assert listed.count("--hash=sha256:") >= len(pins)
