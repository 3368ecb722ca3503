"""Measure who computes the problems of a model fastest here, and have the plan remember it: `convt tune`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from . import _C, choices, gradients, operators, settings
from . import plan as planning
from .choices import Choice
from .problem import DTYPES, Geometry, Problem, forward_problem
from .settings import OPERATORS
from .timing import Apart, Timing, interleaved

_LEAST_GAIN = 0.03  # of the rule's time: less is not worth a choice of its own
_FINALISTS = 3
_CONFIGURATIONS = 8  # of a GPU's are measured: those that the cost model likes best


@dataclass(frozen=True)
class Task:
    """One operator of a problem, as the plan is asked for it."""

    problem: Problem
    operator: str  # forward | grad_input | grad_weight
    dtype: torch.dtype
    channels_last: bool = False
    precision: str = "ieee"  # how a GPU multiplies float32; "ieee" elsewhere
    bias: bool = False  # of the forward

    @property
    def key(self) -> str:
        """What its choice is stored under."""
        return choices.key(self.problem, self.operator, self.dtype, self.channels_last, self.precision)


@dataclass(frozen=True)
class Tuned:
    """What was measured: the rule's choice, the fastest one, and whether that is now preferred."""

    task: Task
    rule: str
    rule_us: float
    best: str
    best_us: float
    choice: Choice | None  # None: the rule holds
    measured: int  # how many candidates
    device: str | None  # what the choice is filed under


def tune(
    model: torch.nn.Module | Callable[..., Any],
    example_inputs: Any,
    *,
    train: bool = False,
    seconds: float = 0.3,
) -> list[Tuned]:
    """Run a model once, and measure every transposed convolution in it with everything that could compute it.

    What is faster than the rule's choice by more than the noise is stored (convt.choices) and obeyed from now on, in
    this process and in later ones on the same machine with the same versions.

    Args:
        model: a module or any callable; torch's and convt's transposed convolutions both count. Its parameters and
            buffers, its mode and PyTorch's random numbers are left as they were.
        example_inputs: a tuple of positional arguments, a mapping of named ones, or one tensor.
        train: also the gradients of input and weight.
        seconds: for the measurement of each operator of each problem.
    """
    return run(collect(model, example_inputs, train=train), seconds=seconds)


# ---- the problems of a model -------------------------------------------------------------------------------------


def collect(model: Callable[..., Any], example_inputs: Any, *, train: bool = False) -> list[tuple[Task, torch.device]]:
    """The tasks of a model with their devices, each one once, in the order in which they run."""
    recorder = _Recorder()
    arguments: tuple[Any, ...] = ()
    named: Mapping[str, Any] = {}
    if isinstance(example_inputs, Mapping):
        named = example_inputs
    else:
        arguments = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
    with _unchanged(model), torch.random.fork_rng(gpus), torch.no_grad(), recorder:
        model(*arguments, **named)
    names = OPERATORS if train else OPERATORS[:1]
    tasks = [
        (Task(problem, name, dtype, last, precision, bias and name == "forward"), device)
        for problem, dtype, last, precision, bias, device in recorder.found
        for name in names
    ]
    return list(dict.fromkeys(tasks))


@contextmanager
def _unchanged(model: Callable[..., Any]) -> Iterator[None]:
    """Buffers, such as the running means of a batch norm, as they were."""
    buffers = dict(model.named_buffers()) if isinstance(model, torch.nn.Module) else {}
    kept = {name: buffer.clone() for name, buffer in buffers.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, buffer in buffers.items():
                buffer.copy_(kept[name])


_Found = tuple[Problem, torch.dtype, bool, str, bool, torch.device]


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call, unused-ignore]
    """Every transposed convolution that runs meanwhile: ATen's and ours."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call, unused-ignore]
        self.found: list[_Found] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "convt" or func is torch.ops.aten.convolution.default:
            names = [argument.name for argument in func._schema.arguments]
            values = dict(zip(names, args, strict=False)) | kwargs
            if {"input", "weight", "stride"} <= values.keys() and values.get("transposed", True):
                self._record(values)
        return func(*args, **kwargs)

    def _record(self, values: Mapping[str, Any]) -> None:
        input, weight, bias = values["input"], values["weight"], values.get("bias")
        if input.dtype not in DTYPES or input.shape[0] == 0:
            return
        names = ("stride", "padding", "output_padding", "dilation")
        stride, padding, output_padding, dilation = (tuple(values[name]) for name in names)
        geometry = Geometry(stride, padding, output_padding, values["groups"], dilation)
        problem = forward_problem(tuple(input.shape), tuple(weight.shape), None, geometry)
        last = operators.is_channels_last(
            input.dtype, (tuple(input.shape), input.stride()), (tuple(weight.shape), weight.stride())
        )
        precision = settings.current_precision() if input.is_cuda and input.dtype is torch.float32 else "ieee"
        self.found.append((problem, input.dtype, last, precision, bias is not None, input.device))


# ---- measuring ---------------------------------------------------------------------------------------------------

_Candidate = tuple[str, str | None]  # backend, and the kernel that is forced


def run(
    tasks: Iterable[tuple[Task, torch.device]],
    *,
    seconds: float = 0.3,
    tuned: Callable[[Tuned], None] = lambda result: None,
) -> list[Tuned]:
    """Measure tasks one after the other; each choice is stored at once, so that an interruption keeps what is done.

    `tuned` is told every result.
    """
    results = []
    for task, device in tasks:
        result = measure(task, device, seconds=seconds)
        if result.device is not None:
            choices.store(result.device, {task.key: result.choice})
            forget_plans()
        results.append(result)
        tuned(result)
    return results


def forget_plans() -> None:
    """Every plan is made anew, with the choices as they are now."""
    for module in (planning, operators, gradients):
        for value in vars(module).values():
            if hasattr(value, "cache_clear"):
                value.cache_clear()
    _C.forget_plans()


def measure(task: Task, device: torch.device | str, *, seconds: float = 0.3) -> Tuned:
    """Time everything that can compute a task on a device against what the rule picks."""
    device = torch.device(device)
    rule, *others = candidates(task, device)
    operands = _operands(task, device)
    calls = {candidate: _call(task, operands, candidate) for candidate in (rule, *others)}
    calls = {candidate: call for candidate, call in calls.items() if candidate == rule or _runs(call)}
    measured = len(calls)
    if len(calls) > _FINALISTS:
        rough = interleaved(list(calls.values()), seconds=seconds / 2, device=device.type, least_turns=3)
        order = sorted(zip(rough, calls, strict=True), key=lambda pair: pair[0].median)
        chosen = dict.fromkeys([rule, *(candidate for _, candidate in order[:_FINALISTS])])
        calls = {candidate: calls[candidate] for candidate in chosen}
    timings = interleaved(list(calls.values()), seconds=seconds, device=device.type, least_turns=10)
    times = dict(zip(calls, timings, strict=True))
    best = min(times, key=lambda candidate: times[candidate].median)
    choice = None
    if best != rule and is_worth_it(times[best], times[rule]):
        choice = Choice(*best, times[best].median * 1e6, times[rule].median * 1e6)
    told = {candidate: " ".join(word for word in candidate if word) for candidate in times}
    rule_us, best_us = (times[candidate].median * 1e6 for candidate in (rule, best))
    return Tuned(task, told[rule], rule_us, told[best], best_us, choice, measured, planning.device_name(device))


def is_worth_it(best: Timing, rule: Timing) -> bool:
    """Whether a time is shorter than the rule's by more than the percentiles of both explain, and by 3 % at least."""
    return best.high < rule.low and best.median < (1 - _LEAST_GAIN) * rule.median


def candidates(task: Task, device: torch.device) -> list[_Candidate]:
    """What the rule picks, then everything else that can compute the task: backends, and on a GPU kernels."""
    found: list[_Candidate] = [
        (name, None) for name in planning.candidates("auto") if planning.refusal(name, task.problem, device) is None
    ]
    facts = task.problem, task.operator, task.dtype, device, task.channels_last
    rule = planning.ruled(*facts, "auto", task.precision).backend
    if device.type == "cuda" and ("native", None) in found:
        found += [("native", name) for name in _configurations(task, device)]
    return sorted(found, key=lambda candidate: candidate != (rule, None))


def _configurations(task: Task, device: torch.device) -> list[str]:
    """Kernels that can compute a task, without the cost model's own choice: those that it predicts to be fastest."""

    def planned(kernel: str | None) -> _C.CudaPlan:
        return planning.cuda_plan(
            task.problem,
            task.dtype,
            operator=task.operator,
            precision=task.precision,
            channels_last=task.channels_last,
            bias=task.bias,
            device=device,
            kernel=kernel,
        )

    standard = planned(None)
    predicted = {}
    for name in (*settings.KERNELS[1:], *_C.cuda_configs(task.operator)):
        try:
            made = planned(name)
        except ValueError:  # not for this problem
            continue
        if (made.kernel, made.config) != (standard.kernel, standard.config):
            predicted[name] = made.predicted_us
    return sorted(predicted, key=lambda name: predicted[name])[:_CONFIGURATIONS]


def _operands(task: Task, device: torch.device) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    problem = task.problem
    format = operators.memory_format(problem.rank, task.channels_last)
    generator = torch.Generator(device).manual_seed(0)

    def normal(size: Sequence[int]) -> Tensor:
        made = torch.randn(tuple(size), generator=generator, device=device, dtype=task.dtype)
        return made.contiguous(memory_format=format) if len(size) == problem.rank + 2 else made

    bias = normal((problem.out_channels,)) if task.bias else None
    return normal(problem.input_size), normal(problem.weight_size), bias, normal(problem.output_size)


def _call(task: Task, operands: tuple[Tensor, Tensor, Tensor | None, Tensor], candidate: _Candidate) -> Apart:
    input, weight, bias, grad_output = operands
    geometry, last = task.problem.geometry, task.channels_last
    calls: dict[str, Callable[[], Tensor]] = {
        "forward": partial(operators.forward, input, weight, bias, geometry),
        "grad_input": partial(operators.grad_input, grad_output, weight, geometry, last),
        "grad_weight": partial(operators.grad_weight, grad_output, input, task.problem.filter, geometry, last),
    }
    return Apart(calls[task.operator], partial(_forced, task, candidate))


@contextmanager
def _forced(task: Task, candidate: _Candidate) -> Iterator[None]:
    backend, kernel = candidate
    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(settings.backend(backend))
        stack.enter_context(settings.precision(task.precision))
        if kernel is not None:
            stack.enter_context(settings.forced_kernel(kernel, task.operator))
        yield


def _runs(call: Apart) -> bool:
    """Whether a candidate computes at all: one without memory for its workspace is none."""
    try:
        call()
    except (RuntimeError, ValueError):
        return False
    return True
