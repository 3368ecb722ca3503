"""One arrow: no include and no import points backwards, and nothing compiled knows PyTorch's headers."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# Every room reads those with a smaller number, and itself.
CPP_ROOMS = {
    "geometry": 0,
    "config": 1,
    "host": 1,
    "arch": 2,
    "collective": 3,
    "kernel": 4,
    "launch": 5,
    "simulator": 6,
    "binding": 7,
}
PYTHON_ROOMS = {
    "_C": 0,
    "tracing": 0,
    "problem": 1,
    "epilogue": 1,
    "settings": 1,
    "timing": 1,
    "choices": 2,
    "heuristics": 2,
    "ranges": 2,
    "plan": 3,
    "operators": 4,
    "delegation": 5,
    "gradients": 5,
    "ops": 6,
    "eager": 6,
    "recorded": 7,
    "inductor": 7,
    "fused": 7,
    "functional": 8,
    "nn": 9,
    "graph": 9,
    "sharding": 9,
    "parallel": 10,
    "accelerate": 10,
    "tuning": 10,
    "__init__": 11,
    "onnx": 12,
    "terminal": 12,
    "testing": 12,
    "problems": 12,
    "bench": 13,
    "report": 14,
    "tune_command": 14,
    "demo": 14,
    "info": 14,
    "kernelbench": 14,
    "explain": 14,
    "cli": 15,
}

SOURCES = sorted(path for path in (ROOT / "cuda").rglob("*") if path.suffix in {".hpp", ".cpp", ".cuh", ".cu"})
MODULES = sorted((ROOT / "python" / "convt").rglob("*.py"))


def relative(path):
    return str(path.relative_to(ROOT))


def points_forward(rooms, reader, read, line):
    for room in (reader, read):
        assert room in rooms, f"{line}: give {room!r} a place in the arrow (CONTRIBUTING.md and this file)"
    assert reader == read or rooms[read] < rooms[reader], f"{line}: {reader} must not read {read}"


def test_there_is_something_to_read():
    assert len(SOURCES) >= 10
    assert len(MODULES) >= 10


@pytest.mark.parametrize("source", SOURCES, ids=relative)
def test_includes_point_forward(source):
    room = source.relative_to(ROOT / "cuda").parts[0]
    for number, line in enumerate(source.read_text().splitlines(), 1):
        place = f"{relative(source)}:{number}"
        if included := re.match(r'\s*#\s*include\s*"([^"]+)"', line):
            assert (ROOT / "cuda" / included[1]).is_file(), f'{place}: "{included[1]}" is not a path below cuda/'
            points_forward(CPP_ROOMS, room, included[1].split("/")[0], place)
        if included := re.match(r"\s*#\s*include\s*<([^>]+)>", line):
            assert not re.match(r"(torch|ATen|c10|pybind11)/", included[1]), f"{place}: a header of PyTorch"
            if room == "geometry":
                assert not included[1].startswith("cu"), f"{place}: geometry is plain C++"


def imported_rooms(module):
    """(room, line) of everything in convt that a module imports."""
    package = ["convt", *module.relative_to(ROOT / "python" / "convt").parent.parts]
    for node in ast.walk(ast.parse(module.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*base, *([node.module] if node.module else [])])
            # `from convt import bench` reads a room, `from convt import backend` the package.
            names = [f"{base}.{alias.name}" if base == "convt" else base for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "convt":
                room = parts[1] if len(parts) > 1 else "__init__"
                is_room = (ROOT / "python" / "convt" / f"{room}.py").is_file() or room in PYTHON_ROOMS
                yield (room if is_room or (ROOT / "python" / "convt" / room).is_dir() else "__init__"), node.lineno


@pytest.mark.parametrize("module", MODULES, ids=relative)
def test_imports_point_forward(module):
    parts = module.relative_to(ROOT / "python" / "convt").with_suffix("").parts
    for read, line in imported_rooms(module):
        points_forward(PYTHON_ROOMS, parts[0], read, f"{relative(module)}:{line}")
