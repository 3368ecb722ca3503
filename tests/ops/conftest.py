"""Tiny problems, and GPUs that are not there."""

import pytest

from convt import _C
from convt import plan as planning
from pretended import fresh_plans, gpu, play, rehearsed


@pytest.fixture(autouse=True)
def quick(one_thread):
    """All of these are small."""


@pytest.fixture
def machine(monkeypatch):
    """A build with CUDA on a machine with an old and a new GPU; no plan from elsewhere, and none is left behind."""
    gpus = gpu("Old", (7, 5)), gpu("New", (8, 6))
    monkeypatch.setattr(planning, "cuda_devices", lambda: gpus)
    build = _C.build_info() | {"cuda": "13.0.88"}
    monkeypatch.setattr(_C, "build_info", lambda: build)
    with fresh_plans():
        yield build


@pytest.fixture
def player(machine, monkeypatch):
    """Kernels that are played in float64, on tensors that seem to be on the new GPU."""
    with rehearsed(play(monkeypatch)) as made:
        yield made
