"""Which operations behind a transposed convolution are folded into it, and that those that are left are still right."""

from __future__ import annotations

import operator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from convt.graph.spellings import CONVOLUTIONS, STEPS
from watched import Watched, close


@pytest.fixture(autouse=True)
def fresh(one_thread):
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


C = 5
PER_CHANNEL, FULL, BATCH, ROW = (C, 1, 1), (2, C, 8, 10), (2, C, 1, 1), (10,)

# What a user may write after a transposed convolution (y), with the other tensors at hand (t), and its program.
SPELLED = {
    "F.relu": (lambda y, t: F.relu(y), "relu"),
    "torch.relu_": (lambda y, t: torch.relu_(y), "relu"),
    "y.relu()": (lambda y, t: y.relu(), "relu"),
    "F.relu inplace": (lambda y, t: F.relu(y, inplace=True), "relu"),
    "F.relu6": (lambda y, t: F.relu6(y), "clamp"),
    "leaky": (lambda y, t: F.leaky_relu(y, 0.2), "leaky_relu"),
    "leaky_": (lambda y, t: F.leaky_relu_(y), "leaky_relu"),
    "hardtanh": (lambda y, t: F.hardtanh(y, -0.5, 0.7), "clamp"),
    "clamp": (lambda y, t: torch.clamp(y, -1, 1), "clamp"),
    "clamp min": (lambda y, t: y.clamp(min=-0.5), "clamp"),
    "clamp_max_": (lambda y, t: y.clamp_max_(0.5), "clamp"),
    "clip": (lambda y, t: torch.clip(y, max=1.5), "clamp"),
    "gelu": (lambda y, t: F.gelu(y), "gelu"),
    "gelu tanh": (lambda y, t: F.gelu(y, approximate="tanh"), "gelu_tanh"),
    "silu": (lambda y, t: F.silu(y), "silu"),
    "torch.sigmoid": (lambda y, t: torch.sigmoid(y), "sigmoid"),
    "F.sigmoid": (lambda y, t: F.sigmoid(y), "sigmoid"),
    "expit": (lambda y, t: torch.special.expit(y), "sigmoid"),
    "y.tanh_()": (lambda y, t: y.tanh_(), "tanh"),
    "F.tanh": (lambda y, t: F.tanh(y), "tanh"),
    "hardswish": (lambda y, t: F.hardswish(y), "hardswish"),
    "mish": (lambda y, t: F.mish(y), "mish"),
    "y + 1": (lambda y, t: y + 1, "add"),
    "2 + y": (lambda y, t: 2 + y, "add"),
    "y - 0.5": (lambda y, t: y - 0.5, "sub"),
    "1 - y": (lambda y, t: 1 - y, "mul,add"),
    "-y": (lambda y, t: -y, "mul"),
    "y * 2": (lambda y, t: y * 2, "mul"),
    "0.5 * y": (lambda y, t: 0.5 * y, "mul"),
    "y / 2": (lambda y, t: y / 2, "div"),
    "y.div(2)": (lambda y, t: y.div(2.0), "div"),
    "add alpha": (lambda y, t: torch.add(y, 3, alpha=0.25), "add"),
    "sub alpha": (lambda y, t: y.sub(2, alpha=0.5), "sub"),
    "rsub": (lambda y, t: torch.rsub(y, 1), "mul,add"),
    "multiply": (lambda y, t: torch.multiply(y, 0.5), "mul"),
    "y + channel": (lambda y, t: y + t[0], "add(operand)"),
    "channel * y": (lambda y, t: t[0] * y, "mul(operand)"),
    "y + residual": (lambda y, t: torch.add(y, t[1]), "add(operand)"),
    "residual + y": (lambda y, t: t[1] + y, "add(operand)"),
    "residual - y": (lambda y, t: t[1] - y, "mul,add(operand)"),
    "y.sub_(batch)": (lambda y, t: y.sub_(t[2]), "sub(operand)"),
    "y / row": (lambda y, t: y / t[3], "div(operand)"),
    "y * number tensor": (lambda y, t: y * t[4], "mul(operand)"),
    "iadd": (lambda y, t: operator.iadd(y, t[1]), "add(operand)"),
    "imul": (lambda y, t: operator.imul(y, 0.5), "mul"),
    "dropout": (lambda y, t: F.dropout(y, 0.5, training=False), ""),
}


def operands():
    shapes = PER_CHANNEL, FULL, BATCH, ROW, ()
    return [torch.rand(shape) + 0.5 for shape in shapes]


INPUT, WEIGHT = (2, 3, 4, 5), (3, C, 2, 2)


def chained(*steps):
    def model(x, weight, tensors):
        y = F.conv_transpose2d(x, weight, stride=2)
        for step in steps:
            y = step(y, tensors)
        return y

    return model


def expected_program(names):
    return ",".join(program for name in names if (program := SPELLED[name][1]))


@pytest.mark.parametrize("name", SPELLED)
def test_every_spelling_is_folded(name):
    model = chained(SPELLED[name][0])
    x, weight = torch.randn(INPUT), torch.randn(WEIGHT)
    watched = Watched(model)
    close(watched(x, weight, operands_ := operands()), model(x, weight, operands_))
    assert ",".join(watched.programs) == SPELLED[name][1] and watched.others == [] and len(watched.calls) == 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(names=st.lists(st.sampled_from(sorted(SPELLED)), min_size=2, max_size=7), seed=st.integers(0, 99))
def test_random_chains_become_one_call(names, seed):
    torch._dynamo.reset()
    torch.manual_seed(seed)
    program = expected_program(names)
    if program.count(",") >= 8 or program.count("operand") > 4:
        names = names[:3]
        program = expected_program(names)
    model = chained(*(SPELLED[name][0] for name in names))
    x, weight, tensors = torch.randn(INPUT), torch.randn(WEIGHT), operands()
    watched = Watched(model)
    close(watched(x, weight, tensors), model(x, weight, tensors), rtol=1e-3, atol=1e-4)
    assert ",".join(watched.programs) == program and len(watched.calls) == 1 and watched.others == []


# Not folded: what is left in the graph, by name, and the program of what stands before it.
LEFT = {
    "reduction": (lambda y, t: F.relu(y - y.mean()), ["mean", "sub", "relu"]),
    "softmax": (lambda y, t: F.relu(F.softmax(y + 1, dim=1)), ["softmax", "relu"]),
    "second use": (lambda y, t: (lambda z: z * torch.sigmoid(z))(y + 1), ["sigmoid", "mul"]),
    "with itself": (lambda y, t: y * y, ["mul"]),
    "dtype": (lambda y, t: F.relu(y * t[1].double()), ["double", "mul", "relu"]),
    "to": (lambda y, t: F.relu(y.to(torch.bfloat16)), ["to", "relu"]),
    "integers": (lambda y, t: y + t[3].long(), ["long", "add"]),
    "broadcasting up": (lambda y, t: F.relu(y + t[1].unsqueeze(0)), ["unsqueeze", "add", "relu"]),
    "division by it": (lambda y, t: 1 / y, ["truediv"]),
    "rounding_mode": (lambda y, t: torch.div(y, 2, rounding_mode="floor"), ["div"]),
    "alpha of a tensor": (lambda y, t: torch.add(y, t[1], alpha=2), ["add"]),
    "alpha of it": (lambda y, t: torch.add(t[1], y, alpha=2), ["add"]),
    "clamp by tensors": (lambda y, t: torch.clamp(y, min=t[1]), ["clamp"]),
    "power": (lambda y, t: y**2, ["pow"]),
    "dropout in training": (lambda y, t: F.dropout(y, 1.0), ["dropout"]),
    "prelu": (lambda y, t: F.prelu(y, t[0].flatten()), ["flatten", "prelu"]),
    "a mutated operand": (lambda y, t: F.relu((y + t[1], t[1].add_(1))[0]), ["add_", "relu"]),
    "writes to another tensor": (lambda y, t: t[1].clone().add_(y), ["clone", "add_"]),
    "a view": (lambda y, t: F.relu(y[:, :2]), ["getitem", "relu"]),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_is_not_folded_is_still_right(name):
    step, left = LEFT[name]
    model = chained(step)
    x, weight, tensors = torch.randn(INPUT), torch.randn(WEIGHT), operands()
    watched = Watched(model)
    actual = watched(x, weight, [tensor.clone() for tensor in tensors])
    close(actual, model(x, weight, [tensor.clone() for tensor in tensors]))
    assert watched.others == left and len(watched.calls) == 1


def test_an_input_that_is_written_to_later():
    """The convolution must not move behind it."""

    def model(x, weight):
        y = F.conv_transpose2d(x, weight)
        x.mul_(0)
        return F.relu(y) + x.sum()

    x, weight = torch.randn(INPUT), torch.randn(WEIGHT)
    watched = Watched(model)
    close(watched(x.clone(), weight), model(x.clone(), weight))
    assert watched.programs == [] and len(watched.calls) == 1


def test_steps_and_tensors_beyond_the_limits_stay():
    watched = Watched(chained(*[SPELLED["y + 1"][0]] * 10))
    x, weight, tensors = torch.randn(INPUT), torch.randn(WEIGHT), operands()
    close(watched(x, weight, tensors), F.conv_transpose2d(x, weight, stride=2) + 10)
    assert watched.programs == ["add,add,add,add,add,add,add,add"] and len(watched.others) == 2
    watched = Watched(chained(*[SPELLED["y + residual"][0]] * 5))
    close(watched(x, weight, tensors), F.conv_transpose2d(x, weight, stride=2) + 5 * tensors[1])
    assert watched.programs == [",".join(["add(operand)"] * 4)] and len(watched.others) == 1


def test_the_tables_name_functions_methods_and_overloads():
    kinds = {type(target).__name__ for target in STEPS}
    assert {"str", "OpOverload", "function", "builtin_function_or_method"} <= kinds
    assert {F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d} <= set(CONVOLUTIONS)
