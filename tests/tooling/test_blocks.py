"""Every code block of the documentation runs: Python as it stands, commands with little work; pip lines are read."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from convt import cli, problems
from convt.bench import machine, roofline
from convt.kernelbench import __main__ as kernelbench

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md")))
LANGUAGES = {"python", "py", "bash", "", "json", "text"}  # py: tests/compile runs it, with a compiler


def blocks(name: str) -> list[tuple[str, str]]:
    """(language, text) of a document's fenced blocks."""
    return re.findall(r"^```(\w*)\n(.*?)^```$", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)


def commands(name: str) -> list[list[str]]:
    """The words of every command in a document's bash blocks; && makes two of one line."""
    lines = [line for language, text in blocks(name) if language == "bash" for line in text.splitlines()]
    words = [shlex.split(line, comments=True) for line in lines]
    return [part for line in words for part in split(line, "&&") if part]


def split(words: list[str], at: str) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        parts.append([]) if word == at else parts[-1].append(word)
    return parts


@pytest.mark.parametrize("name", DOCUMENTS)
def test_blocks_are_of_known_languages(name):
    text = (ROOT / name).read_text()
    assert text.count("\n```") == 2 * len(blocks(name)), "every block is closed"
    assert {language for language, _ in blocks(name)} <= LANGUAGES


@pytest.mark.parametrize("name", DOCUMENTS)
def test_python_runs(name, torch_switches, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    for language, block in blocks(name):
        if language in ("python", "py"):
            code = compile(block, name, "exec")
            if language == "python":
                exec(code, namespace)


# commands


MODEL = """
import torch

def make():
    return torch.nn.Sequential(torch.nn.ConvTranspose1d(4, 4, 3)), (torch.rand(1, 4, 30),)
"""
RATES = dict.fromkeys(("ieee", "tf32", "bf16", "fp16", "fp64"), 1e11)

# Options that make a command small, in the order of preference; one that it does not have is left out.
SMALL = (["--device", "cpu"], ["--quick"], ["--seconds", "0.01"], ["--stop-after", "1"])
FEW = {"cpu": "100->512", "sweep": "s5", "kernelbench": "79", "zoo": "dcgan-64/100to512@1"}


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the documents and results, where a command may write; problems are tiny, the machine is known."""
    monkeypatch.setattr(machine, "measure_roofline", lambda *_, **__: machine.Roofline(copy=1e10, multiply=1e11))
    monkeypatch.setattr(roofline, "ceilings", lambda *_, **__: roofline.Ceilings(copy=1e10, rates=RATES))
    shutil.copytree(ROOT / "docs", tmp_path / "docs")
    shutil.copy(ROOT / "README.md", tmp_path)
    for path in (ROOT / "docs" / "results").glob("*.jsonl"):
        shutil.copy(path, tmp_path)
    # What the documents' commands speak of: measurements, a file of problems, a model, and a place for choices.
    shutil.copy(tmp_path / "h200_kernelbench.jsonl", tmp_path / "lines.jsonl")
    problems_json = [text for name in DOCUMENTS for language, text in blocks(name) if language == "json"]
    (tmp_path / "problems.json").write_text(problems_json[0] if problems_json else "[]")
    (tmp_path / "mymodel.py").write_text(MODEL)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CONVT_CHOICES", str(tmp_path / "choices"))
    monkeypatch.chdir(tmp_path)
    for number in problems.NUMBERS:
        source = problems.load(number)
        (layer,) = source.Model(*source.get_init_inputs()).children()
        tiny = {"batch_size": 1, "spatial": (9,) * (layer.weight.ndim - 2)}
        monkeypatch.setattr(source, "reduced", tiny)
    return tmp_path


def is_legal(words: list[str]) -> bool:
    try:
        cli._parser().parse_args(words)
    except SystemExit:
        return False
    return True


def made_small(words: list[str]) -> list[str]:
    """A convt command on a layer or two, without kernels and precisions that only a GPU has."""
    if words[0] == "bench" and words[1] in FEW:
        words = without(words, "--config", "--precision", "--rivals")
        if "--filter" in words and words[1] in ("cpu", "sweep"):  # their words all have to match
            words = [*words[: words.index("--filter") + 1], FEW[words[1]], *words[words.index("--filter") + 1 :]]
        elif not {"--filter", "--only"} & set(words):
            words = [*words, "--filter", FEW[words[1]]]
        words = [*words, "--rivals", "eager"] if is_legal([*words, "--rivals", "eager"]) else words
    for extra in SMALL:
        if extra[0] not in words and is_legal([*words, *extra]):
            words = [*words, *extra]
    return words


def without(words: list[str], *options: str) -> list[str]:
    """Words without some options and their values."""
    kept, dropping = [], False
    for word in words:
        if word.startswith("--"):
            dropping = word in options
        if not dropping:
            kept.append(word)
    return kept


def once(program: str) -> list[tuple[str, list[str]]]:
    """(document, words) of a program's commands, those that several documents have once."""
    found = {tuple(words[1:]): name for name in reversed(DOCUMENTS) for words in commands(name) if words[0] == program}
    return [(name, list(words)) for words, name in reversed(found.items())]


CONVT = once("convt")
PYTHON = once("python")


@pytest.mark.parametrize(
    ("name", "words"), CONVT, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_commands_run(name, words, checkout, capsys):
    cli._parser().parse_args(words)  # as it stands
    before = {path: path.read_bytes() for path in checkout.rglob("*.md")}
    if words[:2] == ["bench", "table"]:
        # What an earlier command of the block would have measured.
        for file in [word for word in words[2:] if word.endswith(".jsonl") and not Path(word).exists()]:
            shutil.copy(checkout / "h200_zoo_training.jsonl", file)
        assert cli.main(words) == 0
        assert {path: path.read_bytes() for path in checkout.rglob("*.md")} == before, "tables are up to date"
        return
    out = words[words.index("--out") + 1] if "--out" in words else None
    if out is not None and out not in words[:2]:
        Path(out).unlink(missing_ok=True)
    assert cli.main(made_small(words)) == 0, capsys.readouterr()
    assert out is None or Path(out).is_dir() or Path(out).read_text().count("\n") >= 1
    assert capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "words"), PYTHON, ids=lambda value: value if isinstance(value, str) else "-".join(value)
)
def test_python_commands_run(name, words, checkout, capsys):
    assert words[:2] == ["-m", "convt.kernelbench"] or words == ["docs/figures/make.py"], "what else is there to run?"
    if words[0] == "-m":
        more = ["--device", "cpu"] if words[2] == "run" and "--device" not in words else []
        assert kernelbench.main([*words[2:], *more]) == 0
        assert capsys.readouterr().out


def test_commands_are_of_known_programs():
    programs = {words[0] for name in DOCUMENTS for words in commands(name)}
    assert programs <= {"convt", "python", "pip", "pytest", "bash"}
    assert len(CONVT) >= 10 and PYTHON


# installations: not repeated here, held to what .ci/run does and to the project's own lists

PIP = [(name, words) for name in DOCUMENTS for words in commands(name) if words[0] == "pip"]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PINS = dict(re.findall(r"^([A-Za-z0-9._-]+)==(.+)$", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE))
SETTINGS = {"editable.rebuild": {"true", "false"}, "cmake.define.CONVT_CUDA": {"auto", "on", "off", "wheels"}}


def installed(words: list[str]) -> tuple[list[str], dict[str, str]]:
    """(requirements, build settings) of a pip command; AssertionError for an option that nobody checked."""
    assert words[:2] == ["pip", "install"]
    requirements, settings, rest = [], {}, iter(words[2:])
    for word in rest:
        if word in ("-c", "-C", "--config-settings"):
            value = next(rest)
            if word == "-c":
                assert value == "constraints.txt"
            else:
                settings.update([value.split("=", 1)])
        elif word.startswith("-C"):
            settings.update([word[2:].split("=", 1)])
        elif word.startswith("-"):
            assert word in ("--no-build-isolation", "-ve", "-e", "-v", "--quiet"), word
        else:
            requirements.append(word)
    return requirements, settings


@pytest.mark.parametrize(("name", "words"), PIP, ids=lambda value: value if isinstance(value, str) else "-".join(value))
def test_installations_name_what_exists(name, words):
    requirements, settings = installed(words)
    assert requirements
    for requirement in requirements:
        if own := re.fullmatch(r"\.(?:\[([\w,-]+)\])?", requirement):
            extras = own[1].split(",") if own[1] else []
            assert set(extras) <= set(PYPROJECT["project"]["optional-dependencies"])
        else:
            assert requirement in PINS, f"{requirement} has no pin in constraints.txt"
    for key, value in settings.items():
        assert value in SETTINGS[key], f"{key}={value}"
    if "--no-build-isolation" in words:
        before = [words for other, words in PIP if other == name]
        there = {r for earlier in before[: before.index(words)] for r in installed(earlier)[0]}
        needed = {re.match(r"[\w-]+", requirement)[0] for requirement in PYPROJECT["build-system"]["requires"]}
        assert needed <= there, "without isolation the build's packages come first"


def test_ci_installs_and_runs_the_demo_as_the_readme_says():
    script = (ROOT / ".ci" / "run").read_text()
    first, second = [
        line for language, text in blocks("README.md") if language == "bash" for line in text.splitlines()
    ][:2]
    assert first == "pip install . -c constraints.txt && convt demo"
    assert re.search(r"^convt demo", script, flags=re.MULTILINE)
    pattern = re.search(r"grep -E '([^']+)' README\.md", script)[1]
    assert re.search(pattern, second)


# links


def anchors(path: Path) -> set[str]:
    """What GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_lead_somewhere(name):
    text = re.sub(r"^```.*?^```$", "", (ROOT / name).read_text(), flags=re.MULTILINE | re.DOTALL)
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#]*)(?:#([^)]+))?\)", text):
        target = (ROOT / name).parent / link if link else ROOT / name
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), f"{link}#{anchor}"


def test_the_index_has_every_document():
    index = (ROOT / "docs" / "README.md").read_text()
    assert not [name for name in DOCUMENTS if name.startswith("docs/") and f"({Path(name).name})" not in index
                and name != "docs/README.md"]  # fmt: skip
