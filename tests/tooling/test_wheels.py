"""The workflow and the wheels' configuration agree with the project: Pythons, pins, linters, compiler wheels."""

from __future__ import annotations

import itertools
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SCRIPT = (ROOT / ".ci" / "run").read_text()
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
WORKFLOW = ROOT / ".github" / "workflows" / "ci.yml"

pytestmark = pytest.mark.skipif(not WORKFLOW.exists(), reason="an sdist has no workflow")
JOBS = yaml.safe_load(WORKFLOW.read_text())["jobs"] if WORKFLOW.exists() else {}

OLDEST = tuple(map(int, re.fullmatch(r">=(\d+)\.(\d+)", PYPROJECT["project"]["requires-python"]).groups()))
STABLE = re.fullmatch(r"cp(\d)(\d+)", PYPROJECT["tool"]["scikit-build"]["wheel"]["py-api"])
STABLE_SINCE = int(STABLE[1]), int(STABLE[2])


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower()


def runs(job):
    """The shell of a job's steps."""
    return "\n".join(step["run"] for step in JOBS[job]["steps"] if "run" in step)


def combinations(job):
    """A job's matrix as GitHub expands it: the product, and entries of `include` that fit in no combination."""
    matrix = dict(JOBS[job]["strategy"]["matrix"])
    include = matrix.pop("include", [])
    found = [dict(zip(matrix, values, strict=True)) for values in itertools.product(*matrix.values())] if matrix else []
    original = [dict(combination) for combination in found]
    for entry in include:
        hosts = [
            combination
            for combination, own in zip(found, original, strict=False)
            if all(own.get(key, value) == value for key, value in entry.items())
        ]
        for combination in hosts:
            combination.update(entry)
        if not hosts:
            found.append(dict(entry))
    return found


def test_every_python_is_tested_and_installed():
    for job in ("test", "install"):
        pythons = {tuple(map(int, c["python"].split("."))) for c in combinations(job)}
        assert min(pythons) == OLDEST and STABLE_SINCE in pythons
        assert sorted(pythons) == [(OLDEST[0], minor) for minor in range(OLDEST[1], max(pythons)[1] + 1)]
        assert max(pythons) > STABLE_SINCE, "the wheel for the stable ABI is installed in a later Python"


def test_the_oldest_torch_has_jobs_of_its_own():
    (torch,) = (r for r in PYPROJECT["project"]["dependencies"] if r.startswith("torch"))
    oldest = torch.removeprefix("torch>=")
    for job in ("test", "install"):
        asked = [c["torch"] for c in combinations(job)]
        assert asked.count("") == len({(c["python"], c.get("kind")) for c in combinations(job) if not c["torch"]})
        older = [value for value in asked if value]
        assert older and all(value.removeprefix("==").startswith(f"{oldest}.") for value in older)


def test_linters_are_those_of_the_script():
    here = {line.strip() for line in runs("lint").splitlines()}
    there = {line.split(" ||")[0] for line in SCRIPT.splitlines() if line.endswith("|| complaints=1")}
    assert len(there) == 4
    for command in there:
        assert command in here or command.split(" --files")[0] in {line.split(" $(")[0] for line in here}, command


def test_the_whole_script_runs_where_its_compiler_is():
    assert JOBS["whole"]["steps"][-1]["run"] == "bash .ci/run"
    image = re.search(r"nvidia/cuda:(\d+\.\d+)\.\d+-devel", JOBS["whole"]["container"])[1]
    assert PINS["nvidia-cuda-nvcc"].startswith(f"{image}.")


def test_wheels_are_one_per_old_python_and_one_for_the_stable_abi():
    built = PYPROJECT["tool"]["cibuildwheel"]["build"].split()
    assert built == [f"cp{OLDEST[0]}{minor}-manylinux_x86_64" for minor in range(OLDEST[1], STABLE_SINCE[1] + 1)]
    image = PYPROJECT["tool"]["cibuildwheel"]["manylinux-x86_64-image"]
    checks = runs("wheels")
    assert f"= {len(built)}" in checks and image in checks
    tags = re.findall(r"\*-(cp\d+-\w+)-\*\.whl", checks)
    assert tags == [f"cp3{m}-cp3{m}" for m in range(OLDEST[1], STABLE_SINCE[1])] + [f"cp3{STABLE_SINCE[1]}-abi3"]


def test_cuda_wheels_are_built_by_the_compiler_of_the_extra():
    kinds = {c["kind"]: c for c in combinations("wheels")}
    assert {kind: c["cuda"] for kind, c in kinds.items()} == {"cpu": "off", "cuda": "wheels"}
    assert PYPROJECT["tool"]["cibuildwheel"]["config-settings"] == {"cmake.define.CONVT_CUDA": "off"}
    words = shlex.split(kinds["cuda"]["before"])
    assert words[:4] == ["pip", "install", "-c", "{project}/constraints.txt"]
    compiler = [name_of(requirement) for requirement in PYPROJECT["project"]["optional-dependencies"]["cuda-build"]]
    build = [name_of(requirement) for requirement in PYPROJECT["build-system"]["requires"]]
    assert sorted(words[4:]) == sorted([*compiler, *build, "cmake", "ninja"])
    assert "--no-isolation" in kinds["cuda"]["frontend"]


@pytest.mark.parametrize("job", JOBS)
def test_shell_is_shell_and_packages_have_pins(job):
    script = re.sub(r"\$\{\{[^}]*\}\}", "value", runs(job))
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    for line in script.splitlines():
        words = line.split()
        if words[:2] == ["pip", "install"] and "constraints.txt" in words:
            named = [word for word in words[2:] if re.fullmatch(r"[a-z][a-z-]+", word)]
            assert set(named) <= set(PINS), line


@pytest.mark.parametrize("job", JOBS)
def test_expressions_name_what_a_matrix_has(job):
    text = yaml.dump(JOBS[job])
    named = set(re.findall(r"\bmatrix\.(\w+)", text))
    if named:
        assert named <= {key for combination in combinations(job) for key in combination}
    for needed in (
        [JOBS[job].get("needs", [])] if isinstance(JOBS[job].get("needs"), str) else JOBS[job].get("needs", [])
    ):
        assert needed in JOBS
    assert JOBS[job]["timeout-minutes"] > 0


def test_expanding_a_matrix_is_githubs():
    """An entry that changes no original value joins; one that would change one stands alone."""
    JOBS["example"] = {
        "strategy": {"matrix": {"a": [1, 2], "b": [""], "include": [{"a": 1, "b": "x"}, {"a": 2, "c": 3}]}}
    }
    try:
        assert combinations("example") == [{"a": 1, "b": ""}, {"a": 2, "b": "", "c": 3}, {"a": 1, "b": "x"}]
    finally:
        del JOBS["example"]
