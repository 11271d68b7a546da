"""The kernels in the repository are those of their source."""

import json
import subprocess
from pathlib import Path

import pytest

from lewm import lab

ROOT = Path(__file__).parent.parent.parent
COMPILER = ROOT / "build" / "kernels" / "node_modules" / ".bin" / "asc"


@pytest.mark.skipif(not COMPILER.exists(), reason="no AssemblyScript compiler: run `make kernels`")
def test_what_is_built_is_what_is_kept(tmp_path):
    wanted = json.loads((ROOT / "lewm/lab/package.json").read_text())["devDependencies"]
    package = COMPILER.parent.parent / "assemblyscript" / "package.json"
    if json.loads(package.read_text())["version"] != wanted["assemblyscript"]:
        pytest.skip("another AssemblyScript compiler than the pinned one: run `make kernels`")
    made = tmp_path / "kernels.wasm"
    source, config = "lewm/lab/kernels.ts", "lewm/lab/asconfig.json"
    words = [str(COMPILER), source, "--config", config, "--outFile", str(made)]
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert made.read_bytes() == lab.kernels()


def test_what_the_page_is_made_of_is_small_and_there():
    assert len(lab.kernels()) < 15_000
    for name in lab.SOURCES:
        assert lab.source(name).startswith("/**\n")
        assert "https://" not in lab.source(name)
