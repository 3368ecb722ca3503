"""The search for a tensor-core plan: what it leaves out has no better candidate, and it leaves most out."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "cuda"
COMPILER = next((name for name in ("g++", "clang++") if shutil.which(name)), None)


@pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")
def test_the_search_finds_what_costing_every_candidate_finds(tmp_path):
    program = tmp_path / "exhaustive"
    launch = CUDA / "launch"
    sources = [
        HERE / "gemm_search_exhaustive.cpp",
        launch / "pack_plan.cpp",
        launch / "turn_plan.cpp",
        *launch.glob("gemm_*.cpp"),
    ]
    command = [COMPILER, "-std=c++20", "-O2", f"-I{CUDA}", *map(str, sources), "-o", str(program)]
    made = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert made.returncode == 0, made.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout[-4000:] + ran.stderr
    candidates, dropped = map(int, re.search(r"(\d+) candidates, (\d+) dropped", ran.stdout).groups())
    assert candidates > 100_000 and dropped > 0.7 * candidates
