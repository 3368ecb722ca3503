"""One problem on one machine: convt against PyTorch's defaults and best settings, judged, then timed in turns."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

import convt
from convt import _C, delegation, operators, plan
from convt.bench import machine, rivals
from convt.bench.devices import DEVICES, Cpu
from convt.bench.judge import OPERATORS, Judge
from convt.bench.record import Line
from convt.bench.rivals import Candidate
from convt.bench.roofline import Ceilings
from convt.problem import Problem, operand
from convt.testing import describe
from convt.timing import Apart, Timing, interleaved

LAYOUTS = ("contiguous", "channels_last")
RIVALS = ("all", "settings", "eager", "none")
AUTO = "auto"  # among configurations: the plan's own choice

# PyTorch's rough times, per problem, direction and precision.
Screened = dict[tuple[str, str, str], list[Candidate]]


@dataclass(frozen=True)
class Options:
    """How to measure."""

    device: str = "cuda"
    backend: str = "native"
    rivals: str = "all"
    sizes: str = "full"
    quick: bool = False
    seconds: float = 0.5  # for all rivals of a case together
    graph_below: float = 0.0  # microseconds of roofline: what takes less is replayed from a CUDA graph

    @property
    def turns(self) -> int:
        """The least number of turns, whatever they cost."""
        return 3 if self.quick else 10

    @property
    def points(self) -> int:
        """How many positions of each result are judged, at least."""
        return 128 if self.quick else 1024

    @property
    def machine(self) -> Cpu:
        return DEVICES[self.device]


@dataclass(frozen=True)
class Case:
    """What is measured together: PyTorch, and one line of convt for each of `configs`."""

    name: str
    problem: Problem
    direction: str
    precision: str
    layout: str
    configs: tuple[str, ...] = (AUTO,)
    suite: str = "kernelbench"
    bias: bool = False

    @property
    def operators(self) -> tuple[str, ...]:
        return OPERATORS[self.direction]

    def lines(self, options: Options) -> list[Line]:
        """The lines to be filled, with everything that is known beforehand."""
        return [
            Line(
                suite=self.suite,
                problem=self.name,
                name=describe(self.problem) + (" bias" if self.bias else ""),
                direction=self.direction,
                precision=self.precision,
                layout=self.layout,
                torch=torch.__version__,
                **options.machine.facts(),
                commit=machine.commit(),
                backend=options.backend,
                forced=None if config == AUTO else config,
                rivals=options.rivals,
                sizes=options.sizes,
                quick=options.quick,
            )
            for config in self.configs
        ]


def measure(
    case: Case,
    options: Options,
    ceilings: Ceilings,
    *,
    screened: Screened | None = None,
    stage: Callable[[str], None] = lambda what: None,
) -> list[Line]:
    """Judge and time one case. What fails leaves its error in the line.

    After an error that takes the GPU with it, only the lines that are to blame come back.

    Args:
        screened: keeps PyTorch's rough times for the next layout of the same problem.
        stage: is told what runs next: "torch ...", "convt CONFIG" or "turns".
    """
    lines = case.lines(options)
    try:
        with ExitStack() as stack:
            stack.enter_context(convt.backend(options.backend))
            if case.precision in convt.settings.PRECISIONS:
                stack.enter_context(convt.precision(case.precision))
            stack.enter_context(rivals.switches(None, False))
            return _measure(case, options, ceilings, {} if screened is None else screened, stage, lines)
    except Exception as error:  # no memory for the operands, or a failure in the turns: nobody knows whose
        text = rivals.said(error)
        return [replace(line, ok=False, error=text) for line in lines]
    finally:
        gc.collect()
        options.machine.release()


def _measure(
    case: Case,
    options: Options,
    ceilings: Ceilings,
    screened: Screened,
    stage: Callable[[str], None],
    lines: list[Line],
) -> list[Line]:
    device = options.device
    stage("torch making operands")
    operands = rivals.Operands(case.problem, rivals.DTYPES[case.precision], device, case.direction, case.bias)
    judge = Judge(
        case.problem,
        case.direction,
        operands.at(case.layout),
        operands.bias,
        points=options.points,
        roundings=options.machine.roundings,
    )
    facts: dict[str, Any] = {}
    racing: dict[str, Apart] = {}

    theirs = None
    if options.rivals != "none":
        stage("torch eager")
        eager = Apart(operands.torch_call(case.layout), partial(rivals.switches, None, False))
        first = _first(eager, options.machine)
        facts |= {"eager_error": first.error, "eager_peak_bytes": first.peak_bytes}
        if first.results is not None:
            racing["eager"], theirs = eager, first.results
            facts["eager_max_error"] = judge.error(theirs)
            facts["eager_rounding"], facts["eager_rounding_rms"] = judge.rounding(theirs) or (None, None)
        del first
    best = None
    if options.rivals in ("all", "settings"):
        best = _best(case, operands, device, screened, stage, facts)
    if best is not None:
        racing["best"] = rivals.rival(operands, case.precision, best)
    if options.rivals == "all":
        stage("torch compile")
        compiled = Apart(operands.compiled_call(case.layout), partial(rivals.switches, None, False))
        start = time.perf_counter()
        first = _first(compiled, options.machine)
        facts |= {"compile_error": first.error}
        if first.results is not None:
            racing["compile"], facts["compile_first_call_s"] = compiled, time.perf_counter() - start
        del first
    if options.machine.is_lost():
        return [replace(line, **facts, error="the GPU was lost in PyTorch") for line in lines]

    function = getattr(convt, f"conv_transpose{case.problem.rank}d")
    for index, config in enumerate(case.configs):
        stage(f"convt {config}")
        call = Apart(operands.call(function, case.layout), partial(_forced, config))
        options.machine.poison(_sizes(case), rivals.DTYPES[case.precision])
        first = _first(call, options.machine)
        lines[index] = replace(lines[index], **facts, error=first.error, peak_bytes=first.peak_bytes)
        if options.machine.is_lost():
            return lines[index : index + 1]
        if first.results is not None:
            racing[config] = call
            found = _found(case, options, config, operands, first.results, judge, theirs)
            lines[index] = replace(lines[index], **found)
        del first
    del theirs

    stage("turns")
    times: dict[str, Timing] = {}
    *_, least = _least(case, ceilings)
    if racing and least < options.graph_below:
        try:  # all of them or none: replaying is quicker than launching
            recorded = {name: options.machine.recorded(call) for name, call in racing.items()}
        except RuntimeError:
            lines = [replace(line, graph=False) for line in lines]
        else:
            racing, lines = recorded, [replace(line, graph=True) for line in lines]
    if racing:
        calls = list(racing.values())
        timings = interleaved(calls, seconds=options.seconds, device=device, least_turns=options.turns)
        times = dict(zip(racing, timings, strict=True))
    return [_timed(case, line, config, times, best, ceilings) for line, config in zip(lines, case.configs, strict=True)]


# ---- PyTorch -----------------------------------------------------------------------------------------------------


def _best(
    case: Case,
    operands: rivals.Operands,
    device: str,
    screened: Screened,
    stage: Callable[[str], None],
    facts: dict[str, Any],
) -> Candidate | None:
    key = (case.name, case.direction, case.precision)
    if key not in screened:
        screened.clear()
        screened[key] = rivals.screen(operands, case.precision, device=device, stage=stage)
    searches = [candidate.first_call_s for candidate in screened[key] if candidate.first_call_s is not None]
    facts["candidates"] = [asdict(candidate) for candidate in screened[key]]
    facts["benchmark_first_call_s"] = max(searches, default=None)
    return rivals.best(screened[key])


# ---- convt -------------------------------------------------------------------------------------------------------


@dataclass
class _First:
    """The first calls of one rival: its results, the memory it took, or what it said."""

    results: Sequence[Tensor] | None = None
    peak_bytes: int | None = None
    error: str | None = None


def _first(call: Callable[[], Any], device: Cpu) -> _First:
    try:
        results = call()
        return _First(results, device.peak_bytes(call))
    except Exception as error:
        return _First(error=rivals.said(error))


def forced_kernels(config: str) -> list[tuple[str, tuple[str, ...]]]:
    """What a configuration's name forces: (kernel, operators).

    "NAME" is forced for every operator of the case; "grad_weight=NAME" for one, and several of those are joined by
    commas. "auto" forces nothing.

    Raises ValueError for a name that is not one.
    """
    forced: list[tuple[str, tuple[str, ...]]] = []
    for part in config.split(","):
        operator, _, name = part.rpartition("=")
        if operator and operator not in plan.OPERATORS:
            raise ValueError(f"config: {part!r} names operator {operator!r}; legal are {', '.join(plan.OPERATORS)}")
        if name != AUTO:
            forced.append((name, (operator,) if operator else plan.OPERATORS))
    return forced


@contextmanager
def _forced(config: str) -> Iterator[None]:
    with ExitStack() as stack:
        for name, which in forced_kernels(config):
            stack.enter_context(plan.forced_kernel(name, which))
        yield


def _sizes(case: Case) -> list[tuple[int, ...]]:
    """Of what the operators of a case compute."""
    problem = case.problem
    sizes = {"forward": problem.output_size, "grad_input": problem.input_size, "grad_weight": problem.weight_size}
    return [sizes[operator] for operator in case.operators]


def _found(
    case: Case,
    options: Options,
    config: str,
    operands: rivals.Operands,
    results: Sequence[Tensor],
    judge: Judge,
    theirs: Sequence[Tensor] | None,
) -> dict[str, Any]:
    """What the results of one configuration tell, and who computed them."""
    with _forced(config):
        calls = _calls(case, operands)
    natives = [call.native for call in calls]
    natives += [False] * (len(results) - len(calls))  # grad_bias is a sum without a problem of its own
    complaint = judge.complaint(results, case.precision, native=natives, other=theirs)
    rounding = judge.rounding(results)
    found = {
        "ok": complaint is None,
        "error": complaint,
        "max_error": judge.error(results),
        "errors": judge.errors(results),
        "rounding": None if rounding is None else rounding[0],
        "plans": [_told(operator, call) for operator, call in zip(case.operators, calls, strict=True)],
    }
    if options.device == "cpu":
        found["kernel"] = " + ".join("native" if call.native else "aten" for call in calls)
        if any(call.native for call in calls):
            found["config"] = " + ".join(_C.isa() if call.native else "aten" for call in calls)
        return found
    made = [call.cuda for call in calls]
    found["kernel"] = " + ".join("aten" if cuda is None else cuda.kernel for cuda in made)
    if any(cuda is not None for cuda in made):
        found["config"] = " + ".join("aten" if cuda is None else cuda.config for cuda in made)
    if all(cuda is not None for cuda in made):
        found["predicted_us"] = sum(cuda.predicted_us for cuda in made if cuda is not None)
    return found


def _calls(case: Case, operands: rivals.Operands) -> list[operators.Call]:
    """What each operator does with these operands, from the tables that it looks itself up in."""
    input, weight, *rest = operands.at(case.layout)
    geometry = case.problem.geometry
    keys = operand(input), operand(weight), None if operands.bias is None else operand(operands.bias)
    last = operators.is_channels_last(input.dtype, keys[0][:2], keys[1][:2])
    calls = []
    for name in case.operators:
        switches = operators._switches(name, input)
        if name == "forward":
            calls.append(operators._forward_call(*keys, geometry, *switches))
        elif name == "grad_input":
            calls.append(operators._grad_input_call(operand(rest[0]), keys[1], geometry, last, *switches))
        else:
            filter = tuple(weight.shape[2:])
            calls.append(operators._grad_weight_call(operand(rest[0]), keys[0], filter, geometry, last, *switches))
    if input.is_cuda and delegation.is_atens(input, weight, operands.bias, geometry, recorded=bool(rest)):
        whole = plan.Plan("aten", "rule for GPUs, for all operators of the call")
        calls = [call._replace(native=False, cuda=None, choice=whole) for call in calls]
    return calls


def _told(operator: str, call: operators.Call) -> dict[str, Any]:
    facts: dict[str, Any] = {"operator": operator, "backend": call.choice.backend, "reason": call.choice.reason}
    if call.cuda is not None:
        names = ("kernel", "config", "predicted_us", "workspace_bytes")
        facts |= {name: getattr(call.cuda, name) for name in names}
    return facts


# ---- a line ------------------------------------------------------------------------------------------------------


def _least(case: Case, ceilings: Ceilings) -> tuple[int, int, float]:
    """Operations, bytes, and the microseconds that the machine takes for them at least."""
    itemsize = rivals.DTYPES[case.precision].itemsize
    flops = 2 * case.problem.macs * len(case.operators)
    bytes = machine.backward_bytes(case.problem, itemsize) if "backward" in case.direction else 0
    if case.direction != "backward":
        bytes += machine.operator_bytes(case.problem, itemsize)
    return flops, bytes, ceilings.microseconds(flops, bytes, case.precision)


def _timed(
    case: Case, line: Line, config: str, times: dict[str, Timing], best: Candidate | None, ceilings: Ceilings
) -> Line:
    flops, bytes, least = _least(case, ceilings)
    facts: dict[str, Any] = {
        "roofline_us": least,
        "roofline_tflops": ceilings.rate(case.precision) * 1e-12,
        "roofline_gbs": ceilings.copy * 1e-9,
    }
    if "eager" in times:
        facts |= _microseconds("eager_us", times["eager"]) | _parts("eager_", times["eager"])
    if best is not None:
        fastest, facts["best_setting"] = times["best"], best.setting
        if rivals.is_default_allowed(case.precision) and "eager" in times and times["eager"].median < fastest.median:
            fastest, facts["best_setting"] = times["eager"], f"eager {case.layout}"
        facts |= _microseconds("best_us", fastest)
    if "compile" in times:
        facts |= _microseconds("compile_us", times["compile"])
    if config in times:
        us = times[config].median * 1e6
        facts |= _microseconds("us", times[config]) | _parts("", times[config])
        facts |= {"turns": times[config].turns, "tflops": flops / us * 1e-6, "gbs": bytes / us * 1e-3}
    return replace(line, **facts)


def _microseconds(name: str, timing: Timing) -> dict[str, float]:
    return {name: timing.median * 1e6, f"{name}_p20": timing.low * 1e6, f"{name}_p80": timing.high * 1e6}


def _parts(prefix: str, timing: Timing) -> dict[str, float]:
    if timing.first is None or timing.second is None:
        return {}
    return {f"{prefix}forward_us": timing.first * 1e6, f"{prefix}backward_us": timing.second * 1e6}
