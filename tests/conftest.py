"""Fixtures that all tests share: seeds, forced backends, and memory that is NaN until someone writes it."""

from __future__ import annotations

import pytest
import torch

import convt
from convt import _C


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    devices = [device for device in _C.cuda_devices() if device["capability"] >= (8, 0)]
    if devices:
        return
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU of compute capability 8.0 or a build without CUDA"))


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def poison():
    """What native code must not read is NaN: its scratch memory, and (PyTorch's own switch) every new tensor."""
    filled = torch.utils.deterministic.fill_uninitialized_memory
    deterministic = torch.are_deterministic_algorithms_enabled()
    _C.set_poison(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.empty_strided((2,), (1,)).isnan().all()
    yield
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = filled
    _C.set_poison(False)


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
