"""compute-sanitizer over a small set: reads and writes outside of memory, and races in shared memory.

racecheck takes a bulk copy for a store of the thread that asks for it and reports the filter's stages of warpgroups
(docs/warpgroups.md), and an arrival that a warp has agreed on for one thread's (docs/weight_gradient.md): it sees the
other kernels; what orders warpgroups is shown in tests/simulator.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("sanitized.py")
TOOL = shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path="/usr/local/cuda/bin")


@pytest.mark.cuda
@pytest.mark.parametrize(("check", "amount"), (("memcheck", "all"), ("racecheck", "some")))
def test_sanitizer_finds_nothing(check, amount):
    if TOOL is None:
        pytest.skip("compute-sanitizer is not on PATH")
    run = subprocess.run(
        [TOOL, "--tool", check, "--error-exitcode", "86", "--print-limit", "5", sys.executable, str(SCRIPT), amount],
        capture_output=True,
        text=True,
        timeout=400,  # racecheck runs kernels hundreds of times slower
        env={
            **os.environ,
            "PYTORCH_NO_CUDA_MEMORY_CACHING": "1",
            "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        },
    )
    output = run.stdout + run.stderr
    if "Device not supported" in output:
        pytest.skip("compute-sanitizer does not support this device or driver")
    assert run.returncode == 0, output[-4000:]
    assert int(run.stdout.split(" calls")[0].split()[-1]) >= 20, output[-2000:]
