"""The plan cache by itself: bounded, and free of data races without a lock around Python."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
CUDA = HERE.parents[1] / "cuda"
COMPILER = next((name for name in ("g++", "clang++") if shutil.which(name)), None)

pytestmark = pytest.mark.skipif(COMPILER is None, reason="no C++ compiler on this machine")


def build(tmp_path, *flags):
    program = tmp_path / "stress"
    command = [COMPILER, "-std=c++20", "-O1", "-g", "-pthread", f"-I{CUDA}", *flags]
    made = subprocess.run(
        [*command, str(HERE / "plan_cache_stress.cpp"), "-o", str(program)], capture_output=True, text=True, timeout=120
    )
    return program, made


def test_threads_that_look_up_evict_and_change_settings(tmp_path):
    program, made = build(tmp_path)
    assert made.returncode == 0, made.stderr
    ran = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_a_thread_sanitizer_sees_no_race(tmp_path):
    program, made = build(tmp_path, "-fsanitize=thread")
    if made.returncode:
        assert "tsan" in made.stderr, made.stderr
        pytest.skip("this compiler has no thread sanitizer")
    ran = subprocess.run([program], capture_output=True, text=True, timeout=300)
    if "unexpected memory mapping" in ran.stderr:
        pytest.skip("the thread sanitizer cannot lay out its memory on this machine")
    assert ran.returncode == 0 and "WARNING: ThreadSanitizer" not in ran.stderr, ran.stdout + ran.stderr
