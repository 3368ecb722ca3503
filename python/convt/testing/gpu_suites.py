"""The suites of `convt bench` on a GPU, as data: names and what they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from . import kernelbench, zoo
from .layers import Entry, describe

GPU_SUITES: Mapping[str, Mapping[str, Entry]] = {
    "kernelbench": {name: Entry(problem) for name, problem in kernelbench.PROBLEMS.items()},
    "zoo": zoo.LAYERS,
}


def select(
    suite: str, words: Sequence[str] = (), *, train: bool = False, entries: Mapping[str, Entry] | None = None
) -> dict[str, Entry]:
    """The entries of a suite that `words` name: any of the full names and numbers, and with every other word in them.

    Other words are looked for in the name, the model and the description, in lower or upper case. `train` keeps the
    layers of training runs only. `entries` are those of a suite that is not in GPU_SUITES.

    Raises:
        ValueError: nothing is left, or there is no such suite.
    """
    if entries is None:
        if suite not in GPU_SUITES:
            raise ValueError(f"suite: {suite!r}; legal are {', '.join(GPU_SUITES)}")
        entries = GPU_SUITES[suite]
    named = [word for word in words if word in entries or word.isdigit()]
    others = [word.lower() for word in words if word not in named]

    def text(name: str, entry: Entry) -> str:
        return f"{name if not name.isdigit() else ''} {entry.model} {describe(entry.problem)}".lower()

    chosen = {
        name: entry
        for name, entry in entries.items()
        if (not named or name in named)
        and all(word in text(name, entry) for word in others)
        and (entry.mode == "train" or not train)
    }
    if not chosen:
        known = "\n  ".join(f"{name}: {describe(entry.problem)}" for name, entry in entries.items())
        raise ValueError(f"filter: {' '.join(words)!r} matches no layer of {suite}:\n  {known}")
    return chosen
