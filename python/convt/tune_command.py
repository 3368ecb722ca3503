"""`convt tune`: the problems of a suite, a file or a model, measured one after the other; --show and --clear."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console

from convt import choices, plan, tuning
from convt.bench import devices, rivals, suite
from convt.terminal import plain_table, print_whole, progress_bar
from convt.testing import SUITES, describe
from convt.tuning import Task, Tuned


def run(options: argparse.Namespace, console: Console | None = None) -> int:
    """One command of `convt tune`; returns 1 when something could not be measured, 130 when interrupted.

    Raises:
        ValueError: there is nothing to tune, or no such suite, model or device.
    """
    console = console or Console()
    device = torch.device(options.device or devices.standard())
    if options.show or options.clear:
        name = plan.device_name(device)
        if name is None:
            raise ValueError(f"tune: device: convt cannot open {device}")
        return _clear(name, console) if options.clear else _show(name, console)
    if options.device == "cuda" and devices.standard() != "cuda":
        raise ValueError("tune: device: 'cuda', but PyTorch sees no GPU; legal here is 'cpu'")
    if (options.suite is None) == (options.model is None):
        raise ValueError("tune: name a suite (kernelbench, zoo, cpu, a JSON file), or a model with --model")
    tasks = _of_a_model(options) if options.model else [(task, device) for task in _of_a_suite(options, device)]
    if not tasks:
        raise ValueError(f"tune: there is no transposed convolution in {options.model or options.suite}")
    results: list[Tuned] = []
    interrupted, failed = False, 0
    with progress_bar(console) as progress:
        bar = progress.add_task("", total=len(tasks))
        try:
            for task, place in tasks:
                title = f"{describe(task.problem)} {task.operator}"
                progress.update(bar, description=title, completed=len(results) + failed)
                try:
                    results += tuning.run([(task, place)], seconds=options.seconds)
                except RuntimeError as error:  # no memory for the operands, say: the next one may be smaller
                    failed += 1
                    console.print(f"{title}: {rivals.said(error)}", highlight=False, markup=False, soft_wrap=True)
        except KeyboardInterrupt:
            interrupted = True
    if results:
        _report(results, console)
    if interrupted:
        console.print(f"Interrupted after {len(results)} of {len(tasks)}.", highlight=False)
        return 130
    return int(failed > 0)


def _of_a_suite(options: argparse.Namespace, device: torch.device) -> list[Task]:
    machine = devices.DEVICES[device.type]
    cases = suite.cases(
        options.filter,
        precisions=options.precision or (None if options.suite in SUITES else machine.precisions),
        layouts=options.layout,
        directions=("forward_backward" if options.train else "forward",),
        suite=options.suite,
    )
    tasks = [
        Task(
            case.problem,
            operator,
            rivals.DTYPES[case.precision],
            case.layout == "channels_last" and case.problem.rank > 1 and case.precision != "fp64",
            "tf32" if case.precision == "tf32" and device.type == "cuda" else "ieee",
            case.bias and operator == "forward",
        )
        for case in cases
        for operator in case.operators
    ]
    return list(dict.fromkeys(tasks))


def _of_a_model(options: argparse.Namespace) -> list[tuple[Task, torch.device]]:
    module, _, function = options.model.partition(":")
    if not function:
        raise ValueError(f"tune: model: {options.model!r}; it has to be MODULE:FUNCTION")
    sys.path.insert(0, str(Path.cwd()))
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ValueError(f"tune: model: {options.model!r}: {error}") from None
    finally:
        sys.path.pop(0)
    if not isinstance(made, Sequence) or len(made) != 2:
        raise ValueError(f"tune: model: {options.model} has to return a model and example inputs, got {type(made)}")
    return tuning.collect(*made, train=options.train)


def _report(results: Sequence[Tuned], console: Console) -> None:
    table = plain_table()
    for column in ("problem", "operator", "precision", "layout", "rule"):
        table.add_column(column, no_wrap=True)
    table.add_column("µs", justify="right", no_wrap=True)
    table.add_column("fastest", no_wrap=True)
    for column in ("µs", "x", "of"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for result in results:
        task = result.task
        table.add_row(
            describe(task.problem, task.dtype),
            task.operator,
            task.precision,
            "channels_last" if task.channels_last else "contiguous",
            result.rule,
            f"{result.rule_us:.0f}",
            result.best,
            f"{result.best_us:.0f}",
            f"{result.rule_us / result.best_us:.2f}",
            str(result.measured),
            "" if result.choice is None else "[green]chosen[/]",
        )
    print_whole(console, table)
    chosen = sum(result.choice is not None for result in results)
    where = "kept in memory only"
    if path := next((path for path in map(choices.file_of, _devices(results)) if path and path.exists()), None):
        where = f"kept in {path}"
    console.print(
        f"{chosen} of {len(results)} faster than the rule by more than the noise, {where}",
        highlight=False,
        soft_wrap=True,
    )


def _devices(results: Sequence[Tuned]) -> list[str]:
    return list(dict.fromkeys(result.device for result in results if result.device is not None))


def _show(device: str, console: Console) -> int:
    known = choices.of(device)
    path = choices.file_of(device)
    console.print(
        f"{device}: {len(known)} choices, {path or 'switched off by CONVT_CHOICES'}", highlight=False, soft_wrap=True
    )
    for name, choice in sorted(known.items()):
        told = f"{choice.backend} {choice.kernel or ''}".strip()
        console.print(f"{name}: {told} ({choice.reason})", highlight=False, soft_wrap=True, markup=False)
    return 0


def _clear(device: str, console: Console) -> int:
    path = choices.clear(device)
    console.print(
        f"{device}: {'nothing was stored' if path is None else f'removed {path}'}", highlight=False, soft_wrap=True
    )
    return 0
