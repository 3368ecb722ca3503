"""What profilers and logs tell: the op, and who computes it; the choice once."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from textwrap import dedent

import pytest
import torch
from torch.autograd.profiler import emit_itt
from torch.profiler import ProfilerActivity, profile

import convt
from convt import operators
from pretended import fresh_plans, gpu, play


def profiled(function):
    """The names of the events of convolutions, each once, in order."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        function()
    names = (event.name for event in profiler.events())
    return list(dict.fromkeys(name for name in names if name.startswith(("convt::", "aten::conv_transpose"))))


def step(module):
    module(torch.ones(2, 3, 5, 5, requires_grad=True)).sum().backward()


@pytest.mark.parametrize("backend", ("native", "aten"))
@pytest.mark.parametrize("kind", ("eager", "compiled"))
def test_the_ranges_name_op_and_backend(kind, backend):
    module = convt.nn.ConvTranspose2d(3, 4, 3, stride=2, dilation=2)
    if kind == "compiled":
        module = torch.compile(module, fullgraph=True, backend="aot_eager")
    with convt.backend(backend):
        step(module)  # what happens once, has
        names = profiled(lambda: step(module))
    if (kind, backend) == ("eager", "aten"):
        assert names == ["aten::conv_transpose2d"], "a call that is left to PyTorch altogether is PyTorch's"
        return
    operators = ("forward", "grad_input", "grad_weight")
    assert {f"convt::{operator} {backend}" for operator in operators} <= set(names)
    assert {"convt::forward", "convt::grad_bias"} <= set(names), "the ops themselves"
    assert names.index("convt::forward") < names.index(f"convt::forward {backend}")


def test_an_empty_batch_is_nobodys():
    assert "convt::forward empty" in profiled(lambda: convt.conv_transpose1d(torch.ones(0, 2, 3), torch.ones(2, 2, 2)))


def test_ranges_reach_other_tools():
    """ITT is told in the same way as nvtx, and needs no GPU."""
    module = convt.nn.ConvTranspose1d(2, 3, 3)
    seen = []
    original = torch.autograd.profiler.record_function.__enter__
    with pytest.MonkeyPatch.context() as patch, convt.backend("native"):
        patch.setattr(
            torch.autograd.profiler.record_function,
            "__enter__",
            lambda self: (seen.append(self.name), original(self))[1],
        )
        module(torch.ones(1, 2, 4))
        assert not seen, "without a profiler there is no range"
        with emit_itt():
            module(torch.ones(1, 2, 4))
    assert seen == ["convt::forward native"]


@pytest.mark.cuda
def test_nvtx_and_kernels_on_a_gpu():
    module = convt.nn.ConvTranspose2d(16, 16, 3, stride=2).cuda()
    with convt.backend("native"), convt.precision("tf32"):
        names = profiled(lambda: module(torch.ones(2, 16, 8, 8, device="cuda")))
        (named,) = (name for name in names if name.startswith("convt::forward "))
        assert named.endswith(" tf32") and named.split()[1] in ("implicit_gemm", "simt", "depthwise")
        with torch.autograd.profiler.emit_nvtx():
            module(torch.ones(2, 16, 8, 8, device="cuda"))


def test_kernels_are_named(monkeypatch):
    """Kernel, configuration and precision, as a GPU's plan tells them."""
    gpus = gpu("Old", (7, 5)), gpu("New", (8, 6))
    monkeypatch.setattr(convt.plan, "cuda_devices", lambda: gpus)
    build = convt._C.build_info() | {"cuda": "13.0.88"}
    monkeypatch.setattr(convt._C, "build_info", lambda: build)
    input, weight = torch.randn(2, 3, 5), torch.randn(3, 4, 3)
    geometry = operators.Geometry((1,), (0,), (0,), 1, (1,))
    with fresh_plans(), convt.backend("native"), convt.precision("tf32"):
        play(monkeypatch)
        names = profiled(lambda: operators.forward(input, weight, None, geometry))
        assert names == ["convt::forward simt played tf32"]
        names = profiled(lambda: operators.grad_input(torch.randn(2, 4, 7).half(), weight.half(), geometry, False))
        assert names == ["convt::grad_input simt played float16"]


# logs


def test_choices_are_logged_once(caplog):
    input, weight = torch.ones(1, 2, 7), torch.ones(2, 3, 5)
    with fresh_plans(), caplog.at_level(logging.INFO, logger="convt"):
        for _ in range(3):
            torch.ops.convt.forward(input, weight, None, [1], [0], [0], 1, [1])
    (told,) = (record for record in caplog.records if record.message.startswith("forward "))
    assert told.name == "convt.plan" and told.levelno == logging.INFO
    assert len({record.message for record in caplog.records}) == len(caplog.records)
    assert told.message.startswith("forward torch.float32 cpu contiguous Problem(batch=1,")
    assert told.message.endswith("-> native (measured rule)")


@pytest.mark.parametrize("logs", ("+convt", None))
def test_torch_logs(logs):
    program = """
        import torch, convt
        for _ in range(2):
            convt.conv_transpose1d(torch.ones(1, 2, 7), torch.ones(2, 3, 5))
    """
    environment = {name: value for name, value in os.environ.items() if name not in ("CONVT_PRINT_PLAN", "TORCH_LOGS")}
    if logs is not None:
        environment["TORCH_LOGS"] = logs
    run = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    assert run.stderr.count("forward torch.float32 cpu contiguous Problem(") == (logs is not None)
