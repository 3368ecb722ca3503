"""Many threads, more problems than the cache holds, and switches that change meanwhile: every value is right."""

from __future__ import annotations

import sys
import threading

import pytest
import torch
import torch.nn.functional as F

import convt
from convt import _C, eager, settings
from convt.plan import forced_kernel

THREADS, CALLS = 6, 400


@pytest.fixture(autouse=True)
def switching():
    """Threads take turns as often as Python lets them."""
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    _C.forget_plans()
    yield
    sys.setswitchinterval(interval)
    _C.forget_plans()


def together(work, count=THREADS):
    """work(number) in threads that start at once; what they raise."""
    failures, started = [], threading.Barrier(count)

    def guarded(number):
        started.wait(timeout=60)
        try:
            work(number)
        except BaseException as error:
            failures.append((number, repr(error)))

    threads = [threading.Thread(target=guarded, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=300)
        assert not thread.is_alive()
    assert not failures, failures[:3]


def whole(shape, seed, **options):
    """Small integers: sums of their products are exact in any order and by any kernel."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-4, 5, shape, generator=generator).float().requires_grad_(options.get("grad", False))


def test_values_while_plans_are_evicted(one_thread):
    size, capacity = _C.plan_cache()
    assert size == 0 and capacity == 1024

    def work(number):
        weight = whole((2, 3, 3), number)
        for step in range(CALLS):
            input = whole((1, 2, 1 + (number * 311 + step) % 1500), step)
            assert torch.equal(convt.conv_transpose1d(input, weight), F.conv_transpose1d(input, weight))
            assert _C.plan_cache()[0] <= capacity

    with convt.backend("native"):
        together(work)
        assert 0 < _C.plan_cache()[0] < 1500, "1500 problems do not fit"


def test_values_while_switches_change(one_thread):
    """Backends, precisions and kernels come and go in two threads; calls and backward passes run in the others."""
    done = threading.Event()
    rounds = []

    def switch(number):
        contexts = [
            lambda: convt.backend("native"),
            lambda: convt.backend("aten"),
            lambda: convt.precision("tf32"),
            lambda: forced_kernel("simt"),
        ]
        step = 0
        while not done.is_set():
            with contexts[(step + number) % len(contexts)]():
                pass
            step += 1
        rounds.append(step)

    def call(number):
        for step in range(CALLS // 8):
            size = 2 + step % 7
            input, weight = whole((2, 2, size, size), step, grad=True), whole((2, 3, 3, 3), number, grad=True)
            bias = whole((3,), step, grad=True)
            output = convt.conv_transpose2d(input, weight, bias, stride=2)
            expected = F.conv_transpose2d(input, weight, bias, stride=2)
            assert torch.equal(output, expected)
            grads = torch.autograd.grad(output.sum(), (input, weight, bias))
            for grad, value in zip(grads, torch.autograd.grad(expected.sum(), (input, weight, bias)), strict=True):
                assert torch.equal(grad, value)
            with torch.no_grad():
                assert torch.equal(convt.conv_transpose2d(input, weight), F.conv_transpose2d(input, weight))

    working = THREADS - 2

    def work(number):
        nonlocal working
        if number < 2:
            switch(number)
            return
        try:
            call(number)
        finally:
            with lock:
                working -= 1
                if not working:
                    done.set()

    lock = threading.Lock()
    together(work)
    assert min(rounds) > 0
    settings._set_backend("auto")  # contexts that overlap in two threads return in any order
    settings._precision, settings._kernels = None, dict.fromkeys(settings.OPERATORS)
    settings._changed()


def test_the_last_switch_holds(one_thread):
    """Whatever order threads switch in, the plans that are used afterwards are those of the last one."""

    def switch(number):
        for step in range(200):
            settings._set_backend(("native", "aten", "auto")[(number + step) % 3])

    try:
        together(switch)
        assert eager._numbers[settings.in_force()] == _last(eager._obey)
    finally:
        settings._set_backend("auto")


def _last(obey):
    """The number that the C side was told."""
    told = []
    real = _C.obey
    try:
        eager._C.obey = lambda number: (told.append(number), real(number))
        obey()
    finally:
        eager._C.obey = real
    return told[-1]


def test_numbers_of_settings_are_few():
    before = len(eager._numbers)
    for _ in range(50):
        with convt.backend("native"), convt.precision("tf32"), forced_kernel("simt"):
            pass
    assert len(eager._numbers) <= before + 3


def test_a_plan_made_across_a_change_is_dropped(monkeypatch):
    """What was asked before the change, and answered after it, is not remembered under either."""
    input, weight = whole((1, 2, 4, 4), 0), whole((2, 3, 3, 3), 1)
    real = eager._forward
    expected = F.conv_transpose2d(input, weight)
    check, changed = eager.operators.check_forward, []

    def change(*args):
        if not changed:
            changed.append(True)
            settings._set_backend("aten")
        return check(*args)

    try:
        settings._set_backend("native")
        monkeypatch.setattr(eager.operators, "check_forward", change)
        assert torch.equal(convt.conv_transpose2d(input, weight), expected)
        assert changed and _C.plan_cache()[0] == 0 and real is eager._forward
        convt.conv_transpose2d(input, weight)
        assert _C.plan_cache()[0] == 1
    finally:
        settings._set_backend("auto")
