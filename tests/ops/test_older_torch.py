"""What PyTorch 2.4 lacks, taken away from this one: convt imports and computes without it."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from convt import ops

# Each came after 2.4: the table through which compiled code reads tensors, sets of dispatch keys as integers.
WITHOUT = {
    "exchange table": "del torch.Tensor.__dlpack_c_exchange_api__",
    "raw keys": "del torch._C.DispatchKeySet.raw_repr",
}

PROGRAM = """
import torch
{without}
import convt
from torch.nn import functional as F

for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    x = torch.randn(2, 4, 6, 5, dtype=dtype, requires_grad=True)
    w = torch.randn(4, 3, 3, 2, dtype=dtype, requires_grad=True)
    b = torch.randn(3, dtype=dtype, requires_grad=True)
    with convt.backend("native"):
        ours = convt.conv_transpose2d(x, w, b, stride=(2, 1))
        gradients = torch.autograd.grad(ours.square().mean(), (x, w, b))
    theirs = F.conv_transpose2d(x, w, b, stride=(2, 1))
    expected = torch.autograd.grad(theirs.square().mean(), (x, w, b))
    loose = {{"rtol": 3e-2, "atol": 3e-2}} if dtype.itemsize == 2 else {{"rtol": 1e-4, "atol": 1e-5}}
    torch.testing.assert_close((ours, *gradients), (theirs, *expected), **loose)
for wrong in (torch.randn(2, 3, 5).to_sparse(), [1.0]):
    try:
        convt._C.grad_bias(wrong, torch.empty(3))
    except ValueError as error:
        assert "is not a strided tensor" in str(error)
    else:
        raise AssertionError("taken")
print("right")
"""


@pytest.mark.parametrize("what", WITHOUT)
def test_it_computes_without(what):
    if what == "exchange table" and not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        pytest.skip("this PyTorch has no exchange table")
    if what == "raw keys" and not hasattr(torch._C.DispatchKeySet, "raw_repr"):
        pytest.skip("this PyTorch has no raw keys")
    program = PROGRAM.format(without=WITHOUT[what])
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout == "right\n"


def test_keys_without_integers_are_a_cpus(monkeypatch):
    assert len(ops._PLAIN) >= 1
    monkeypatch.setattr(ops, "_raw", repr)
    (plain,) = ops._plain_keys()
    assert "CPU" in plain and "CUDA" not in plain
