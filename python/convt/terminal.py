"""How the commands draw: one progress bar, and tables that stay whole when there is no terminal."""

from __future__ import annotations

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table


def progress_bar(console: Console) -> Progress:
    """A bar with a count and an estimate of what is left; it vanishes when done."""
    return Progress(
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.description}"),
        console=console,
        transient=True,
        speed_estimate_period=3600,  # a single step may take minutes
    )


def plain_table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False)


def print_whole(console: Console, table: Table) -> None:
    """Print a table in its own width even where rich believes in fewer columns, as in a log."""
    needed = Measurement.get(console, console.options.update(max_width=400), table).maximum
    wide = Console(file=console.file, width=max(console.width, needed), force_terminal=console.is_terminal)
    wide.print(table)
