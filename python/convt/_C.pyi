"""The compiled module: geometry of an axis, the operators on CPU tensors, and the CUDA kernels with their simulator."""

from collections.abc import Callable, Sequence
from enum import Enum
from typing import Any

from torch import Tensor

class Origin(Enum):
    padded = ...
    aligned = ...

class Axis:
    def __init__(
        self,
        input: int,
        filter: int,
        stride: int = 1,
        padding: int = 0,
        output_padding: int = 0,
        dilation: int = 1,
    ) -> None: ...
    @property
    def input(self) -> int: ...
    @property
    def filter(self) -> int: ...
    @property
    def stride(self) -> int: ...
    @property
    def padding(self) -> int: ...
    @property
    def output_padding(self) -> int: ...
    @property
    def dilation(self) -> int: ...
    @property
    def output(self) -> int: ...
    @property
    def tap_period(self) -> int: ...
    def tap(self, tap: int, origin: Origin = ...) -> tuple[int, int]: ...
    def tap_input_range(self, tap: int) -> tuple[int, int]: ...
    def q_grid(self, origin: Origin = ...) -> tuple[int, int]: ...
    def phase_range(self, phase: int, origin: Origin = ...) -> tuple[int, int]: ...
    def output_of(self, q: int, phase: int, origin: Origin = ...) -> int: ...
    def halo(self, origin: Origin = ...) -> int: ...
    def patch(self, q_begin: int, q_end: int, origin: Origin = ...) -> tuple[int, int]: ...

def build_info() -> dict[str, Any]: ...
def isa() -> str: ...
def isas() -> list[str]: ...
def set_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_poison(on: bool) -> None: ...
def cuda_devices() -> list[dict[str, Any]]: ...
def cuda_taps(axis: Axis, origin: Origin, /) -> list[tuple[int, int]]: ...
def connect(objects: dict[str, Any]) -> tuple[Callable[..., Tensor], ...]: ...
def forget_plans() -> None: ...
def obey(settings: int) -> None: ...
def plan_cache() -> tuple[int, int]: ...
def rehearse(
    device: int | None, launch: Callable[..., None] | None = None, raw_stream: Callable[[int], int] | None = None
) -> None: ...

class PreparedOperator:
    def __call__(self, a: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor: ...

def gradients(
    grad_output: Tensor, input: Tensor, weight: Tensor, geometry: tuple[Any, ...], wanted: int
) -> tuple[Tensor | None, Tensor | None, Tensor | None] | None: ...
def forward_op(*args: Any) -> Tensor: ...
def grad_input_op(*args: Any) -> Tensor: ...
def grad_weight_op(*args: Any) -> Tensor: ...
def forward_in_graph(*args: Any) -> Tensor: ...
def grad_input_in_graph(*args: Any) -> Tensor: ...
def grad_weight_in_graph(*args: Any) -> Tensor: ...
def epilogue_operations() -> list[str]: ...
def forward(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    epilogue: Sequence[tuple[str, float, float, Tensor | None]] | None = None,
) -> None: ...
def grad_input(
    grad_output: Tensor,
    weight: Tensor,
    grad_input: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> None: ...
def grad_weight(
    grad_output: Tensor,
    input: Tensor,
    grad_weight: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> None: ...
def grad_bias(grad_output: Tensor, grad_bias: Tensor) -> None: ...

class CudaPlan:
    """How the CUDA kernels compute one call of an operator: an immutable value without pointers."""

    @property
    def kernel(self) -> str: ...
    @property
    def config(self) -> str: ...
    @property
    def workspace_bytes(self) -> int: ...
    @property
    def predicted_us(self) -> float: ...
    def explain(self) -> dict[str, Any]: ...

def cuda_configs(operator: str = "forward", operand: str | None = None) -> list[str]: ...
def cuda_plan(
    operator: str,
    input_size: Sequence[int],
    input_strides: Sequence[int],
    weight_size: Sequence[int],
    weight_strides: Sequence[int],
    bias_stride: int | None,
    output_strides: Sequence[int],
    dtype: str,
    precision: str,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    device: dict[str, Any] | None,
    kernel: str | None,
) -> CudaPlan: ...
def cuda_run(
    plan: CudaPlan,
    input: int,
    weight: int,
    bias: int,
    output: int,
    workspace: int,
    device: int,
    stream: int,
    epilogue: Sequence[tuple[str, float, float, tuple[int, str, Sequence[int]] | None]] | None = None,
) -> None: ...
def simulate(
    plan: CudaPlan,
    input: int,
    weight: int,
    bias: int,
    output: int,
    workspace: int,
    order: int = 0,
    late_copies: bool = False,
    skipped_barrier: int = -1,
    epilogue: Sequence[tuple[str, float, float, tuple[int, str, Sequence[int]] | None]] | None = None,
) -> dict[str, Any]: ...
def run_direct(
    family: str,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    output: Tensor,
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
    *,
    operator: str = "forward",
    backwards: bool = False,
    unaligned: bool = False,
    dry: bool = False,
    epilogue: Sequence[tuple[str, float, float, Tensor | None]] | None = None,
) -> dict[str, Any]: ...
