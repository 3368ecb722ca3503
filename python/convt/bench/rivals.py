"""What PyTorch can do for a problem: its defaults, and the fastest of its settings at the same precision."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from typing import Any

import torch
from torch import Tensor

from convt import settings
from convt.bench.devices import DEVICES
from convt.problem import Problem
from convt.testing import torch_function
from convt.timing import Apart, Parts, interleaved

DTYPES = {
    "tf32": torch.float32,
    "ieee": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}
Call = Callable[[], tuple[Tensor, ...]]

# cuDNN's search tries up to ten algorithms many times: nobody waits for it where one call takes longer than this...
_SEARCH_BELOW = 0.05  # seconds
# ... nor a second time after one that took this long.
_SEARCH_ONCE_ABOVE = 30.0  # seconds


@dataclass(frozen=True)
class Candidate:
    """One setting of PyTorch's and its rough time."""

    layout: str
    benchmark: bool
    us: float | None = None  # median of three turns
    first_call_s: float | None = None  # with benchmark: cuDNN's search
    error: str | None = None

    @property
    def setting(self) -> str:
        return self.layout + (" benchmark" if self.benchmark else "")


class Operands:
    """Tensors of one problem, normally distributed, made on their device; in both layouts where both are asked for.

    A layout is that of input, weight and gradient: what `module.to(memory_format=...)` and its input would have.
    """

    def __init__(
        self, problem: Problem, dtype: torch.dtype, device: str, direction: str, bias: bool = False, seed: int = 0
    ) -> None:
        self.problem, self.direction = problem, direction
        generator = torch.Generator(device).manual_seed(seed)

        def normal(size: Sequence[int]) -> Tensor:
            return torch.randn(size, generator=generator, device=device, dtype=dtype)

        made = [normal(problem.input_size), normal(problem.weight_size)]
        made[1] /= (problem.in_channels // problem.groups) ** 0.5
        if direction != "forward":
            made.append(normal(problem.output_size))
        self._made = {"contiguous": tuple(made)}
        self.bias = normal((problem.out_channels,)) if bias else None

    def at(self, layout: str) -> tuple[Tensor, ...]:
        """(input, weight) and, unless the direction is the forward, grad_output."""
        if layout not in self._made:
            format = torch.channels_last if self.problem.rank == 2 else torch.channels_last_3d
            self._made[layout] = tuple(t.contiguous(memory_format=format) for t in self._made["contiguous"])
        return self._made[layout]

    def call(self, function: Callable[..., Tensor], layout: str) -> Call:
        """The computation as a call without arguments: (output,), or output and the gradients of all that is given.

        Of forward_backward those are grad_input, grad_weight and, where there is a bias, grad_bias: one training step
        of the layer, in two parts, forward and backward. Of the backward alone, or of one gradient, the forward is done
        in the first call and kept.
        """
        input, weight, *rest = self.at(layout)
        geometry = self.problem.geometry
        if self.direction == "forward":
            return lambda: (function(input, weight, self.bias, *geometry),)
        given = (input, weight) if self.bias is None else (input, weight, self.bias)
        wanted = {"grad_input": (0,), "grad_weight": (1,)}.get(self.direction, range(len(given)))
        copies = [tensor.detach() for tensor in given]
        leaves = [copies[index].requires_grad_() for index in wanted]
        bias = None if self.bias is None else copies[2]

        def forward() -> Tensor:
            return function(*copies[:2], bias, *geometry)

        def backward(output: Tensor) -> tuple[Tensor, ...]:
            return output.detach(), *torch.autograd.grad(output, leaves, rest)

        if self.direction == "forward_backward":
            return Parts(forward, backward)
        kept = cache(forward)
        return lambda: torch.autograd.grad(kept(), leaves, rest, retain_graph=True)

    def torch_call(self, layout: str) -> Call:
        return self.call(torch_function(self.problem.rank), layout)

    def compiled_call(self, layout: str) -> Call:
        """PyTorch's function under torch.compile, at its standard mode; it compiles in the first call."""
        torch._dynamo.reset()  # each problem is a new one, and no recompilation of the last
        theirs = torch_function(self.problem.rank)

        def function(*arguments: Any) -> Tensor:
            return theirs(*arguments)

        # Where there is nothing to compile with, that shows in the first call.
        compiled = cache(lambda: torch.compile(function, fullgraph=True, dynamic=False))
        return self.call(lambda *arguments: compiled()(*arguments), layout)


@contextmanager
def switches(precision: str | None, benchmark: bool) -> Iterator[None]:
    """PyTorch's switches: precision of float32 ("tf32", "ieee", None leaves the default) and cuDNN's search.

    The backward pass runs in the calling thread, whose plans of cuDNN's are the ones that `benchmark` found.
    """
    with ExitStack() as stack:
        if precision in ("tf32", "ieee"):
            stack.enter_context(settings.cudnn_precision(precision))
        stack.enter_context(torch.autograd.set_multithreading_enabled(False))
        # Below torch.backends.cudnn, which may be closed to assignments (torch.backends.disable_global_flags).
        stack.callback(torch._C._set_cudnn_benchmark, torch._C._get_cudnn_benchmark())
        torch._C._set_cudnn_benchmark(benchmark)
        yield


@lru_cache(maxsize=1)
def search_thread() -> Executor:
    """Where calls with cudnn.benchmark run.

    PyTorch keeps cuDNN's plans per thread under a key that does not hold `benchmark`: in one thread, whichever setting
    comes first would decide for both.
    """
    initializer: dict[str, Any] = {}
    if torch.cuda.is_available():
        initializer = {"initializer": torch.cuda.set_device, "initargs": (torch.cuda.current_device(),)}
    return ThreadPoolExecutor(1, thread_name_prefix="convt-cudnn-benchmark", **initializer)


def rival(operands: Operands, precision: str, candidate: Candidate) -> Apart:
    """A candidate as a call."""
    thread = search_thread() if candidate.benchmark else None
    around = partial(switches, precision, candidate.benchmark)
    return Apart(operands.torch_call(candidate.layout), around, thread)


def is_default_allowed(precision: str) -> bool:
    """Whether PyTorch's defaults are among the settings for this precision: only ieee may ask for more than they do."""
    # Not current_precision(): that is convt's own switch while a line is measured.
    return precision != "ieee" or settings._torch_precision() == "ieee"


def screen(
    operands: Operands,
    precision: str,
    *,
    device: str,
    benchmark: bool | None = None,
    stage: Callable[[str], None] = lambda what: None,
) -> list[Candidate]:
    """A rough time of every setting: layouts, with and without cuDNN's search (`benchmark`; on a GPU by default).

    A setting that fails has its error instead. `stage` is told what runs next.
    """
    layouts = ("contiguous",) if operands.problem.rank == 1 else ("contiguous", "channels_last")
    done = [_try(operands, precision, Candidate(layout, False), device, stage) for layout in layouts]
    if DEVICES[device].searches if benchmark is None else benchmark:
        for plain in tuple(done):
            if plain.us is None or plain.us * 1e-6 > _SEARCH_BELOW:
                continue
            if any((candidate.first_call_s or 0.0) > _SEARCH_ONCE_ABOVE for candidate in done):
                break
            done.append(_try(operands, precision, Candidate(plain.layout, True), device, stage))
    return done


def _try(
    operands: Operands, precision: str, candidate: Candidate, device: str, stage: Callable[[str], None]
) -> Candidate:
    layout, benchmark = candidate.layout, candidate.benchmark
    stage(f"torch {candidate.setting}")
    try:
        call = rival(operands, precision, candidate)
        start = time.perf_counter()
        call()
        DEVICES[device].synchronize()
        first = time.perf_counter() - start
        (timing,) = interleaved([call], seconds=1e-9, device=device, least_turns=3)
    except Exception as error:
        return Candidate(layout, benchmark, error=said(error))
    return Candidate(layout, benchmark, timing.median * 1e6, first if benchmark else None)


def best(candidates: Sequence[Candidate]) -> Candidate | None:
    """The fastest one; None when all failed."""
    timed = [(candidate.us, index) for index, candidate in enumerate(candidates) if candidate.us is not None]
    return candidates[min(timed)[1]] if timed else None


def said(error: BaseException) -> str:
    """An error in one line."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}"[:400]
