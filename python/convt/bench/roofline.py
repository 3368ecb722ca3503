"""`convt bench roofline`: what this machine copies and multiplies, per precision; nothing runs faster than these."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import torch
from rich.console import Console

from convt.bench import machine
from convt.bench.devices import DEVICES
from convt.terminal import plain_table, print_whole
from convt.timing import interleaved

PRECISIONS = ("tf32", "ieee", "bf16", "fp16")


@dataclass(frozen=True)
class Line:
    """One ceiling: median microseconds of one copy or one product, and the rate that its 20th percentile gives."""

    suite: str
    what: str  # copy, or the precision of a matrix product
    size: int  # bytes of the source, or rows of the square matrices
    device: str
    driver: str | None
    torch: str
    cuda: str | None
    commit: str | None
    us: float
    us_p20: float
    us_p80: float
    turns: int
    gbs: float | None  # bytes read plus bytes written
    tflops: float | None


@dataclass(frozen=True)
class Ceilings:
    """The machine as a roofline."""

    copy: float  # bytes per second, read plus written
    rates: Mapping[str, float]  # flop per second of matrix products: tf32, ieee (float32 units), bf16, fp16

    def rate(self, precision: str) -> float:
        """flop per second at "tf32", "ieee", "bf16", "fp16" or "fp64".

        ieee is the better of the float32 units and three TF32 products, and 16-bit types may be widened to it. A CPU
        has no TF32: it counts as ieee there.
        """
        strict = max(self.rates["ieee"], self.rates.get("tf32", 0.0) / 3)
        if precision == "fp64":
            return self.rates.get("fp64", strict)
        return max(self.rates.get(precision, strict), strict)

    def microseconds(self, flops: float, bytes: float, precision: str) -> float:
        """No implementation is faster: the larger of arithmetic and memory traffic."""
        return 1e6 * max(flops / self.rate(precision), bytes / self.copy)


@contextmanager
def matmul_precision(value: str) -> Iterator[None]:
    """PyTorch's switch for float32 matrix products on a GPU set to "ieee" or "tf32" for a `with` block."""
    if hasattr(torch._C, "_set_fp32_precision_setter"):
        previous = torch._C._get_fp32_precision_getter("cuda", "matmul")
        torch._C._set_fp32_precision_setter("cuda", "matmul", value)
        try:
            yield
        finally:
            torch._C._set_fp32_precision_setter("cuda", "matmul", previous)
        return
    allowed = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = value == "tf32"
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = allowed


def measure(device: str = "cuda", *, seconds: float = 0.3, precisions: Collection[str] | None = None) -> Iterator[Line]:
    """A large copy, then a large product in every precision; random data, since a GPU multiplies zeros faster.

    precisions are those to measure, "ieee" in any case; None is all of them.
    """
    gpu = device == "cuda"
    bytes = 2 << 30 if gpu else 64 << 20
    source = torch.randn(bytes // 4, device=device)
    target = torch.empty_like(source)
    yield _line("copy", bytes, device, seconds, partial(target.copy_, source), traffic=2 * bytes)
    del source, target

    float32 = torch.float32
    size, small = (8192, 4096) if gpu else (1024, 512)
    halves = size if gpu else small  # a processor may have no instructions for them
    products: list[tuple[str, torch.dtype, int, Callable[[], AbstractContextManager[None]]]] = [
        ("bf16", torch.bfloat16, halves, nullcontext),
        ("fp16", torch.float16, halves, nullcontext),
        ("ieee", float32, size, partial(matmul_precision, "ieee")),
        ("fp64", torch.float64, small, nullcontext),
    ]
    if gpu:
        products.insert(2, ("tf32", float32, size, partial(matmul_precision, "tf32")))
    for what, dtype, rows, around in products:
        if precisions is not None and what not in {"ieee", *precisions}:
            continue
        a, b = (torch.randn(rows, rows, device=device, dtype=dtype) for _ in range(2))
        product = torch.empty_like(a)
        with around():
            yield _line(what, rows, device, seconds, partial(torch.mm, a, b, out=product), flops=2 * rows**3)


def _line(
    what: str,
    size: int,
    device: str,
    seconds: float,
    call: Callable[[], object],
    *,
    traffic: float | None = None,
    flops: float | None = None,
) -> Line:
    (time,) = interleaved([call], seconds=seconds, device=device)
    return Line(
        suite="roofline",
        what=what,
        size=size,
        device=machine.device_name(device),
        driver=DEVICES[device].facts()["driver"],
        torch=torch.__version__,
        cuda=torch.version.cuda,
        commit=machine.commit(),
        us=time.median * 1e6,
        us_p20=time.low * 1e6,
        us_p80=time.high * 1e6,
        turns=time.turns,
        gbs=None if traffic is None else traffic / time.low * 1e-9,
        tflops=None if flops is None else flops / time.low * 1e-12,
    )


def ceilings(device: str, precisions: Collection[str], *, seconds: float = 0.1) -> Ceilings:
    """Measure the machine at some precisions; about a second."""
    needed = {"tf32", *precisions}  # float32 is three products of TF32 at best
    lines = {line.what: line for line in measure(device, seconds=seconds, precisions=needed)}
    DEVICES[device].release()
    return Ceilings(
        copy=(lines["copy"].gbs or 0.0) * 1e9,
        rates={what: line.tflops * 1e12 for what, line in lines.items() if line.tflops is not None},
    )


def run(*, device: str = "cuda", seconds: float = 0.3, out: Path | None = None, console: Console | None = None) -> int:
    """Measure, show a table, append JSON lines to `out` as they come."""
    console = console or Console()
    table = plain_table()
    table.add_column("")
    for column in ("size", "µs", "p20-p80", "GB/s", "TFLOP/s"):
        table.add_column(column, justify="right", no_wrap=True)
    for line in measure(device, seconds=seconds):
        if out is not None:
            with out.open("a") as file:
                file.write(json.dumps(asdict(line)) + "\n")
        table.add_row(
            line.what,
            str(line.size),
            f"{line.us:.1f}",
            f"{line.us_p20:.1f}-{line.us_p80:.1f}",
            "" if line.gbs is None else f"{line.gbs:.0f}",
            "" if line.tflops is None else f"{line.tflops:.2f}",
        )
    console.print(f"{machine.device_name(device)}, torch {torch.__version__}", highlight=False)
    print_whole(console, table)
    return 0
