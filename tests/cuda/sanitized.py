"""A small set of calls for compute-sanitizer: every CUDA kernel over a few awkward problems, tensors of exact size.

    compute-sanitizer --tool memcheck python tests/cuda/sanitized.py all
    compute-sanitizer --tool racecheck python tests/cuda/sanitized.py some

PyTorch's allocator is off (PYTORCH_NO_CUDA_MEMORY_CACHING=1), so that a byte beyond a tensor is a byte beyond an
allocation. Run by test_sanitizer.py; results are judged by the other tests.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from test_patch_copies import check

import convt
from adversarial import ADVERSARIAL, FORCED, FUNCTIONS, channels_last, is_hoppers
from convt.plan import OPERATORS, forced_kernel

NAMES = ("2d-k4s2p1", "2d-17-1", "3d-odd", "2d-groups-of-8", "2d-depthwise-37", "2d-one-output", "1d-gcd")
NARROW = ("2d-depthwise-k16", "2d-5-3")  # vectors of channels that reach beyond a tile's last row
SPLIT = ("2d-600",)
WAYS_IN = ("2d-column", "1d-output-padding")  # by each of Hopper's ways in
PRECISIONS = ((torch.float32, "ieee"), (torch.float32, "tf32"), (torch.bfloat16, "ieee"), (torch.float64, "ieee"))


def calls(number):
    """(problem, kernel, channels last): `number` problems for each kernel, all of them for the cost model's choice."""
    by_name = {case.name: case for case in ADVERSARIAL}
    cases = [by_name[name] for name in (*NAMES, *NARROW)]
    for index, case in enumerate((*cases, *(by_name[name] for name in SPLIT))):
        yield case, None, index % 2 == 1
    for index, kernel in enumerate(dict.fromkeys(kernel for names in FORCED.values() for kernel in names)):
        for step in range(min(number, len(cases))):
            yield cases[(index + step) % len(cases)], kernel, (index + step) % 2 == 1
        for name in NARROW:
            yield by_name[name], kernel, True


def gradients(case, input, weight, grad_output, last) -> int:
    """How many of the two gradients the kernel computes."""
    done = 0
    for operator, other, shape in (("grad_input", weight, ()), ("grad_weight", input, (weight.shape[2:],))):
        try:
            getattr(torch.ops.convt, operator)(grad_output, other, *shape, *case.geometry, last)
            done += 1
        except ValueError:
            continue
    return done


def main(amount: str) -> None:
    """Run all of them or some; a call that a forced kernel refuses is left out."""
    done = 0
    for case, kernel, last in calls({"all": 100, "some": 2}[amount]):
        for dtype, precision in PRECISIONS:
            may_choose = kernel is None and (precision == "tf32" or dtype == torch.bfloat16)
            if amount == "some" and (is_hoppers(kernel) or may_choose):
                continue  # warpgroups: see test_sanitizer.py
            input, weight, bias = (tensor.cuda() for tensor in case.tensors(dtype))
            operand = channels_last(input) if last else input
            with convt.backend("native"), convt.precision(precision), forced_kernel(kernel):
                try:
                    output = FUNCTIONS[case.rank](operand, weight, bias, **case.keywords)
                    done += 1
                except ValueError:
                    output = FUNCTIONS[case.rank](operand.cpu(), weight.cpu(), bias.cpu(), **case.keywords).cuda()
                done += gradients(case, operand, weight, channels_last(output) if last else output, last)
    if amount == "all" and torch.cuda.get_device_capability() == (9, 0):
        by_name = {case.name: case for case in ADVERSARIAL}
        done += sum(len(check(by_name[name], operator, "cuda")) for name in WAYS_IN for operator in OPERATORS[:2])
    torch.cuda.synchronize()
    print(f"{done} calls")


if __name__ == "__main__":
    main(*sys.argv[1:])
