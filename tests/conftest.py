"""Fixtures that all tests share: seeds, forced backends, and memory that is NaN until someone writes it."""

from __future__ import annotations

import os

import pytest
import torch

import convt
from convt import _C
from reference import poisoned

# What somebody tuned on this machine is not what is tested.
os.environ["CONVT_CHOICES"] = "off"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    devices = [device for device in _C.cuda_devices() if device["capability"] >= (8, 0)]
    if devices:
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU of compute capability 8.0 or a build without CUDA"))


# After one of these every later call on the GPU fails, whatever it is.
LOST = ("illegal memory access", "misaligned address", "illegal instruction", "unspecified launch failure")


def pytest_exception_interact(node: pytest.Item | pytest.Collector, call: pytest.CallInfo) -> None:
    if call.excinfo is not None and any(words in str(call.excinfo.value) for words in LOST):
        node.session.shouldstop = "the GPU's context is lost"


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def one_thread():
    """For small problems: one thread is enough, and does not wait for a second one that is busy elsewhere."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def torch_switches():
    """PyTorch's own TF32 switches may be set; afterwards they are as before."""
    cudnn = torch.backends.cudnn
    both = (getattr(cudnn, name, None) for name in ("conv", "rnn"))
    parts = [part for part in both if hasattr(part, "fp32_precision")]
    # torch.testing._internal forbids plain assignments to these flags for the rest of the process.
    with torch.backends.__allow_nonbracketed_mutation():
        saved = [part.fp32_precision for part in parts] or cudnn.allow_tf32
        yield
        for part, value in zip(parts, saved if parts else (), strict=True):
            part.fp32_precision = value
        if not parts:
            cudnn.allow_tf32 = saved


@pytest.fixture
def poison():
    """What native code must not read is NaN."""
    with poisoned():
        yield


@pytest.fixture(params=["native", "aten"])
def backend(request, poison):
    """Every test that takes this runs twice, once with each backend forced."""
    with convt.backend(request.param):
        yield request.param


@pytest.fixture
def native(poison):
    """Native code forced, memory poisoned."""
    with convt.backend("native"):
        yield
