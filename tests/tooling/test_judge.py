"""KernelBench's problems, TF32's roundings, and the judge of results."""

import dataclasses

import pytest
import torch
from torch.nn import functional as F

from convt.bench import judge, machine, rivals, roofline
from convt.testing import closest, kernelbench, layer, sample, select, tf32_nearest, torch_function, zoo
from convt.testing.definition import tf32_truncated

# GFLOP and output pixels of every problem.
FACTS = {
    "57": (618.475, (1026, 1026)),
    "58": (56.371, (18, 36, 70)),
    "61": (260.919, (66, 66, 66)),
    "64": (412.317, (65538,)),
    "65": (360.777, (514, 518)),
    "68": (1288.49, (66, 68, 68)),
    "69": (515.396, (130, 260)),
    "70": (440.301, (98, 98, 98)),
    "71": (77.309, (514, 1026)),
    "72": (5.945, (24, 48, 96)),
    "73": (57.982, (63, 127, 255)),
    "74": (85.899, (131084,)),
    "75": (8.053, (257, 766)),
    "77": (28.991, (33, 65, 65)),
    "78": (180.389, (512, 1024)),
    "79": (25.77, (262145,)),
    "81": (4.832, (318, 638)),
}


# the problems


@pytest.mark.parametrize("name", FACTS)
def test_problems_are_kernelbenchs(name):
    problem = kernelbench.PROBLEMS[name]
    gflop, output = FACTS[name]
    assert 2e-9 * problem.macs == pytest.approx(gflop, rel=1e-4)
    input, weight = (torch.empty(size, device="meta") for size in (problem.input_size, problem.weight_size))
    theirs = torch_function(problem.rank)(input, weight, None, *problem.geometry)
    assert theirs.shape == problem.output_size == (problem.batch, problem.out_channels, *output)
    small = kernelbench.shrunk(problem)
    assert (small.geometry, small.filter, small.weight_size) == (problem.geometry, problem.filter, problem.weight_size)
    assert small.macs < 4e8 and min(small.output) >= 1


def test_there_are_seventeen():
    assert list(kernelbench.PROBLEMS) == list(FACTS)


def test_select_by_number_and_by_word():
    assert list(select("kernelbench")) == list(FACTS)
    assert list(select("kernelbench", ["64", "57"])) == ["57", "64"]
    assert list(select("kernelbench", ["1d", "s2"])) == ["79"]
    with pytest.raises(ValueError, match="81: 2d k3 s5"):
        select("kernelbench", ["no such problem"])


def test_roofline_is_the_larger_of_two_times():
    nominal = roofline.Ceilings(copy=4.3e12, rates={"tf32": 4e14, "ieee": 6e13, "bf16": 7.9e14})
    dense, sparse = kernelbench.PROBLEMS["57"], kernelbench.PROBLEMS["81"]

    def us(problem, precision, itemsize):
        return nominal.microseconds(2 * problem.macs, machine.operator_bytes(problem, itemsize), precision)

    assert us(dense, "tf32", 4) == pytest.approx(1546.2, rel=1e-4)
    assert us(dense, "ieee", 4) == pytest.approx(4638.6, rel=1e-4), "three TF32 products beat the float32 units"
    assert us(dense, "bf16", 2) == pytest.approx(782.9, rel=1e-4)
    assert us(sparse, "ieee", 4) == us(sparse, "tf32", 4) == pytest.approx(197.2, rel=1e-3)


# rounding


def test_tf32_keeps_ten_bits():
    ulp = 2.0**-10
    values = torch.tensor([1.0, 1 + ulp, 1 + 0.5 * ulp, 1 + 0.499 * ulp, -1 - 0.5 * ulp, 3e-39, torch.inf, torch.nan])
    nearest = tf32_nearest(values)
    assert nearest[:5].tolist() == [1.0, 1 + ulp, 1 + ulp, 1.0, -1 - ulp], "ties go away from zero"
    assert tf32_truncated(values)[:5].tolist() == [1.0, 1 + ulp, 1.0, 1.0, -1.0]
    assert nearest[6] == torch.inf and nearest[7].isnan()
    many = torch.randn(1000)
    assert torch.equal(tf32_nearest(tf32_nearest(many)), tf32_nearest(many))
    assert ((tf32_nearest(many) - many).abs() <= many.abs() * 2.0**-11).all()
    with pytest.raises(ValueError, match="bfloat16"):
        tf32_nearest(many.bfloat16())


ROUNDED = {"fp32": lambda tensor: tensor, "tf32_nearest": tf32_nearest, "tf32_truncated": tf32_truncated}


@pytest.mark.parametrize("name", ["57", "72", "81"])
@pytest.mark.parametrize("rounding", ROUNDED)
def test_rounding_is_recognised_from_results(name, rounding):
    problem = kernelbench.shrunk(kernelbench.PROBLEMS[name])
    tensors = rivals.Operands(problem, torch.float32, "cpu", "forward").at("contiguous")
    rounded = map(ROUNDED[rounding], tensors)
    result = torch_function(problem.rank)(*rounded, None, *problem.geometry)
    court = judge.Judge(problem, "forward", tensors)
    found, distances = court.rounding((result,))
    assert found == rounding
    assert distances.keys() == ROUNDED.keys()
    others = [distance for which, distance in distances.items() if which != rounding]
    assert distances[rounding] < 1e-6 and min(others) > 1e-4


def test_closest_works_for_gradients():
    case = layer((6, 5), 3, (8, 8), batch=2, stride=2, padding=1)
    input, weight, grad_output = case.tensors()
    gradient = F.conv2d(tf32_nearest(grad_output), tf32_nearest(weight), stride=2, padding=1)
    truths = {name: sample("grad_input", case.problem, grad_output, weight, rounding=name) for name in ROUNDED}
    assert closest(truths, gradient)[0] == "tf32_nearest"
    with pytest.raises(ValueError, match="'tf19'"):
        sample("forward", case.problem, input, weight, rounding="tf19")


# the judge


@pytest.fixture
def courtroom():
    problem = kernelbench.shrunk(kernelbench.PROBLEMS["73"])
    tensors = rivals.Operands(problem, torch.float32, "cpu", "forward").at("contiguous")
    right = F.conv_transpose3d(*tensors, None, *problem.geometry)
    return problem, tensors, right, judge.Judge(problem, "forward", tensors)


def test_judge_accepts_what_each_precision_allows(courtroom):
    problem, tensors, right, court = courtroom

    def rounded(how):
        return F.conv_transpose3d(*map(how, tensors), None, *problem.geometry)

    def complaint(result, precision, native=True):
        return court.complaint((result,), precision, native=(native,), other=(right,))

    assert complaint(right, "ieee") is complaint(right, "tf32") is None
    assert "differs from the definition" in complaint(rounded(tf32_nearest), "ieee")
    assert complaint(rounded(tf32_nearest), "tf32") is None
    assert "differs" in complaint(rounded(tf32_truncated), "tf32")
    assert complaint(rounded(tf32_truncated), "tf32", native=False) is None
    assert complaint(rounded(lambda tensor: tensor.bfloat16().float()), "tf32") is not None
    assert court.error((right,)) < 1e-6 < court.error((rounded(tf32_nearest),)) < 1e-3


def test_judge_sees_one_wrong_element_and_nan(courtroom):
    _, _, right, court = courtroom
    (truth,) = (truths["fp32"] for truths in court._truths)
    sampled = {tuple(index) for index in truth.index.tolist()}
    position = next(
        index for index in ((1, 3, 5, 7, c) for c in range(right.shape[4])) if index not in sampled
    )  # fmt: skip
    damaged = right.clone()
    damaged[position] += 0.5
    assert "where nothing was sampled" in court.complaint((damaged,), "ieee", native=(True,), other=(right,))
    assert court.complaint((damaged,), "ieee", native=(True,), other=None) is None
    damaged[position] = torch.nan
    assert court.complaint((damaged,), "ieee", native=(True,), other=None) == "output holds NaN"


def test_sixteen_bits_are_not_rounded_to_tf32():
    problem = kernelbench.shrunk(kernelbench.PROBLEMS["79"])
    tensors = rivals.Operands(problem, torch.bfloat16, "cpu", "forward").at("contiguous")
    court = judge.Judge(problem, "forward", tensors)
    result = (F.conv_transpose1d(*tensors, None, *problem.geometry),)
    assert court.rounding(result) is None
    assert court.complaint(result, "bf16", native=(True,), other=None) is None


# gradients


TRAINED = layer((9, 7), 4, (8, 6), batch=2, stride=2, padding=1).problem
RESULTS = ("output", "grad_input", "grad_weight", "grad_bias")


def trial(dtype=torch.float32, bias=True, problem=TRAINED):
    """A training step's operands, its results and their judge."""
    operands = rivals.Operands(problem, dtype, "cpu", "forward_backward", bias)
    court = judge.Judge(problem, "forward_backward", operands.at("contiguous"), operands.bias)
    return operands, [result.clone() for result in operands.torch_call("contiguous")()], court


@pytest.mark.parametrize("bias", (True, False))
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16), ids=str)
def test_all_results_of_a_training_step_are_judged(dtype, bias):
    _, results, court = trial(dtype, bias)
    assert len(results) == (4 if bias else 3)
    assert court.complaint(results, "ieee", native=len(results) * (True,), other=None) is None
    assert list(court.errors(results)) == ["forward", "grad_input", "grad_weight", "grad_bias"][: len(results)]
    for index, name in enumerate(RESULTS[: len(results)]):
        wrong = [*results]
        wrong[index] = 1.1 * results[index]
        complaint = court.complaint(wrong, "ieee", native=len(results) * (True,), other=None)
        assert complaint is not None and complaint.startswith(f"{name} differs from the definition")
        wrong[index] = results[index].clone().fill_(torch.nan)
        assert court.complaint(wrong, "ieee", native=len(results) * (True,), other=None) == f"{name} holds NaN"


def test_a_forgotten_bias_is_seen():
    operands, results, court = trial()
    results[0] = results[0] - operands.bias[:, None, None]
    assert court.complaint(results, "ieee", native=4 * (True,), other=None).startswith("output differs")


def test_a_part_of_a_long_sum_that_is_missing_is_seen():
    """An image of 64 in a weight gradient: less than what roundings may do to a sum of terms of one sign."""
    problem = dataclasses.replace(kernelbench.PROBLEMS["64"], batch=64, in_channels=2, out_channels=2, input=(8192,))
    operands, results, court = trial(bias=False, problem=problem)
    assert court.complaint(results, "ieee", native=3 * (True,), other=None) is None
    input, _, grad_output = operands.at("contiguous")
    last = torch.ops.aten.convolution_backward(
        grad_output[-1:], input[-1:], results[2], None, *([1], [0], [1], True, [0], 1, (False, True, False))
    )[1]
    results[2] -= last
    truth = sample("grad_weight", problem, grad_output, input)
    assert truth.matches(results[2], slack=4.0), "the reason for is_close"
    complaint = court.complaint(results, "ieee", native=3 * (True,), other=None)
    assert complaint is not None and complaint.startswith("grad_weight differs") and complaint.endswith("in the rms")


def test_gradients_in_tf32_are_held_to_rounding_to_nearest():
    operands, results, court = trial(bias=False)
    input, weight, grad_output = map(tf32_nearest, operands.at("contiguous"))
    leaves = input.requires_grad_(), weight.requires_grad_()
    output = F.conv_transpose2d(*leaves, None, *TRAINED.geometry)
    rounded = [output.detach(), *torch.autograd.grad(output, leaves, grad_output)]
    for index in range(3):
        mixed = [*results]
        mixed[index] = rounded[index]
        assert court.complaint(mixed, "tf32", native=3 * (True,), other=None) is None
        assert court.complaint(mixed, "ieee", native=3 * (True,), other=None).startswith(RESULTS[index])


# the zoo


def test_the_zoo():
    """Sums over its 128 layers, and the shapes that PyTorch makes of each."""
    assert len(zoo.MODELS) == 36 and len(zoo.LAYERS) == 128
    assert sum(entry.mode == "train" for entry in zoo.LAYERS.values()) == 64
    assert sum(entry.bias for entry in zoo.LAYERS.values()) == 83
    problems = [entry.problem for entry in zoo.LAYERS.values()]
    assert sum(2e-9 * problem.macs for problem in problems) == pytest.approx(2764.87, rel=1e-5)
    for problem in problems:
        input, weight = (torch.empty(size, device="meta") for size in (problem.input_size, problem.weight_size))
        assert torch_function(problem.rank)(input, weight, None, *problem.geometry).shape == problem.output_size


def test_layers_of_the_zoo_are_selected_by_words():
    assert list(select("zoo", ["dcgan-64/64to3@32"])) == ["dcgan-64/64to3@32"]
    assert list(select("zoo", ["HiFi-GAN", "k4", "train"])) == [
        "hifigan-train/up2-128to64-k4s2@2048",
        "hifigan-train/up3-64to32-k4s2@4096",
    ]
    assert len(select("zoo", train=True)) == 64 and len(select("zoo")) == 128
    assert all(entry.mode == "train" for entry in select("zoo", ["2d"], train=True).values())
    with pytest.raises(ValueError, match=r"matches no layer of zoo:\n  dcgan-64/100to512@1: 2d k4 s1 100->512 1x1 b64"):
        select("zoo", ["alexnet"])
    with pytest.raises(ValueError, match="suite: 'garden'; legal are kernelbench, zoo"):
        select("garden")
