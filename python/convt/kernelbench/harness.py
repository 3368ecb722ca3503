"""KernelBench's check and clock: what its evaluation does with a reference and a submission, written anew.

Source of the rules: ScalingIntelligence/KernelBench, src/kernelbench/eval.py and timing.py (at commit 423217d).
There they need a GPU; here a CPU will do, where the clock is the wall's and no cache is flushed.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

SEED = 42
TRIALS = 5  # of the check, each on other inputs
WARM_UPS, DISCARDED, TIMED = 3, 1, 100
_FLUSHED_ELEMENTS = 32 << 20  # int64: 256 MiB, more than an L2 cache


@dataclass(frozen=True)
class Loaded:
    """A reference and a submission after their sources were executed."""

    model: Callable[..., nn.Module]
    model_new: Callable[..., nn.Module]
    get_inputs: Callable[[], list[Any]]
    get_init_inputs: Callable[[], list[Any]]


@dataclass(frozen=True)
class Verdict:
    """What the check found, over its trials."""

    passed: int
    trials: int
    shapes_agree: bool
    max_difference: float  # largest |output - reference|; NaN where shapes differ
    beyond: float  # share of elements outside of the tolerance, in the worst trial

    @property
    def correct(self) -> bool:
        return self.passed == self.trials


@dataclass(frozen=True)
class Times:
    """Milliseconds per call over the timed trials."""

    mean: float
    std: float
    least: float
    most: float
    trials: int


def load(reference: str, submission: str) -> Loaded:
    """Execute both sources in one namespace, the reference first.

    Raises:
        ValueError: a name that KernelBench looks for is not defined.
    """
    names: dict[str, Any] = {}
    exec(compile(reference, "<reference>", "exec"), names)
    found: dict[str, Any] = {name: names.get(name) for name in ("Model", "get_inputs", "get_init_inputs")}
    exec(compile(submission, "<submission>", "exec"), names)
    found["ModelNew"] = names.get("ModelNew")
    if missing := [name for name, value in found.items() if value is None]:
        raise ValueError(f"source: {', '.join(missing)} is not defined in it")
    return Loaded(found["Model"], found["ModelNew"], found["get_inputs"], found["get_init_inputs"])


def tolerance(dtype: torch.dtype) -> float:
    """atol and rtol of the check: 1e-4 for float32, 1e-2 for the 16-bit types."""
    return {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 1e-2}[dtype]


def build(loaded: Loaded, device: str, dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """Model and ModelNew, each made right after the seed was set: equal states come from equal draws alone."""
    _seed(SEED)
    arguments = [_placed(value, device, dtype) for value in loaded.get_init_inputs()]
    models = []
    with torch.no_grad():
        for kind in (loaded.model, loaded.model_new):
            _seed(SEED)
            models.append(kind(*arguments))
    return models[0].to(device=device, dtype=dtype), models[1].to(device=device, dtype=dtype)


def check(loaded: Loaded, *, device: str = "cpu", dtype: torch.dtype = torch.float32, trials: int = TRIALS) -> Verdict:
    """Compare outputs on `trials` inputs with torch.allclose under PyTorch's default flags, without gradients."""
    model, model_new = build(loaded, device, dtype)
    bound = tolerance(dtype)
    torch.manual_seed(SEED)
    seeds = [int(torch.randint(0, 2**32 - 1, (1,)).item()) for _ in range(trials)]
    passed, largest, beyond = 0, 0.0, 0.0
    with torch.no_grad():
        for seed in seeds:
            _seed(seed)
            inputs = [_placed(value, device, dtype) for value in loaded.get_inputs()]
            expected, got = model(*inputs), model_new(*inputs)
            if expected.shape != got.shape:
                return Verdict(passed, trials, False, float("nan"), 1.0)
            passed += torch.allclose(expected, got, atol=bound, rtol=bound)
            largest = max(largest, float((expected - got).abs().max()))
            beyond = max(beyond, share_beyond(expected, got, bound))
    return Verdict(passed, trials, True, largest, beyond)


def share_beyond(expected: Tensor, got: Tensor, bound: float) -> float:
    """Share of elements that torch.allclose(expected, got, atol=bound, rtol=bound) objects to."""
    far = sum(
        int((~torch.isclose(image, other, atol=bound, rtol=bound)).sum())
        for image, other in zip(expected, got, strict=True)  # image by image: outputs may fill half of the memory
    )
    return far / max(1, expected.numel())


def clock(model: nn.Module, inputs: list[Any], *, device: str = "cpu", trials: int = TIMED) -> Times:
    """The timing protocol: warm-ups, then single synchronised calls with a cold L2 cache, the first one not counted."""
    on_gpu = torch.device(device).type == "cuda"
    with torch.no_grad():
        for _ in range(WARM_UPS):
            model(*inputs)
            _synchronize(on_gpu)
        if on_gpu:
            torch.cuda.empty_cache()
        times = [_once(model, inputs, on_gpu) for _ in range(trials + DISCARDED)][DISCARDED:]
    spread = statistics.stdev(times) if len(times) > 1 else 0.0
    return Times(statistics.fmean(times), spread, min(times), max(times), len(times))


def timing_inputs(loaded: Loaded, device: str, dtype: torch.dtype = torch.float32) -> list[Any]:
    """The inputs that are timed: those of the first seed."""
    _seed(SEED)
    return [_placed(value, device, dtype) for value in loaded.get_inputs()]


def _once(model: nn.Module, inputs: list[Any], on_gpu: bool) -> float:
    if not on_gpu:
        start = time.perf_counter()
        model(*inputs)
        return (time.perf_counter() - start) * 1e3
    torch.cuda.synchronize()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call, unused-ignore]
    torch.empty(_FLUSHED_ELEMENTS, dtype=torch.int64, device="cuda").fill_(42)
    begin.record()
    model(*inputs)
    end.record()
    torch.cuda.synchronize()
    return float(begin.elapsed_time(end))


def _synchronize(on_gpu: bool) -> None:
    if on_gpu:
        torch.cuda.synchronize()


def _seed(seed: int) -> None:
    torch.manual_seed(seed)


def _placed(value: Any, device: str, dtype: torch.dtype) -> Any:
    return value.to(dtype=dtype).to(device=device) if isinstance(value, Tensor) else value
