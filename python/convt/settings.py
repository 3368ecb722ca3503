"""Process-wide switches: which backend computes, and in which precision float32 is multiplied.

Like the flags in torch.backends they belong to the process, not to a thread: the backward pass runs in threads of
autograd's own and must see them. Enter them around a compiled function, not inside it: the choice is made when an
operator runs, not when it is traced. Inside they break the graph, and raise RuntimeError where it has to be whole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import ContextDecorator, contextmanager
from functools import partial
from types import TracebackType

import torch

from . import _C
from .tracing import refuse_in_a_graph

BACKENDS = ("auto", "native", "aten")
PRECISIONS = ("ieee", "tf32")
OPERATORS = ("forward", "grad_input", "grad_weight")
KERNELS = ("implicit_gemm", "depthwise", "simt")  # families of CUDA kernels; the first one has configurations

_Kind = type[BaseException] | None

# Called after every change of these switches: caches of the choice that live outside this package's own.
observers: list[Callable[[], None]] = []

_backend = "auto"
_precision: str | None = None
_kernels: Mapping[str, str | None] = dict.fromkeys(OPERATORS)  # replaced as a whole: other threads may be reading


def _one_of(argument: str, value: object, legal: tuple[str, ...]) -> str:
    if value not in legal:
        raise ValueError(f"convt.{argument}: {argument} must be one of {', '.join(map(repr, legal))}, got {value!r}")
    return str(value)


def kernel_name(name: str) -> str:
    """The name itself when a CUDA kernel or configuration is called so; ValueError with the legal names otherwise."""
    return _one_of("kernel", name, (*KERNELS, *_C.cuda_configs(), *_C.cuda_configs("grad_weight")))


class backend(ContextDecorator):
    """Force the backend inside a `with` block or a decorated function.

    "native" is convt's own code, "aten" is PyTorch's, "auto" (the default) lets the plan choose by a measured rule.
    Nestable; the previous value returns on exit, also after an exception. Raises ValueError for any other name.
    """

    def __init__(self, name: str) -> None:
        self.name = _one_of("backend", name, BACKENDS)
        self._previous: list[str] = []

    def __enter__(self) -> backend:
        refuse_in_a_graph("convt.backend")
        self._previous.append(_backend)
        _set_backend(self.name)
        return self

    def __exit__(self, kind: _Kind, error: BaseException | None, trace: TracebackType | None) -> None:
        _set_backend(self._previous.pop())


class precision(ContextDecorator):
    """Force how float32 is multiplied on a GPU inside a `with` block or a decorated function.

    It holds for what runs meanwhile: a backward pass obeys the setting of its own time, not that of its forward.
    "tf32" lets kernels on tensor cores round both operands to 10 bits of mantissa (the others never do), "ieee" keeps
    all 23. Without it PyTorch's own switch holds (torch.backends.cudnn.conv.fp32_precision, or
    torch.backends.cudnn.allow_tf32 before it existed). On a CPU both are "ieee". Nestable; the previous value returns
    on exit, also after an exception. Raises ValueError for any other name.
    """

    def __init__(self, name: str) -> None:
        self.name = _one_of("precision", name, PRECISIONS)
        self._previous: list[str | None] = []

    def __enter__(self) -> precision:
        global _precision
        refuse_in_a_graph("convt.precision")
        self._previous.append(_precision)
        _precision = self.name
        _changed()
        return self

    def __exit__(self, kind: _Kind, error: BaseException | None, trace: TracebackType | None) -> None:
        global _precision
        _precision = self._previous.pop()
        _changed()


class forced_kernel(ContextDecorator):
    """Force the CUDA kernel of operators inside a `with` block or a decorated function: for tests and benches.

    name is a family ("implicit_gemm", "depthwise", "simt") or a configuration of the first ("64x256x16", ...,
    convt._C.cuda_configs(operator) lists them); None leaves the choice to the cost model. operators, one name or
    several, are those that it holds for ("forward", "grad_input", "grad_weight"; by default all of them): contexts for
    different operators add up. Like convt.precision it holds for what runs meanwhile, so a backward pass inside of it
    is forced as well.

    Nothing else ever computes what a kernel is forced for: a call whose problem it cannot compute raises ValueError
    with the reason, also in the middle of a backward pass. To force a configuration of the forward and train with it,
    name the operator: forced_kernel("64x256x16", "forward"). Under convt.backend("auto") a forced kernel decides for
    convt's code; under "aten" none of that runs, forced or not.

    Nestable; the previous value returns on exit, also after an exception. Raises ValueError for any other name.
    """

    def __init__(self, name: str | None, operators: str | Collection[str] = OPERATORS) -> None:
        self.name = None if name is None else kernel_name(name)
        names = (operators,) if isinstance(operators, str) else tuple(operators)
        self.operators = tuple(_one_of("operators", operator, OPERATORS) for operator in names)
        self._previous: list[Mapping[str, str | None]] = []

    def __enter__(self) -> forced_kernel:
        global _kernels
        refuse_in_a_graph("convt.plan.forced_kernel")
        self._previous.append(_kernels)
        _kernels = {**_kernels, **dict.fromkeys(self.operators, self.name)}
        _changed()
        return self

    def __exit__(self, kind: _Kind, error: BaseException | None, trace: TracebackType | None) -> None:
        global _kernels
        _kernels = self._previous.pop()
        _changed()


def _set_backend(name: str) -> None:
    global _backend
    _backend = name
    _changed()


def _changed() -> None:
    for observer in observers:
        observer()


def in_force() -> tuple[str | None, ...]:
    """All of these switches as one value: backend, precision (None without a context) and kernel of each operator."""
    return (_backend, _precision, *_kernels.values())


def current_backend() -> str:
    """The backend asked for: "auto", "native" or "aten"."""
    return _backend


def current_precision() -> str:
    """How float32 is multiplied on a GPU: "ieee" or "tf32"; PyTorch's switch unless convt.precision overrides it."""
    return _torch_precision() if _precision is None else _precision


def current_kernel(operator: str = "forward") -> str | None:
    """The CUDA kernel or configuration that an operator is forced to, None for the cost model's choice."""
    return _kernels[operator]


def precision_is_overridden() -> bool:
    """Whether a convt.precision context is active."""
    return _precision is not None


def precision_differs() -> bool:
    """Whether a convt.precision context asks for another precision than PyTorch's own switch."""
    return _precision is not None and _precision != _torch_precision()


# torch.backends.cudnn.conv.fp32_precision without three attribute look-ups: it is asked on every float32 call on a GPU.
_get_fp32_precision = getattr(torch._C, "_get_fp32_precision_getter", None)


def torch_precision() -> Callable[[], object]:
    """What asks PyTorch's own switch at the least cost; "tf32" is one of its answers."""
    return _torch_precision if _get_fp32_precision is None else partial(_get_fp32_precision, "cuda", "conv")


def _torch_precision() -> str:
    if _get_fp32_precision is not None:
        return "tf32" if _get_fp32_precision("cuda", "conv") == "tf32" else "ieee"
    conv = getattr(torch.backends.cudnn, "conv", None)
    if hasattr(conv, "fp32_precision"):
        return "tf32" if conv.fp32_precision == "tf32" else "ieee"  # type: ignore[union-attr]
    return "tf32" if torch.backends.cudnn.allow_tf32 else "ieee"


@contextmanager
def cudnn_precision(value: str) -> Iterator[None]:
    """PyTorch's own switch set to "ieee" or "tf32" for the duration of a `with` block: ATen's share of an override."""
    if hasattr(torch._C, "_set_fp32_precision_setter"):
        previous = torch._C._get_fp32_precision_getter("cuda", "conv")
        torch._C._set_fp32_precision_setter("cuda", "conv", value)
        try:
            yield
        finally:
            torch._C._set_fp32_precision_setter("cuda", "conv", previous)
        return
    allowed = torch._C._get_cudnn_allow_tf32()
    torch._C._set_cudnn_allow_tf32(value == "tf32")
    try:
        yield
    finally:
        torch._C._set_cudnn_allow_tf32(allowed)
