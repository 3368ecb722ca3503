"""What a bench has to know about a device: its name, its peak of memory, whether it is still there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch

from convt import _C, plan
from convt.bench import machine
from convt.testing import ROUNDINGS
from convt.timing import Apart


class Cpu:
    """The processor: it computes everything, keeps no search of cuDNN's, and is never lost."""

    name = "cpu"
    precisions: tuple[str, ...] = ("ieee",)  # measured unless others are named
    backend = "auto"
    sizes = "reduced"
    searches = False  # whether cudnn.benchmark changes anything
    hangs = False  # whether a call may never return
    roundings: tuple[str, ...] = ("fp32",)  # what float32 operands may be rounded to

    def facts(self) -> dict[str, Any]:
        """What a line says about device and software."""
        return {
            "device": machine.device_name(self.name),
            "driver": None,
            "cuda": torch.version.cuda,
            "cudnn": None,
            "isa": _C.isa(),
            "threads": torch.get_num_threads(),
        }

    def is_native_possible(self) -> bool:
        """Whether convt's own code computes here."""
        return True

    def is_lost(self) -> bool:
        """Whether everything is refused after an error: only a new process can go on then."""
        return False

    def synchronize(self) -> None:
        """Wait until all results are there."""

    def peak_bytes(self, call: Callable[[], object]) -> int:
        """What PyTorch's allocator holds at most during a call, beyond what it held before.

        On a CPU that is what the profiler is told; scratch memory that libraries allocate on their own is not in it.
        """
        # Kineto prints a line for each profile otherwise.
        quiet = os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        try:
            with torch.profiler.profile(
                activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
            ) as profile:
                results = call()
            del results
        finally:
            if quiet == "99":
                os.environ.pop("KINETO_LOG_LEVEL", None)
        held = peak = 0
        for event in profile.profiler.kineto_results.events():  # type: ignore[union-attr, unused-ignore]
            if event.name() == "[memory]":
                held += event.nbytes()
                peak = max(peak, held)
        return peak

    def recorded(self, call: Apart) -> Apart:
        """The call to be replayed whole, as a CUDA graph; here it is itself."""
        return call

    def poison(self, sizes: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        """Make what the next results of these sizes are made of NaN, so that a forgotten element shows."""

    def release(self) -> None:
        """Give memory back that PyTorch keeps for later."""


class Cuda(Cpu):
    """PyTorch's current GPU."""

    name = "cuda"
    precisions = ("tf32", "ieee", "bf16")
    backend = "native"
    sizes = "full"
    searches = True
    hangs = True
    roundings = tuple(ROUNDINGS)

    def facts(self) -> dict[str, Any]:
        return {
            "device": machine.device_name(self.name),
            "driver": machine.driver(),
            "cuda": torch.version.cuda,
            "cudnn": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
            "isa": None,
            "threads": None,
        }

    def is_native_possible(self) -> bool:
        built = _C.build_info()["cuda"] is not None and hasattr(_C, "cuda_run")
        return built and torch.cuda.get_device_capability() >= plan.LEAST_CAPABILITY

    def is_lost(self) -> bool:
        try:
            torch.cuda.synchronize()
        except RuntimeError:
            return True
        return False

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def peak_bytes(self, call: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def recorded(self, call: Apart) -> Apart:
        """Raises RuntimeError where a call cannot be captured."""

        def capture(inner: Callable[[], object]) -> Callable[[], object]:
            beside = torch.cuda.Stream()  # type: ignore[no-untyped-call, unused-ignore]
            beside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(beside):  # what libraries and allocators make at first
                for _ in range(2):
                    inner()
            torch.cuda.current_stream().wait_stream(beside)
            graph = torch.cuda.CUDAGraph()
            # The backward of a step is launched by a thread of autograd's.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                inner()
            return graph.replay

        return replace(call, call=call.run(capture))

    def poison(self, sizes: Sequence[Sequence[int]], dtype: torch.dtype) -> None:
        torch.cuda.empty_cache()
        made = [torch.empty(size, dtype=dtype, device=self.name).fill_(torch.nan) for size in sizes]
        del made

    def release(self) -> None:
        with suppress(RuntimeError):
            torch.cuda.empty_cache()


DEVICES = {device.name: device for device in (Cpu(), Cuda())}


def standard() -> str:
    """ "cuda" when PyTorch sees a GPU, "cpu" otherwise."""
    return "cuda" if torch.cuda.is_available() else "cpu"
