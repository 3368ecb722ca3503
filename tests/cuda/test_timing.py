"""What `convt bench` times on a GPU: the call, and not the CPU that launches it."""

import time

import pytest
import torch

from convt.bench import devices
from convt.timing import Apart, Parts, interleaved

pytestmark = pytest.mark.cuda

LAUNCH = 1e-3  # seconds


def test_launching_is_left_out():
    values = torch.zeros(1 << 10, device="cuda")

    def slowly():
        time.sleep(LAUNCH)
        return values.add_(1)

    whole, parts = interleaved([slowly, Parts(slowly, lambda sums: slowly())], seconds=0.1, device="cuda")
    assert 0 < whole.median < LAUNCH / 4
    assert 0 < parts.first < LAUNCH / 4 and 0 < parts.second < LAUNCH / 4


def test_work_is_not():
    values = torch.zeros(64 << 20, device="cuda")  # 256 MiB, read and written in 0.1 ms at 5 TB/s
    (timing,) = interleaved([lambda: values.add_(1)], seconds=0.1, device="cuda")
    assert timing.median > 5e-5


def test_a_recorded_call_is_replayed():
    values = torch.zeros(1 << 10, device="cuda")
    leaf = torch.ones(1 << 10, device="cuda", requires_grad=True)

    def step():
        (gradient,) = torch.autograd.grad(leaf.square().sum(), leaf)
        values.add_(gradient)  # 2

    recorded = devices.Cuda().recorded(Apart(step))
    warm = values[0].item()
    for _ in range(5):
        recorded()
    assert values.unique().tolist() == [warm + 10]
    (timing,) = interleaved([recorded], seconds=0.05, device="cuda")
    assert 0 < timing.median < LAUNCH
