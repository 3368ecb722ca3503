"""A JSON file of problems as a suite: a list of layers in the words of torch.nn.functional.conv_transposeNd.

    [{"name": "up1", "input": [8, 64, 32, 32], "weight": [64, 32, 4, 4], "stride": 2, "padding": 1, "bias": true}]

`input` and `weight` are shapes and needed. stride, padding, output_padding and dilation are one integer or one per
axis; they and groups, bias and name may be left out.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from convt.problem import Geometry, Ints, forward_problem
from convt.testing import Entry, describe

_STANDARD = {"stride": 1, "padding": 0, "output_padding": 0, "dilation": 1}
_KEYS = ("name", "input", "weight", *_STANDARD, "groups", "bias")


def read(path: Path) -> dict[str, Entry]:
    """The entries of a file by their names; a problem without a name is called by its description.

    Raises:
        ValueError: there is no such file, it is no such list, two have one name, or one is no legal problem.
    """
    try:
        listed = json.loads(path.read_text())
    except OSError as error:
        raise ValueError(f"suite: {str(path)!r} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"suite: {path} is not JSON: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise ValueError(f"suite: {path} has to be a list of at least one object, got {type(listed).__name__}")
    entries: dict[str, Entry] = {}
    for number, values in enumerate(listed):
        where = f"suite: {path}, entry {number}"
        try:
            name, entry = _entry(values)
        except (ValueError, RuntimeError) as error:
            raise ValueError(f"{where}: {error}") from None
        if name in entries:
            raise ValueError(f"{where}: there is another one of the name {name!r}")
        entries[name] = entry
    return entries


def _entry(values: Any) -> tuple[str, Entry]:
    if not isinstance(values, Mapping):
        raise ValueError(f"an object with input and weight is needed, got {values!r}")
    for key in values:
        if key not in _KEYS:
            raise ValueError(f"unknown key {key!r}; legal are {', '.join(_KEYS)}")
    input, weight = (_shape(name, values.get(name)) for name in ("input", "weight"))
    if len(input) != len(weight):
        raise ValueError(f"input {list(input)} and weight {list(weight)} must have the same number of axes")
    rank = len(input) - 2
    spread = {name: _spread(name, values.get(name, standard), rank) for name, standard in _STANDARD.items()}
    groups, bias = values.get("groups", 1), values.get("bias", False)
    if not _is_integer(groups) or not isinstance(bias, bool):
        raise ValueError(f"groups must be an integer and bias true or false, got {groups!r} and {bias!r}")
    geometry = Geometry(spread["stride"], spread["padding"], spread["output_padding"], groups, spread["dilation"])
    problem = forward_problem(input, weight, None, geometry)
    name = values.get("name", describe(problem))
    if not isinstance(name, str) or not name:
        raise ValueError(f"name must be a word, got {name!r}")
    return name, Entry(problem, bias)


def _shape(name: str, value: Any) -> Ints:
    if not isinstance(value, Sequence) or not all(map(_is_integer, value)) or not 3 <= len(value) <= 5:
        raise ValueError(f"{name} must be a shape of 3 to 5 integers, got {value!r}")
    return tuple(value)


def _spread(name: str, value: Any, rank: int) -> Ints:
    if _is_integer(value):
        return (value,) * rank
    if not isinstance(value, Sequence) or len(value) != rank or not all(map(_is_integer, value)):
        raise ValueError(f"{name} must be an integer or {rank} of them, got {value!r}")
    return tuple(value)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
