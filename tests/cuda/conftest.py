"""These tests run twice: on a CPU through its native code, and on a GPU (marked cuda) through the CUDA kernels."""

from __future__ import annotations

import pytest
import torch

import convt


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def device(request):
    """Native code forced, float32 multiplied as float32 unless a test says otherwise."""
    with convt.backend("native"), convt.precision("ieee"):
        yield request.param


@pytest.fixture
def gpu():
    """For what only a GPU has; its users are marked cuda. Starts and ends with PyTorch's cache empty."""
    torch.cuda.empty_cache()
    with convt.backend("native"), convt.precision("ieee"):
        yield "cuda"
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
