"""A small set of calls for compute-sanitizer: every CUDA kernel over a few awkward problems, tensors of exact size.

    compute-sanitizer --tool memcheck python tests/cuda/sanitized.py

PyTorch's allocator is off (PYTORCH_NO_CUDA_MEMORY_CACHING=1), so that a byte beyond a tensor is a byte beyond an
allocation. Run by test_sanitizer.py; results are judged by the other tests.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import convt
from adversarial import ADVERSARIAL, FORCED, FUNCTIONS, channels_last
from convt.plan import forced_kernel

NAMES = ("2d-k4s2p1", "2d-5-3", "2d-17-1", "3d-odd", "2d-groups-of-8", "2d-depthwise-37", "2d-one-output", "1d-gcd")
SPLIT = ("2d-600",)
PRECISIONS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float64, "ieee"))


def calls():
    """(problem, kernel, number): three problems for each kernel, all of them for the cost model's choice."""
    cases = [case for case in ADVERSARIAL if case.name in NAMES]
    for number, case in enumerate(case for case in ADVERSARIAL if case.name in NAMES + SPLIT):
        yield case, None, number
    for number, kernel in enumerate(FORCED):
        for step in range(3):
            yield cases[(number + 3 * step) % len(cases)], kernel, number + step


def main() -> None:
    """Run them all; a call that a forced kernel refuses is left out."""
    done = 0
    for case, kernel, number in calls():
        for dtype, precision in PRECISIONS:
            input, weight, bias = (tensor.cuda() for tensor in case.tensors(dtype))
            operand = channels_last(input) if number % 2 else input
            with convt.backend("native"), convt.precision(precision), forced_kernel(kernel):
                try:
                    FUNCTIONS[case.rank](operand, weight, bias, **case.keywords)
                except ValueError:
                    continue
            done += 1
    torch.cuda.synchronize()
    print(f"{done} calls")


if __name__ == "__main__":
    main()
