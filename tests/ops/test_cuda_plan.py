"""What a GPU's plan depends on, without a GPU: capability, build, operator, and all that a CudaPlan is made of."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

import convt
from convt import _C, delegation, heuristics, operators, ops, settings
from convt import plan as planning
from convt.plan import cuda_plan, dense_strides, forced_kernel, plan
from convt.problem import Geometry, forward_problem
from pretended import gpu

GEOMETRY = Geometry((2, 2), (1, 1), (0, 0), 1, (1, 1))
PROBLEM = forward_problem((2, 16, 9, 9), (16, 24, 4, 4), None, GEOMETRY)
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def key(size, dtype=torch.float32, index=1, strides=None):
    """What operators know of a tensor on a GPU."""
    return size, strides or dense_strides(size, False), dtype, torch.device("cuda", index), torch.strided


def call(dtype=torch.float32, index=1, input_strides=None, bias=None, precision="ieee", kernel=None, backend="auto"):
    operands = key(PROBLEM.input_size, dtype, index, input_strides), key(PROBLEM.weight_size, dtype, index)
    bias_key = None if bias is None else ((24,), (bias,), dtype, torch.device("cuda", index), torch.strided)
    return operators._forward_call(*operands, bias_key, GEOMETRY, backend, precision, kernel)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_operator_may_be_native(machine, dtype):
    device = torch.device("cuda", 1)
    for operator in planning.OPERATORS:
        for requested in ("native", "aten"):
            choice = plan(PROBLEM, operator, dtype, device, False, requested)
            assert str(choice) == f"{requested} (forced by convt.backend({requested!r}))"
        assert plan(PROBLEM, operator, dtype, device).reason == "rule for GPUs"


def with_geometry(size, weight, **changes):
    rank = len(size) - 2
    geometry = Geometry((1,) * rank, (0,) * rank, (0,) * rank, 1, (1,) * rank)._replace(**changes)
    return forward_problem(size, weight, None, geometry)


GROUPED = with_geometry((2, 64, 9, 9), (64, 64, 3, 3), groups=2)
VOLUME = with_geometry((2, 64, 9, 9, 9), (64, 64, 2, 2, 2), stride=(2, 2, 2))
WIDE = with_geometry((2, 192, 9, 9), (192, 192, 4, 4), stride=(2, 2))
DENSE, ODD = (with_geometry((2, 128, size, size), (128, 128, 3, 3)) for size in (10, 9))
PIXEL = with_geometry((2, 128, 1, 1), (128, 256, 4, 4))
NARROW = with_geometry((2, 16, 9, 9), (16, 16, 3, 3))


@pytest.mark.parametrize("operator", planning.OPERATORS)
def test_the_rule_for_gpus(operator):
    """What native code is certain to be better at, and what cuDNN is."""

    def chosen(problem, dtype=torch.bfloat16, channels_last=False):
        return heuristics.choose_cuda(problem, operator, dtype, channels_last)

    assert chosen(GROUPED) == chosen(WIDE, torch.float64) == chosen(NARROW) == "native"
    assert (
        chosen(WIDE) == chosen(WIDE, channels_last=True) == chosen(DENSE, channels_last=True) == chosen(PIXEL) == "aten"
    )
    pixels = with_geometry((4096, 512, 1, 1), (512, 512, 4, 4))
    assert chosen(pixels, torch.float32) == ("native" if operator == "forward" else "aten")
    # A step that is short is native whole where two operators are, but where one of them gains or loses too much.
    assert heuristics.is_light(VOLUME, torch.float32) and chosen(VOLUME, torch.float32) == "native"
    assert heuristics.is_light(PIXEL, torch.float32) and chosen(PIXEL, torch.float32) == chosen(pixels, torch.float32)
    image = with_geometry((64, 64, 32, 32), (64, 3, 4, 4), stride=(2, 2), padding=(1, 1))
    assert heuristics.is_light(image, torch.float32) and chosen(image) == "native"
    assert chosen(image, torch.float32) == ("aten" if operator == "grad_input" else "native")
    # Warpgroups multiply dense layers; grad_weight copies rows past the registers where they have an even length.
    long = [with_geometry((64, 128, size, size), (128, 128, 3, 3)) for size in (100, 99)]
    assert not any(heuristics.is_light(problem, torch.bfloat16) for problem in long)
    halved = [with_geometry((128, 128, 64, 64), (128, 64, k, k), stride=(2, 2)) for k in (4, 3)]
    assert not any(heuristics.is_light(problem, torch.bfloat16) for problem in halved)
    if operator == "grad_weight":
        whole = [chosen(problem, channels_last=True) for problem in halved]
        assert whole == ["native", "aten"], "tiles of 128 by 256 without waste"
    assert [chosen(problem) for problem in long] == ["native", "aten" if operator == "grad_weight" else "native"]
    assert chosen(DENSE) == chosen(ODD) == chosen(VOLUME) == "native"
    strict = heuristics.choose_cuda(WIDE, operator, torch.float32, False, "ieee")
    assert strict == "native", "cuDNN has nothing but CUDA cores for float32 that is not rounded"


def test_layers_that_are_pytorchs_altogether(machine):
    """All operators that a call records, or some of them where a step is too short to lead it through Python."""

    def left(problem, recorded, dtype=torch.float32, precision="tf32", last=False, bias=False):
        geometry = Geometry(problem.stride, problem.padding, problem.output_padding, problem.groups, problem.dilation)
        strides = planning.dense_strides(problem.input_size, last)
        added = key((problem.out_channels,), dtype) if bias else None
        keys = key(problem.input_size, dtype, strides=strides), key(problem.weight_size, dtype), added
        return delegation._is_atens(*keys, geometry, precision, recorded)

    def natives(problem, dtype, last):
        return [heuristics.choose_cuda(problem, name, dtype, last) for name in planning.OPERATORS].count("native")

    deep = with_geometry((2, 512, 9, 9), (512, 512, 4, 4), stride=(2, 2))
    assert left(deep, True) and left(deep, False)
    assert not left(WIDE, True, precision="ieee") and not left(GROUPED, True) and not left(NARROW, True)
    thin = with_geometry((64, 64, 32, 32), (64, 3, 4, 4), stride=(2, 2), padding=(1, 1))
    assert heuristics.is_light(thin, torch.float32) and natives(thin, torch.float32, False) == 2
    assert not left(thin, True) and not left(thin, False), "one operator gains too much"
    drop = with_geometry((64, 100, 1, 1), (100, 512, 4, 4))
    half = torch.bfloat16
    assert natives(drop, torch.float32, False) == 1
    assert not left(drop, True) and left(drop, True, half)
    short = with_geometry((8, 512, 4, 4), (512, 512, 3, 3), stride=(2, 2))
    assert heuristics.is_light(short, torch.float32) and natives(short, torch.float32, False) == 1
    assert left(short, True)
    # The sum of a bias' gradient is worth a node of our own, unless that costs more.
    wide = with_geometry((64, 512, 32, 32), (512, 512, 5, 5), stride=(2, 2))
    assert left(wide, True, half) and left(wide, False, half, bias=True) and not left(wide, True, half, bias=True)
    # So is the addition of a bias, which cuDNN leaves to another pass.
    less = with_geometry((64, 512, 32, 32), (512, 512, 4, 4), stride=(2, 2))
    assert left(less, False, half) and not left(less, False, half, bias=True)
    assert left(deep, True, bias=True)
    little = with_geometry((4, 512, 32, 32), (512, 512, 5, 5), stride=(2, 2))
    assert not heuristics.is_light(little, half) and left(little, True, half, bias=True)
    large = with_geometry((128, 64, 128, 128), (64, 3, 4, 4), stride=(2, 2), padding=(1, 1))
    assert not heuristics.is_light(large, torch.float32) and not left(large, True)
    # Channels_last ones as well, if PyTorch's gradients have the promised strides.
    assert left(WIDE, True, torch.bfloat16, last=True) and left(WIDE, False, torch.bfloat16, last=True)
    assert not left(thin, True, last=True)
    one = with_geometry((4, 384, 6, 6, 6), (384, 64, 3, 3, 3), stride=(2, 2, 2), padding=(1, 1, 1))
    assert natives(one, torch.bfloat16, True) == 1 and heuristics.is_light(one, torch.bfloat16)
    assert left(one, True, torch.bfloat16, last=True) and left(one, True, torch.bfloat16)
    for size, weight in (((64, 100, 1, 1), (100, 512, 4, 4)), ((8, 512, 4, 4), (512, 512, 1, 1))):
        open_layout = with_geometry(size, weight, stride=(2, 2))
        assert not left(open_layout, True, torch.bfloat16, last=True), "whose strides are whoever's"


def test_plans_belong_to_a_device(machine):
    assert plan(PROBLEM, "forward", torch.float32, torch.device("cuda", 1)).backend == "native"
    old = plan(PROBLEM, "forward", torch.float32, torch.device("cuda", 0))
    assert old.backend == "aten"
    assert old.reason == (
        "native: Old (cuda:0) has compute capability 7.5 and the CUDA kernels need 8.0 or later: use "
        "convt.backend('aten')"
    )
    assert call(index=0).cuda is None and not call(index=0).native
    assert call(index=1).cuda is not None


def test_forced_on_an_old_gpu(machine):
    with pytest.raises(RuntimeError, match=r"cannot compute forward: .*7\.5.*8\.0 or later.*convt\.backend\('aten'\)"):
        plan(PROBLEM, "forward", torch.float32, torch.device("cuda", 0), False, "native")
    with pytest.raises(RuntimeError, match="compute capability 7"):
        plan(PROBLEM, "grad_input", torch.float32, torch.device("cuda", 0), False, "native")


def test_a_build_without_cuda_says_how_to_get_it(machine):
    machine["cuda"] = None
    message = "this build of convt has no CUDA kernels: reinstall with nvcc on PATH and CONVT_CUDA=on"
    with pytest.raises(RuntimeError, match=f"native: {message}; 'auto' and 'aten' can"):
        plan(PROBLEM, "forward", torch.float32, "cuda", False, "native")
    assert plan(PROBLEM, "forward", torch.float32, "cuda").reason == f"native: {message}"


def test_a_driver_that_is_too_old(machine, monkeypatch):
    monkeypatch.setattr(planning, "cuda_devices", tuple)
    choice = plan(PROBLEM, "forward", torch.float32, "cuda:1")
    assert choice.backend == "aten" and "cannot open cuda:1: it needs a driver for CUDA 13.0" in choice.reason


@pytest.mark.parametrize("device", ("xpu", "mps", "meta"))
def test_other_devices(device):
    with pytest.raises(RuntimeError, match=rf"no native code for device '{device}', only for 'cpu' and 'cuda'"):
        plan(PROBLEM, "forward", torch.float32, device, False, "native")
    assert plan(PROBLEM, "forward", torch.float32, device).backend == "aten"


def test_everything_that_matters_makes_its_own_plan(machine):
    calls = [
        call(),
        call(precision="tf32"),
        call(kernel="simt"),
        call(bias=1),
        call(bias=0),
        call(input_strides=(0, 81, 9, 1)),
        call(input_strides=dense_strides(PROBLEM.input_size, True)),
        *(call(dtype) for dtype in DTYPES[1:]),
    ]
    assert len({id(made.cuda) for made in calls}) == len(calls)
    assert call() is calls[0], "the same call, the same plan"
    assert calls[6].strides == dense_strides(PROBLEM.output_size, True)
    assert calls[2].cuda.kernel == "simt"


def test_an_empty_batch_needs_no_kernel(machine):
    empty = key((0, 16, 9, 9)), key(PROBLEM.weight_size)
    made = operators._forward_call(*empty, None, GEOMETRY, "native", "ieee", None)
    assert made.empty and not made.native and made.cuda is None


@pytest.mark.parametrize("size", ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6), (0, 3, 1, 5)))
def test_dense_strides_are_pytorchs(size):
    assert dense_strides(size, False) == torch.empty(size).stride()
    layout = {4: torch.channels_last, 5: torch.channels_last_3d}.get(len(size), torch.contiguous_format)
    assert dense_strides(size, True) == torch.empty(size, memory_format=layout).stride()


def test_the_plan_is_printed_once(machine, capfd, monkeypatch):
    monkeypatch.setenv("CONVT_PRINT_PLAN", "1")
    for _ in range(3):
        made = call(torch.bfloat16)
    printed = capfd.readouterr().err.splitlines()
    assert len(printed) == 2, printed
    assert "-> native (rule for GPUs)" in printed[0]
    assert f"-> {made.cuda.kernel} {made.cuda.config}, " in printed[1] and "predicted" in printed[1]


def test_cuda_plan_needs_no_gpu():
    made = cuda_plan(PROBLEM, torch.bfloat16, bias=True)
    assert made.predicted_us > 0 and made.workspace_bytes >= 0
    on_another = cuda_plan(PROBLEM, torch.bfloat16, device=gpu("A100", (8, 0)), channels_last=True)
    assert on_another.kernel in settings.KERNELS
    with pytest.raises(RuntimeError, match="cannot open cuda:99"):
        cuda_plan(PROBLEM, device="cuda:99")
    with pytest.raises(RuntimeError, match="cannot open cpu"):
        cuda_plan(PROBLEM, device="cpu")


def test_forced_kernel_nests_and_returns():
    assert settings.current_kernel() is None
    with forced_kernel("simt"):
        assert cuda_plan(PROBLEM).kernel == "simt"
        with forced_kernel(None):
            assert settings.current_kernel() is None
        with pytest.raises(KeyError), forced_kernel("depthwise"):
            raise KeyError
        assert settings.current_kernel() == "simt"
    assert settings.current_kernel() is None
    for name in _C.cuda_configs():
        forced_kernel(name)
    with pytest.raises(ValueError, match=r"kernel must be one of 'implicit_gemm', 'depthwise', 'simt'.*got 'mma'"):
        forced_kernel("mma")


def test_kernels_are_forced_for_operators_apart():
    def forced():
        return [settings.current_kernel(operator) for operator in planning.OPERATORS]

    with forced_kernel("simt"):
        assert forced() == 3 * ["simt"]
        with forced_kernel(None, "forward"), forced_kernel("depthwise", ("grad_weight",)):
            assert forced() == [None, "simt", "depthwise"]
        assert forced() == 3 * ["simt"]
    assert forced() == 3 * [None]
    with pytest.raises(ValueError, match="operators must be one of 'forward', 'grad_input', 'grad_weight', got 'all'"):
        forced_kernel("simt", "all")


def test_a_forced_kernel_that_cannot_says_why():
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        cuda_plan(PROBLEM, torch.float32, kernel="depthwise")
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        cuda_plan(PROBLEM, torch.float64, kernel=_C.cuda_configs()[0])


# Launching


class FakePlan:
    def __init__(self, workspace_bytes):
        self.workspace_bytes = workspace_bytes


class Located:
    """Stands in for a tensor on the second GPU."""

    device = torch.device("cuda", 1)

    def __init__(self, pointer):
        self.data_ptr = lambda: pointer


@pytest.fixture
def launches(monkeypatch):
    """What reaches _C.cuda_run."""
    seen = []
    monkeypatch.setattr(_C, "cuda_run", lambda *args: seen.append(args), raising=False)
    monkeypatch.setattr(operators, "_raw_stream", lambda index: 1000 + index)
    return seen


def test_pointers_stream_and_workspace(launches, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "empty", lambda *size, **how: asked.append((size, how)) or Located(40))
    tensors = Located(10), Located(20), Located(30), Located(50)
    with_workspace, without = FakePlan(512), FakePlan(0)
    operators._launch(with_workspace, *tensors)
    assert launches.pop() == (with_workspace, 10, 20, 30, 50, 40, 1, 1001)
    assert asked == [((512,), {"dtype": torch.uint8, "device": torch.device("cuda", 1)})]
    operators._launch(without, *tensors[:2], None, tensors[3])
    assert launches.pop() == (without, 10, 20, 0, 50, 0, 1, 1001)
    assert len(asked) == 1


def test_without_memory_nothing_is_launched(launches, monkeypatch):
    def empty(*_, **__):
        raise torch.cuda.OutOfMemoryError("no memory")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(torch.cuda.OutOfMemoryError):
        operators._launch(FakePlan(512), Located(1), Located(2), None, Located(3))
    assert not launches


def test_plain_tensors_of_a_gpu_are_recognised():
    """By their dispatch keys: a fake tensor's are the same, but for those that make it fake."""
    keys = torch._C.DispatchKey
    with FakeTensorMode():
        fake = torch.empty(2, device="cuda")
        plain = torch._C._dispatch_keys(fake).remove(keys.Python).remove(keys.PythonTLSSnapshot)
        assert not ops._skips_dispatch(fake)
    here = torch.empty(2)
    assert frozenset((plain.raw_repr(), torch._C._dispatch_keys(here).raw_repr())) == ops._PLAIN
    assert ops._skips_dispatch(here, None) and not ops._skips_dispatch(here, torch.empty(2, device="meta"))


def test_fake_tensors_of_a_gpu_need_neither_gpu_nor_plan():
    with FakeTensorMode(), convt.backend("native"):
        input = torch.empty(2, 16, 9, 9, device="cuda", dtype=torch.bfloat16).to(memory_format=torch.channels_last)
        weight = torch.empty(16, 24, 4, 4, device="cuda", dtype=torch.bfloat16)
        output = convt.conv_transpose2d(input, weight, stride=2, padding=1)
    assert output.shape == PROBLEM.output_size and output.device == torch.device("cuda", 0)
    assert output.is_contiguous(memory_format=torch.channels_last)
