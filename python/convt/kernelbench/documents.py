"""The places in a document that hold a table of this package: written by `table --update`, checked by a test.

<!-- python -m convt.kernelbench table passing results/kernelbench_precision.jsonl -->
...
<!-- end of table -->
"""

from __future__ import annotations

import re
from pathlib import Path

from convt.kernelbench import precision

KINDS = {"passing": precision.passing, "errors": precision.errors}

_PLACE = re.compile(
    r"(<!-- python -m convt\.kernelbench table (\w+) (\S+) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL
)


def filled(document: Path) -> str:
    """The document's text with its tables made anew; paths there are relative to it.

    Raises:
        ValueError: the document has no place for a table, or asks for a kind that is not there.
    """

    def made(place: re.Match[str]) -> str:
        if place[2] not in KINDS:
            raise ValueError(f"table: {place[2]!r} in {document}; legal are {', '.join(KINDS)}")
        return f"{place[1]}\n{KINDS[place[2]](document.parent / place[3])}\n\n{place[5]}"

    text, places = _PLACE.subn(made, document.read_text())
    if not places:
        raise ValueError(f"table: {document} has no place for a table of convt.kernelbench")
    return text


def update(document: Path) -> bool:
    """Write the tables of a document; whether anything changed."""
    text = filled(document)
    changed = text != document.read_text()
    if changed:
        document.write_text(text)
    return changed
