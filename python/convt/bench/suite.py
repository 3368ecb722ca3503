"""`convt bench` of a suite: all cases of a suite, kept line by line whatever happens on the way."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

from rich.console import Console

from convt import plan
from convt.bench import devices, machine, problem_file, protocol, record, roofline
from convt.bench.protocol import AUTO, Case, Options
from convt.bench.record import Line
from convt.bench.watchdog import Watchdog
from convt.terminal import progress_bar
from convt.testing import GPU_SUITES, SUITES, dtype_name, resized, select, select_layers

# A call that takes longer, in seconds, never returns: convt's first one, all turns, anything of PyTorch's.
_PATIENCE = {"convt": 45.0, "turns": 120.0, "torch": 300.0}

Restart = Callable[[float | None], None]


@dataclass
class _Run:
    """What is done, and what runs now."""

    console: Console
    out: Path | None
    lines: list[Line] = field(default_factory=list)
    new: int = 0
    now: tuple[Case, Options] | None = None

    def add(self, lines: Sequence[Line]) -> None:
        for line in lines:
            self.lines.append(line)
            self.new += 1
            if self.out is not None:
                record.append(self.out, line)
            self.console.print(record.said(line), highlight=False, markup=False, soft_wrap=True)

    def give_up(self, stage: str) -> None:
        """Blame what runs now for never returning: one configuration, or all of the case."""
        assert self.now is not None
        case, options = self.now
        kind = stage.split()[0]
        lines = case.lines(options)
        if kind == "convt":
            lines = [lines[case.configs.index(stage.split()[1])]]
        self.add([replace(line, error=f"no answer within {_PATIENCE[kind]:.0f} s: {stage}") for line in lines])


# A layer of these suites has a dtype of its own.
_PRECISIONS = {"float32": "ieee", "float64": "fp64", "bfloat16": "bf16", "float16": "fp16"}


def cases(
    words: Sequence[str] = (),
    *,
    precisions: Sequence[str] | None,
    layouts: Sequence[str] | None = None,
    directions: Sequence[str] = ("forward",),
    configs: Sequence[str] = (AUTO,),
    sizes: str = "full",
    suite: str = "kernelbench",
    train: bool = False,
) -> list[Case]:
    """The cases in the order in which they run: a problem's layouts follow each other.

    Args:
        words: what to keep, as in testing.select and testing.select_layers.
        precisions: in which to measure; where layers have their own, those to keep, None for all.
        layouts: the same; None is contiguous where layers have none of their own.
        suite: "kernelbench", "zoo", "cpu", "sweep" or the path of a JSON file of problems.

    Raises:
        ValueError: `words` name nothing that is there, or the file does not say what it should.
    """
    if suite in SUITES:
        made = [
            Case(
                layer.name,
                resized(layer.problem, sizes),
                direction,
                _PRECISIONS[dtype_name(layer.dtype)],
                layer.layout,
                tuple(configs),
                suite,
            )
            for layer in select_layers(suite, words)
            for direction in directions
        ]
        made = [
            case
            for case in made
            if (precisions is None or case.precision in precisions) and (layouts is None or case.layout in layouts)
        ]
        if not made:
            raise ValueError(f"precision, layout: no layer of {suite} has {precisions or 'any'} and {layouts or 'any'}")
        return made
    entries = None if suite in GPU_SUITES else problem_file.read(Path(suite))
    suite = suite if entries is None else Path(suite).stem
    return [
        Case(name, resized(entry.problem, sizes), direction, precision, layout, tuple(configs), suite, entry.bias)
        for name, entry in select(suite, words, train=train, entries=entries).items()
        for direction in directions
        for precision in precisions or ("ieee",)
        for layout in layouts or ("contiguous",)
        if layout == "contiguous" or entry.problem.rank > 1
    ]


def run(
    work: Sequence[Case],
    options: Options,
    *,
    out: Path | None = None,
    resume: bool = False,
    stop_after: float | None = None,
    restart: Restart | None = None,
    console: Console | None = None,
) -> int:
    """Measure, append JSON lines to `out` as they come, show a table; Ctrl-C keeps what is done.

    Args:
        resume: leave out what `out` already has for the same commit, machine and settings.
        stop_after: seconds after which no further case is begun.
        restart: replaces this process by one that resumes, told the seconds left of `stop_after`; called when a kernel
            never returns or the GPU is lost.

    Returns:
        0 when every line is right, 1 when one is not (a forced configuration may refuse), 130 when interrupted, 3 when
        the GPU is lost and `restart` is None.

    Raises:
        ValueError: there is no such device, no such kernel on it, or no file to resume from.
    """
    console = console or Console()
    if options.device == "cuda" and devices.standard() != "cuda":
        raise ValueError("device: 'cuda', but PyTorch sees no GPU; legal here is 'cpu'")
    for config in {config for case in work for config in case.configs if config != AUTO}:
        if options.device == "cpu":
            raise ValueError(f"config: {config!r} is a kernel for a GPU; legal on a CPU is {AUTO!r}")
        for name, _ in protocol.forced_kernels(config):
            plan.forced_kernel(name)  # raises for an unknown one
    if resume and out is None:
        raise ValueError("resume: there is no file to resume from; name it with --out")
    if options.backend == "native" and not options.machine.is_native_possible():
        console.print("convt has no kernels for this GPU or this build: the plan decides instead.", style="yellow")
        options = replace(options, backend="auto")

    if options.device == "cpu" and (warning := machine.busy()):
        console.print(warning, style="yellow", highlight=False)

    state = _Run(console, out)
    if resume and out is not None:
        work, state.lines = _rest(work, options, record.read(out))
    total, code = sum(len(case.configs) for case in work), 0
    try:
        code = _all(work, options, state, stop_after, restart)
    except KeyboardInterrupt:
        console.print(f"Interrupted after {state.new} of {total} lines.", highlight=False)
        code = 130
    if state.lines:
        record.show(state.lines, console)
    wrong = any(not line.ok and (line.us is not None or line.forced is None) for line in state.lines)
    return code or int(wrong)


def _rest(work: Sequence[Case], options: Options, lines: Sequence[Line]) -> tuple[list[Case], list[Line]]:
    """What is left to do, and the lines of what is done."""
    known = {record.settings_of(line): line for line in lines}
    rest, done = [], []
    for case in work:
        settings = [record.settings_of(line) for line in case.lines(options)]
        done += [known[key] for key in settings if key in known]
        left = tuple(config for config, key in zip(case.configs, settings, strict=True) if key not in known)
        if left:
            rest.append(replace(case, configs=left))
    return rest, done


def _all(
    work: Sequence[Case],
    options: Options,
    state: _Run,
    stop_after: float | None,
    restart: Restart | None,
) -> int:
    if not work:
        return 0
    start = time.monotonic()
    console = state.console
    with ExitStack() as stack:
        progress = stack.enter_context(progress_bar(console))
        task = progress.add_task("how fast is this machine?", total=len(work))
        ceilings = roofline.ceilings(options.device, {case.precision for case in work})

        def left() -> float | None:
            return None if stop_after is None else max(1.0, stop_after - (time.monotonic() - start))

        def expired(stage: str) -> None:
            state.give_up(stage)
            _replace(restart, left(), "a call that never returns")
            os._exit(3)

        watchdog = stack.enter_context(Watchdog(expired)) if options.machine.hangs else None
        screened: protocol.Screened = {}
        for done, case in enumerate(work):
            if stop_after is not None and time.monotonic() - start > stop_after:
                rest = sum(len(case.configs) for case in work[done:])
                console.print(f"Stopped after {stop_after:.0f} s with {rest} lines to do: --resume goes on.")
                break
            title = f"{case.name} {case.direction} {case.precision} {case.layout}"
            state.now = case, options

            def stage(what: str, title: str = title, done: int = done) -> None:
                progress.update(task, description=f"{title}: {what}", completed=done)
                if watchdog is not None:
                    watchdog.stage(what, _PATIENCE[what.split()[0]])

            lines = protocol.measure(case, options, ceilings, screened=screened, stage=stage)
            if watchdog is not None:
                watchdog.stage("", None)
            state.add(lines)
            if options.machine.is_lost():
                _replace(restart, left(), "an error that the GPU does not recover from")
                return 3
        progress.update(task, completed=len(work))
    return 0


def _replace(restart: Restart | None, left: float | None, why: str) -> None:
    print(f"convt: {why}: " + ("starting again" if restart else "run again with --resume to go on"), file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    if restart is not None:
        restart(left)
