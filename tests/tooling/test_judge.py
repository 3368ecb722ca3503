"""KernelBench's problems, TF32's roundings, and the judge of results."""

import pytest
import torch
from torch.nn import functional as F

from convt.bench import judge, machine, rivals, roofline
from convt.testing import closest, kernelbench, layer, sample, tf32_nearest, torch_function
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
    assert list(kernelbench.select()) == list(FACTS)
    assert list(kernelbench.select(["64", "57"])) == ["57", "64"]
    assert list(kernelbench.select(["1d", "s2"])) == ["79"]
    with pytest.raises(ValueError, match="81: 2d k3 s5"):
        kernelbench.select(["no such problem"])


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
