"""Fresh compilers for every test."""

from __future__ import annotations

import pytest
import torch
import torch._dynamo
import torch._functorch.config
import torch._inductor.config
from torch._dynamo.utils import counters

from convt import settings
from graphs import needs_inductor


@pytest.fixture(autouse=True)
def quick(one_thread):
    """All of these are small."""


@pytest.fixture(autouse=True)
def fresh():
    """Nothing compiled before, neither in this process nor in a cache on disk; warm caches elsewhere stay warm."""
    torch._dynamo.reset()
    counters.clear()
    with torch._functorch.config.patch(enable_autograd_cache=False), torch._inductor.config.patch(fx_graph_cache=False):
        yield
    torch._dynamo.reset()


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Float32 multiplied as float32, whoever does it."""
    with settings.cudnn_precision("ieee"):
        yield request.param


@pytest.fixture(params=["aot_eager", "inductor"])
def compiler(request):
    if request.param == "inductor":
        needs_inductor("device" in request.fixturenames and request.getfixturevalue("device"))
    return request.param
