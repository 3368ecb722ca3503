"""How a call on a GPU is timed, with both clocks played: what launching takes stays out of it."""

from types import SimpleNamespace

import pytest
import torch

from convt import timing

WRITE = 1e-3  # seconds that the GPU takes to write the buffer
WORK = 1e-4


class Gpu:
    """A queue: what is launched begins when what was launched before has ended, and not before its launch."""

    def __init__(self, monkeypatch):
        self.now, self.free, self.writes = 0.0, 0.0, 0  # now: of the processor
        monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: self.now))
        monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
        monkeypatch.setattr(timing, "_flush_seconds", lambda index: WRITE)
        monkeypatch.setattr(timing, "_flush_buffer", lambda index: self)
        monkeypatch.setattr(timing, "_event", lambda: Event(self))

    def run(self, seconds):
        self.free = max(self.free, self.now) + seconds

    def zero_(self):
        self.writes += 1
        self.run(WRITE)


class Event:
    def __init__(self, gpu):
        self.gpu, self.at = gpu, 0.0

    def record(self):
        self.at = max(self.gpu.free, self.gpu.now)

    def synchronize(self):
        self.gpu.now = max(self.gpu.now, self.at)

    def elapsed_time(self, other):
        return (other.at - self.at) * 1e3


@pytest.fixture
def gpu(monkeypatch):
    return Gpu(monkeypatch)


def launching(gpu, *seconds):
    """A call that takes so long to launch, one time after the other, and then always as long as the last."""
    left = list(seconds)

    def call():
        gpu.now += left.pop(0) if len(left) > 1 else left[0]
        gpu.run(WORK)

    return call


def test_a_launch_is_hidden(gpu):
    (whole,) = timing.interleaved([launching(gpu, 3e-3)], seconds=0.2, device="cuda")
    assert whole.median == pytest.approx(WORK)


def test_both_parts_of_a_call(gpu):
    step = timing.Parts(launching(gpu, 1e-3), lambda value: launching(gpu, 2e-3)())
    (whole,) = timing.interleaved([step], seconds=0.2, device="cuda")
    assert (whole.first, whole.second, whole.median) == pytest.approx((WORK, WORK, 2 * WORK))


def test_a_turn_that_was_launched_too_late_is_taken_again(gpu):
    rival = timing._Gpu(launching(gpu, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 1e-5, 4e-3))
    for _ in range(8):
        assert rival.turn()[0] == pytest.approx(WORK)
    assert rival.launch < 1e-4, "it waits no longer than it has to"
    assert rival.turn()[0] == pytest.approx(WORK)
    assert rival.launch > 2e-3


def test_there_is_an_end_to_waiting(gpu):
    rival = timing._Gpu(launching(gpu, 2e-2))
    begin = gpu.writes
    assert rival.turn()[0] > WORK
    assert gpu.writes - begin <= timing._TRIES * (1 + timing._MARGIN * timing._FURTHEST / WRITE + 1)
