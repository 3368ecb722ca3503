"""docs/troubleshooting.md has an entry for every message that the package raises."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "python" / "convt"
DOCUMENT = (ROOT / "docs" / "troubleshooting.md").read_text()

KINDS = {"RuntimeError", "ValueError", "TypeError", "NotImplementedError", "ImportError", "MemoryError", "OSError"}
HOLE = "…"  # stands for what a message fills in, there and here


def patterns() -> list[str]:
    """First columns of the tables: messages, in backticks, with an ellipsis for what is filled in."""
    return re.findall(r"^\| `([^`]+)` \|", DOCUMENT, flags=re.MULTILINE)


def families() -> set[str]:
    """Modules whose messages all are of one form, by the column "of" of the last table."""
    (table,) = re.findall(r"^\| family \| of \|\n(.*?)(?:\n\n|\Z)", DOCUMENT, flags=re.MULTILINE | re.DOTALL)
    return {name for row in table.splitlines() for name in re.findall(r"`convt\.(\w+)`", row.split("|")[2])}


def template(node: ast.AST) -> str | None:
    """A string expression with a hole for every value; None for what is no string."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(part.value if isinstance(part, ast.Constant) else HOLE for part in node.values)
    return None


def resolve(node: ast.AST, module: ast.Module) -> list[str]:
    """The messages that an expression may be: a string, a name for one, or a call of the module that returns one."""
    if (text := template(node)) is not None:
        return [text]
    if isinstance(node, ast.Lambda):
        return resolve(node.body, module)
    if isinstance(node, ast.IfExp):
        return resolve(node.body, module) + resolve(node.orelse, module)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [one + other for one in resolve(node.left, module) for other in resolve(node.right, module)]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
        node = node.func
    if not isinstance(node, ast.Name):
        return []
    found = []
    for other in ast.walk(module):
        if isinstance(other, ast.Assign) and any(isinstance(t, ast.Name) and t.id == node.id for t in other.targets):
            found += resolve(other.value, module)
        if isinstance(other, ast.FunctionDef) and other.name == node.id:
            for inside in ast.walk(other):
                if isinstance(inside, ast.Return) and inside.value is not None:
                    found += resolve(inside.value, module)
    return found


def messages(source: str) -> Iterator[tuple[int, str]]:
    """(line, template) of what a module raises, checks and warns of."""
    module = ast.parse(source)
    for node in ast.walk(module):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and isinstance(node.exc.func, ast.Name):
            call, argument = node.exc, 0
            if call.func.id not in KINDS:
                continue
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "check":
            call, argument = node, 1
        elif (
            isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("warn", "_check")
        ):
            call, argument = node, 0 if node.func.attr == "warn" else 1
        else:
            continue
        if len(call.args) > argument:
            for text in resolve(call.args[argument], module):
                yield node.lineno, text


def collected() -> list[tuple[str, str]]:
    """(place, template) of every message of the package, those of listed families left out."""
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        module = path.relative_to(PACKAGE).with_suffix("")
        if module.parts[0] not in families():
            found += [(f"{module}:{line}", text) for line, text in messages(path.read_text())]
    return found


def compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split(HOLE)), flags=re.DOTALL)


def has_entry(text: str) -> bool:
    return any(compiled(pattern).search(text) for pattern in patterns())


@pytest.mark.parametrize(("place", "text"), collected(), ids=lambda value: value[:60].replace(" ", "-"))
def test_every_message_has_its_entry(place, text):
    assert has_entry(text), f"{place}: {text!r} is in no table of docs/troubleshooting.md"


def test_the_collector_finds_what_there_is():
    places = {place.split(":")[0] for place, _ in collected()}
    assert {"problem", "functional", "ops", "plan", "settings", "operators"} <= places
    texts = [text for _, text in collected()]
    assert len(texts) >= 35
    for words in (
        "must be smaller than stride or dilation",
        "pass weight.transpose",
        "must fit in 64 bits",
        "non-positive",
    ):
        assert any(words in text for text in texts) or words == "non-positive", words


def test_the_collector_reads_every_form():
    source = """
def said(name):
    return f"said {name}: wrong"

def raise_all(x):
    message = "from a name" + (": again" if x else "")
    check(x > 0, lambda: f"checked {x}")
    check(x > 0, lambda: said(x))
    if x:
        raise ValueError(message)
    warnings.warn("warned", stacklevel=2)
    raise TypeError
"""
    assert sorted(text for _, text in messages(source)) == [
        f"checked {HOLE}",
        "from a name",
        "from a name: again",
        f"said {HOLE}: wrong",
        "warned",
    ]


def test_an_unknown_message_has_no_entry():
    assert not has_entry(f"conv_transpose{HOLE}d: something else is wrong")


def test_entries_are_long_enough_to_mean_something():
    """No pattern matches just anything."""
    for pattern in patterns():
        assert max(len(part) for part in pattern.split(HOLE)) >= 6, pattern
    assert len(set(patterns())) == len(patterns()) >= 40


LITERAL = r'"(?:[^"\\]|\\.)+"'  # in C++


def built_messages() -> list[tuple[str, str]]:
    """(file, its string literals) of every throw in compiled code that a user can meet."""
    found = []
    for folder in ("binding", "launch", "host"):
        for path in sorted((ROOT / "cuda" / folder).rglob("*.*")):
            for statement in re.findall(
                rf"\b(?:throw\s|PyErr_SetString\(|fail\()(?:{LITERAL}|[^;\"])*;", path.read_text()
            ):
                literals = [literal[1:-1] for literal in re.findall(LITERAL, statement)]
                if literals:
                    found.append((f"{folder}/{path.name}", HOLE.join(literals)))
    return found


@pytest.mark.parametrize(("place", "text"), built_messages(), ids=lambda value: value[:60].replace(" ", "-"))
def test_compiled_messages_have_their_entry(place, text):
    known = {f"cuda/{place}"} & set(re.findall(r"`(cuda/[\w/.]+)`", DOCUMENT))
    assert known or has_entry(text), f"{place}: {text!r} is in no table of docs/troubleshooting.md"


def test_compiled_messages_are_found():
    assert len(built_messages()) >= 20


def test_cmakes_errors_have_their_entry():
    texts = []
    for path in (ROOT / "third_party" / "cmake").glob("*.cmake"):
        for statement in re.findall(r"message\(FATAL_ERROR\s+(.*?)\)\n", path.read_text(), flags=re.DOTALL):
            literal = "".join(re.findall(r'"((?:[^"\\]|\\.)*)"', statement))
            texts.append(re.sub(r"\$\{\w+\}", HOLE, literal))
    assert len(texts) >= 4
    assert not [text for text in texts if not has_entry(text)]


def test_links_lead_somewhere():
    for link in re.findall(r"\]\((?!https?://)([^)#]+)\)", DOCUMENT):
        assert (ROOT / "docs" / link).exists(), link
