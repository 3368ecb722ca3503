"""convt.backend and convt.precision: nesting, exceptions, decorators, threads, and PyTorch's own switches."""

from __future__ import annotations

import threading

import pytest
import torch

import convt
from convt import operators, settings
from versions import has_fp32_precision


def test_backend_nests_and_returns():
    assert convt.current_backend() == "auto"
    with convt.backend("native"):
        with convt.backend("aten"):
            assert convt.current_backend() == "aten"
        assert convt.current_backend() == "native"
    assert convt.current_backend() == "auto"


@pytest.mark.parametrize(
    ("context", "value", "current"),
    [
        (convt.backend, "native", convt.current_backend),
        (convt.precision, "ieee", convt.current_precision),
    ],
)
def test_restored_after_an_exception_and_usable_again(context, value, current):
    before, manager = current(), context(value)
    for _ in range(2):
        with pytest.raises(KeyError), manager:
            assert current() == value
            raise KeyError
        assert current() == before
    with manager, manager:
        assert current() == value
    assert current() == before


def test_as_decorators():
    @convt.backend("aten")
    @convt.precision("ieee")
    def inside(depth):
        assert depth == 0 or inside(depth - 1)
        return convt.current_backend(), convt.current_precision()

    assert inside(2) == ("aten", "ieee")
    assert convt.current_backend() == "auto"


@pytest.mark.parametrize("value", ("cudnn", "", None, 1, "Native"))
def test_wrong_names(value):
    with pytest.raises(ValueError, match="backend must be one of 'auto', 'native', 'aten', got"):
        convt.backend(value)
    with pytest.raises(ValueError, match="precision must be one of 'ieee', 'tf32', got"):
        convt.precision(value)


def test_holds_in_other_threads():
    seen = []
    with convt.backend("native"):
        thread = threading.Thread(target=lambda: seen.append(convt.current_backend()))
        thread.start()
        thread.join()
    assert seen == ["native"]


def test_the_forced_backend_runs(monkeypatch):
    ran = []
    original, convolution = operators._C.forward, torch.convolution
    monkeypatch.setattr(operators._C, "forward", lambda *a: (ran.append("native"), original(*a))[1])
    monkeypatch.setattr(torch, "convolution", lambda *a: (ran.append("aten"), convolution(*a))[1])
    input, weight = torch.randn(1, 2, 3, 3), torch.randn(2, 2, 3, 3)
    for name in ("native", "aten"):
        ran.clear()
        with convt.backend(name):
            convt.functional._conv_transpose2d(input, weight)
            torch.ops.convt.conv_transpose2d(input[:, :, 1:], weight)  # C answers a problem that Python has planned
        assert ran == [name, name]


def test_observers_hear_of_every_change(monkeypatch):
    """Caches of the choice that live elsewhere: told after the change, on the way in and on the way out."""
    heard = []
    monkeypatch.setattr(settings, "observers", [lambda: heard.append(convt.current_backend())])
    with convt.backend("native"), convt.backend("aten"):
        assert heard == ["native", "aten"]
    assert heard == ["native", "aten", "native", "auto"]


def test_a_change_is_seen_by_a_call_already_made(backend):
    """The same problem under one backend and then the other: nothing remembers the first choice."""
    input, weight = torch.randn(1, 3, 4, 4), torch.randn(3, 2, 3, 3, requires_grad=True)
    for name in ("native", "aten", "auto", "native"):
        with convt.backend(name):
            output = convt.conv_transpose2d(input, weight)
            if name == "native":
                assert type(output.grad_fn).__name__ == "ContractionBackward"


def test_precision_follows_allow_tf32(torch_switches):
    for allowed, expected in ((True, "tf32"), (False, "ieee"), (True, "tf32")):
        torch.backends.cudnn.allow_tf32 = allowed
        assert convt.current_precision() == expected
        with convt.precision("ieee"):
            assert convt.current_precision() == "ieee"
            with convt.precision("tf32"):
                assert convt.current_precision() == "tf32"
        assert convt.current_precision() == expected


@has_fp32_precision
def test_precision_follows_fp32_precision(torch_switches):
    conv = torch.backends.cudnn.conv
    for value, expected in (("ieee", "ieee"), ("tf32", "tf32"), ("ieee", "ieee")):
        conv.fp32_precision = value
        assert convt.current_precision() == expected


def test_an_override_reaches_cudnn_and_leaves(torch_switches):
    torch.backends.cudnn.allow_tf32 = True
    for value in ("ieee", "tf32"):
        with convt.precision(value), settings.cudnn_precision(convt.current_precision()):
            with_override = settings._torch_precision()
        assert with_override == value
    assert torch.backends.cudnn.allow_tf32


def test_both_precisions_are_ieee_on_a_cpu(backend):
    input, weight = torch.randn(1, 8, 9), torch.randn(8, 8, 3)
    with convt.precision("tf32"):
        fast = convt.conv_transpose1d(input, weight)
    with convt.precision("ieee"):
        assert torch.equal(convt.conv_transpose1d(input, weight), fast)
