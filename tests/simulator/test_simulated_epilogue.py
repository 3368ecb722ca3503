"""Epilogues of the CUDA forward kernels, played on the host: every configuration and family, both kinds of operands."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convt import _C
from direct import ADVERSARIAL, DTYPES, exact, laid_out, problem, problems
from programs import SMOOTH, Step, composed, exact_programs, operand, pointers
from simulated import CONFIGS, LAYOUTS, OPERANDS, PAIRS, SCHEDULES, Call
from simulated import problem as gemm_problem

pytestmark = pytest.mark.simulator
NONE, INF = None, float("inf")

# Odd widths and channels throughout. `direct`: as no program follows, accumulators would leave from registers.
PROBLEMS = {
    "direct": gemm_problem(2, (12, 9), (5, 7), 3, padding=1),
    "phases": gemm_problem(1, (9, 13), (4, 9), 4, 2, padding=1),
    "empty-phases": gemm_problem(2, (5, 11), (3, 5), 2, 3, padding=1, output_padding=(2, 1)),
    "cut-phases": gemm_problem(1, (5, 2), (23,), 640, 320, padding=160),
    "split": gemm_problem(1, (150, 24), (3, 3), 3, padding=1),
    "groups": gemm_problem(1, (6, 38), (5, 3, 4), (2, 1, 2), (1, 2, 2), groups=2),
}
OPERAND_LAYOUTS = ("contiguous", "channels_last", "expanded", "sliced")


def full_program(size: tuple[int, ...], dtype: torch.dtype, seed: int) -> list[Step]:
    """Eight steps with four operands; errors of the convolution are multiplied by at most two."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(257, generator=generator)
    smooth = tuple(SMOOTH)[seed % len(SMOOTH)]
    return [
        ("mul", 0.0, 0.0, operand("channel", size, torch.float32, values.abs().clamp(0.5, 2))),
        ("add", 0.0, 0.0, operand(OPERAND_LAYOUTS[seed % 4], size, dtype, values)),
        ("leaky_relu", 0.25, 0.0, NONE),
        ("sub", 0.0, 0.0, operand(OPERAND_LAYOUTS[(seed // 2 + 1) % 4], size, torch.float32, values)),
        (smooth, 0.0, 0.0, NONE),
        ("add", 0.0, 0.0, operand("channel", size, dtype, values)),
        ("div", 2.0, 0.0, NONE),
        ("clamp", -1.5, INF, NONE),
    ]


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("config", CONFIGS)
def test_every_configuration(config, name):
    for number, (_, kind) in enumerate(pair for pair in PAIRS if pair[0] == config):
        seed = number + list(PROBLEMS).index(name) + 3 * CONFIGS.index(config)
        layouts = (LAYOUTS[0], LAYOUTS[1], LAYOUTS[3], LAYOUTS[5])[seed % 4]
        call = Call(config, PROBLEMS[name], kind, layouts)
        steps = full_program(call.size, OPERANDS[kind].dtype, seed)
        output, _ = call.play(SCHEDULES[seed % len(SCHEDULES)], epilogue=pointers(steps))
        expected = composed(steps, call.truth)
        # Values between the steps are float32: of the size of the operands, or of the result.
        allowed = OPERANDS[kind].error * (2 * call.magnitude + expected.abs()) + 3e-6
        assert ((output.double() - expected).abs() <= allowed).all(), f"{call.label}\n{call.told}"


@pytest.mark.parametrize("layouts", (LAYOUTS[0], LAYOUTS[1], LAYOUTS[3]), ids=("rows", "channels", "odd-address"))
@pytest.mark.parametrize("name", PROBLEMS)
def test_steps_of_float32_are_pytorchs_own(name, layouts):
    """Without a program the output is the accumulator itself, so that exact steps are the same to the last bit."""
    call = Call(CONFIGS[0], PROBLEMS[name], "tf32", layouts)
    plain, _ = call.play()
    values = torch.randn(101)
    for kind in OPERAND_LAYOUTS:
        steps = [
            ("mul", 0.0, 0.0, operand(kind, call.size, torch.float32, values)),
            ("relu", 0.0, 0.0, NONE),
            ("sub", 0.0, 0.0, operand("channel", call.size, torch.float32, values)),
            ("div", 0.0, 0.0, operand("channel", call.size, torch.float32, values)),
            ("mul", 1.7, 0.0, NONE),
        ]
        output, _ = call.play(epilogue=pointers(steps))
        assert torch.equal(output, composed(steps, plain)), kind


def test_gradients_take_no_program_and_forwards_without_steps_are_unchanged():
    call = Call(CONFIGS[0], PROBLEMS["phases"])
    assert torch.equal(call.play()[0], call.play(epilogue=[])[0])


def test_pointers_are_checked():
    call = Call(CONFIGS[0], PROBLEMS["direct"], "bfloat16")
    for wrong in ((0, "bfloat16"), (0, "bfloat16", (1, 2)), (0, 3, (1, 2, 3, 4, 5)), torch.ones(9)):
        with pytest.raises(
            ValueError, match=r"epilogue\[0\] \(add\): operand must be \(data_ptr, dtype, five strides\)"
        ):
            call.play(epilogue=[("add", 0.0, 0.0, wrong)])
    with pytest.raises(ValueError, match="operand has dtype float16; legal are the output's, bfloat16, and float32"):
        call.play(epilogue=[("add", 0.0, 0.0, (0, "float16", (0, 0, 0, 0, 0)))])


DEPTHWISE = {
    "bilinear": problem(2, 21, 21, (9, 11), 4, 2, 1, groups=21),
    "vectors": problem(2, 48, 48, (9, 5), 4, 2, 1, groups=48),
    "one-output": problem(2, 40, 40, (3, 3), 3, padding=2, groups=40),
    "folded": problem(1, 3, 3, (1500,), 5, 3, 2, 2, groups=3),
    "empty-phases": problem(2, 6, 6, (4, 5), 2, 5, 1, 3, groups=6),
    "multiplier": problem(2, 5, 15, (6, 7), 4, 2, 1, groups=5),
    "3d": problem(2, 6, 6, (3, 5, 7), 4, 2, 1, groups=6),
}
DIRECT = [("depthwise", name, p) for name, p in DEPTHWISE.items()]
DIRECT += [("simt", name, ADVERSARIAL[name]) for name in ("one-output", "gcd-2d", "odd", "groups", "3d", "many-images")]


def run(family, p, dtype, layout, steps, **options):
    generator = torch.Generator().manual_seed(0)
    shapes = p.input_size, p.weight_size, (p.out_channels,)
    # Eighths: exact products and sums, whatever their order.
    input, weight, bias = (
        (torch.randn(shape, generator=generator, dtype=torch.float64).mul(4).round().clamp(-8, 8) / 8).to(dtype)
        for shape in shapes
    )
    output = laid_out(torch.full(p.output_size, float("nan"), dtype=dtype), layout)
    _C.run_direct(family, laid_out(input, layout), weight, bias, output, *p.geometry, epilogue=steps, **options)
    return output, exact(p, input, weight, bias)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("family", "name", "p"), DIRECT, ids=lambda value: value if isinstance(value, str) else "")
def test_direct_kernels(family, name, p, dtype):
    for number, layout in enumerate(("contiguous", "channels_last")):
        for unaligned in (False, True) if family == "depthwise" else (False,):
            steps = full_program(p.output_size, dtype, number + len(name))
            output, truth = run(family, p, dtype, layout, steps, unaligned=unaligned, backwards=bool(number))
            expected = composed(steps, truth)
            accumulator = torch.finfo(torch.float64 if dtype is torch.float64 else torch.float32).eps
            bound = torch.finfo(dtype).eps * expected.abs() + 32 * accumulator * (1 + truth.abs())
            assert ((output.double() - expected).abs() <= bound).all()


@settings(
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
@given(st.data(), st.sampled_from(("depthwise", "simt")), st.sampled_from(DTYPES))
def test_exact_programs_are_exact(data, family, dtype):
    p = data.draw(problems(tiny=family == "depthwise"))
    steps = data.draw(exact_programs(p.output_size, dtype))
    layout = data.draw(st.sampled_from(("contiguous", "channels_last")))
    output, truth = run(family, p, dtype, layout, steps)
    assert torch.equal(output, composed(steps, truth).to(dtype))
