"""What the repository promises about itself: pinned versions, a README that runs, files of a readable length."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from convt import cli

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def name_of(requirement):
    return re.match(r"[A-Za-z0-9._-]+", requirement)[0].lower().replace("_", "-")


def requirements():
    project = PYPROJECT["project"]
    yield from PYPROJECT["build-system"]["requires"]
    yield from project["dependencies"]
    for extra, entries in project["optional-dependencies"].items():
        if not extra.startswith("cuda"):  # NVIDIA's compiler wheels carry their own pins
            yield from entries


def test_every_dependency_is_pinned():
    pins = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[^=]+", pin) for pin in pins), "exact versions only"
    pinned = {name_of(pin) for pin in pins}
    assert {name_of(requirement) for requirement in requirements()} <= pinned
    assert {"torch", "cmake", "ninja"} <= pinned


def test_readme_blocks_run():
    namespace = {}
    found = blocks("python")
    assert len(found) >= 5
    for block in found:
        exec(compile(block, "README.md", "exec"), namespace)
    assert namespace["y"].shape[0] == 2


def test_readme_first_screen_has_the_two_commands():
    first, second = blocks("bash")[:2]
    assert first == "pip install . -c constraints.txt && convt demo\n"
    assert second == "pip install '.[test]' -c constraints.txt && pytest\n"
    assert README.index(second) < 40 * 120, "on the first screen"


def test_readme_names_commands_that_exist():
    commands = re.findall(r"`convt ([a-z][^`]*)`", README + (ROOT / "CONTRIBUTING.md").read_text())
    assert len(commands) >= 4
    for command in commands:
        if command != "command":
            cli._parser().parse_args(shlex.split(command))


def test_readme_links_lead_somewhere():
    for file in (
        "README.md",
        "CONTRIBUTING.md",
        "docs/math.md",
        "docs/benchmarks.md",
        "docs/tuning.md",
        "third_party/README.md",
    ):
        text = (ROOT / file).read_text()
        for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", text):
            assert ((ROOT / file).parent / link).exists(), f"{file}: {link}"


def test_ci_takes_its_test_command_from_the_readme():
    script = (ROOT / ".ci" / "run").read_text()
    pattern = re.search(r"grep -E '([^']+)' README\.md", script)[1]
    matching = [line for line in README.splitlines() if re.search(pattern, line)]
    assert matching == ["pip install '.[test]' -c constraints.txt && pytest"]
    subprocess.run(["bash", "-n", ROOT / ".ci" / "run"], check=True)


def source_files():
    for folder in ("python", "cuda", "tests", "docs", "third_party", ".ci"):
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and path.suffix in {
                ".py",
                ".pyi",
                ".hpp",
                ".cpp",
                ".cuh",
                ".cu",
                ".md",
                ".cmake",
                ".txt",
                "",
            }:
                yield path
    yield from (ROOT / name for name in ("CMakeLists.txt", "README.md", "CONTRIBUTING.md"))


def test_no_file_over_500_lines():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in source_files()}
    assert len(lengths) > 50
    assert not {name: length for name, length in lengths.items() if length > 500}


@pytest.mark.parametrize("tool", ["ruff", "mypy", "pytest", "scikit-build"])
def test_tools_are_configured_in_one_place(tool):
    assert tool in PYPROJECT["tool"]
    assert not list(ROOT.glob("*.ini")) + list(ROOT.glob(".ruff.toml")) + list(ROOT.glob("setup.*"))
