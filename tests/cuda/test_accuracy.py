"""Errors against float64 at the same reduction length: judged by PyTorch's own, and TF32 by exact rounding."""

from __future__ import annotations

import pytest
import torch

import convt
from accuracy import LAYERS, THEIRS, error, operands
from adversarial import FORCED, FUNCTIONS, channels_last
from convt import settings
from convt.plan import forced_kernel
from convt.testing import tf32_nearest
from reference import conv_transpose

ON_A_GPU = [
    pytest.param("cuda", layout, offset, marks=pytest.mark.cuda)
    for layout in ("contiguous", "channels_last")
    for offset in (0.0, 0.5)
]


def run(layer, tensors, layout):
    input = channels_last(tensors[0]) if layout == "channels_last" else tensors[0]
    return FUNCTIONS[layer.rank](input, *tensors[1:], **layer.keywords)


@pytest.mark.parametrize(("device", "layout", "offset"), [("cpu", "contiguous", 0.0), *ON_A_GPU], indirect=["device"])
@pytest.mark.parametrize("dtype", (torch.float32, torch.bfloat16, torch.float16), ids=str)
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_against_pytorch(device, layer, dtype, offset, layout):
    """float32 within twice PyTorch's error, 16 bits within 1.1 times."""
    tensors = operands(layer, dtype, device, offset)
    exact = conv_transpose(*tensors, **layer.keywords)
    with settings.cudnn_precision("ieee"):
        theirs = THEIRS[layer.rank](*tensors, **layer.keywords)
    ours = run(layer, tensors, layout)
    factor = 1.1 if dtype in (torch.bfloat16, torch.float16) else 2.0
    if device == "cpu" and dtype is torch.float32:
        factor = 16.0  # one sum after the other there, against oneDNN's blocks of sums
    (rms, largest), (their_rms, their_largest) = error(ours, exact), error(theirs, exact)
    # A rival that happens to be better than one rounding of the result is no measure.
    rounding = torch.finfo(dtype).eps * exact.abs().mean().item() / 4
    assert rms <= factor * max(their_rms, rounding), f"rms error {rms:.3g}, PyTorch's {their_rms:.3g}"
    limit = 2 * factor * max(their_largest, torch.finfo(dtype).eps * exact.abs().max().item() / 2)
    assert largest <= limit, f"largest error {largest:.3g}, PyTorch's {their_largest:.3g}"


@pytest.mark.parametrize(("device", "layout", "offset"), ON_A_GPU, indirect=["device"])
@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_tf32_against_exact_rounding(device, layer, offset, layout):
    """Within 1.1 times the error of operands that are rounded to nearest, then multiplied and added exactly."""
    tensors = operands(layer, torch.float32, device, offset)
    exact = conv_transpose(*tensors, **layer.keywords)
    rounded = tf32_nearest(tensors[0]), tf32_nearest(tensors[1]), tensors[2]
    emulated = conv_transpose(*rounded, **layer.keywords)
    with convt.precision("tf32"):
        ours = run(layer, tensors, layout)
    (rms, largest), (their_rms, their_largest) = error(ours, exact), error(emulated, exact)
    assert rms <= 1.1 * their_rms, f"rms error {rms:.3g}, rounded to nearest {their_rms:.3g}"
    assert largest <= 1.1 * their_largest + 8 * torch.finfo(torch.float32).eps * exact.abs().max().item()


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True)
@pytest.mark.parametrize("kernel", FORCED["forward"])
def test_forced_kernels(device, kernel):
    """Each kernel by itself: ieee within twice PyTorch's error, TF32 within 1.1 times exact rounding."""
    judged = 0
    for layer in LAYERS:
        tensors = operands(layer, torch.float32, device, 0.0)
        exact = conv_transpose(*tensors, **layer.keywords)
        rounded = tf32_nearest(tensors[0]), tf32_nearest(tensors[1]), tensors[2]
        # Tensor cores keep 22 bits of a product and truncate sums. PyTorch's few roundings of a sum of four terms are
        # less, and the cost model gives those to another kernel.
        share = 2.5 if layer.name == "2d-depthwise" else 2.0
        with settings.cudnn_precision("ieee"):
            rivals = {
                "ieee": (share, THEIRS[layer.rank](*tensors, **layer.keywords)),
                "tf32": (1.1, conv_transpose(*rounded, **layer.keywords)),
            }
        for precision, (factor, rival) in rivals.items():
            with convt.precision(precision), forced_kernel(kernel):
                try:
                    ours = run(layer, tensors, "contiguous")
                except ValueError:
                    continue
            rms, their_rms = error(ours, exact)[0], error(rival, exact)[0]
            rounding = torch.finfo(torch.float32).eps * exact.abs().mean().item() / 4
            label = f"{layer.name} {precision}: rms error {rms:.3g}, rival's {their_rms:.3g}"
            assert rms <= factor * max(their_rms, rounding), label
            judged += 1
    if not judged:
        pytest.skip(f"{kernel} computes none of these layers in float32")


def test_tf32_rounds_and_ieee_does_not(device):
    """The two settings differ on a GPU, by what TF32 rounds away; on a CPU there is only one."""
    layer = LAYERS[1]
    tensors = operands(layer, torch.float32, device, 0.0)
    exact = conv_transpose(*tensors, **layer.keywords)
    errors = {}
    for name in settings.PRECISIONS:
        with convt.precision(name):
            errors[name] = error(run(layer, tensors, "contiguous"), exact)[0]
    assert errors["ieee"] < 1e-5 * exact.abs().mean().item()
    if device == "cpu":
        assert errors["tf32"] == errors["ieee"]
    else:
        assert errors["tf32"] > 20 * errors["ieee"]
