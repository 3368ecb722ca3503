"""The build's switches, without building: CMake is only asked to configure."""

import json
import os
import subprocess
import sys
from pathlib import Path

import cmake
import ninja
import pytest

ROOT = Path(__file__).resolve().parents[2]
CMAKE = Path(cmake.CMAKE_BIN_DIR) / "cmake"


def path_without_nvcc(scratch):
    """PATH without nvcc; folders that hold it are replaced by links to all else in them, compilers for instance."""
    folders = [Path(folder) for folder in os.environ["PATH"].split(os.pathsep) if folder]
    for index, folder in enumerate(folders):
        if (folder / "nvcc").exists():
            folders[index] = scratch / f"path{index}"
            folders[index].mkdir()
            for tool in folder.iterdir():
                if tool.name != "nvcc":
                    (folders[index] / tool.name).symlink_to(tool)
    return os.pathsep.join(map(str, folders))


def configure(scratch, **defines):
    build = scratch / "build"
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith(("CUDA", "CMAKE", "SKBUILD"))
    }
    environment["PATH"] = path_without_nvcc(scratch)
    command = [CMAKE, "-S", ROOT, "-B", build, "-G", "Ninja"]
    defines = {
        "CMAKE_MAKE_PROGRAM": Path(ninja.BIN_DIR) / "ninja",
        "Python_EXECUTABLE": sys.executable,
        "SKBUILD_PROJECT_VERSION": "0.0.0",
        **defines,
    }
    command += [f"-D{name}={value}" for name, value in defines.items()]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


def test_without_cuda_it_configures(tmp_path):
    run = configure(tmp_path, CONVT_CUDA="off")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "convt: no CUDA" in run.stdout
    assert not compile_commands_mention(tmp_path / "build", "CONVT_WITH_CUDA")


def test_auto_goes_without_cuda_where_there_is_no_nvcc(tmp_path):
    run = configure(tmp_path, CONVT_CUDA="auto")
    assert run.returncode == 0, run.stdout + run.stderr
    assert "convt: no CUDA" in run.stdout


def test_on_without_nvcc_fails_and_says_what_to_do(tmp_path):
    run = configure(tmp_path, CONVT_CUDA="on")
    assert run.returncode != 0
    said = " ".join(run.stderr.split())
    assert "CONVT_CUDA=on" in said
    assert "no working nvcc was found" in said
    assert "auto or off" in said


def test_an_unknown_value_is_refused_with_the_legal_ones(tmp_path):
    run = configure(tmp_path, CONVT_CUDA="maybe")
    assert run.returncode != 0
    said = " ".join(run.stderr.split())
    assert "CONVT_CUDA=maybe" in said
    assert "auto, on, off and wheels" in said


def compile_commands_mention(build, word):
    return any(word in entry["command"] for entry in json.loads((build / "compile_commands.json").read_text()))


@pytest.mark.parametrize("preset", ["dev", "release", "cpu"])
def test_presets_are_there(preset):
    run = subprocess.run([CMAKE, "--list-presets"], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr
    assert f'"{preset}"' in run.stdout
