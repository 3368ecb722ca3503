"""The geometry of one axis against brute force over o + padding == stride * input + dilation * tap."""

from __future__ import annotations

import itertools
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from convt import _C

ORIGINS = (_C.Origin.padded, _C.Origin.aligned)


@st.composite
def axes(draw):
    stride, dilation = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    input, filter = draw(st.integers(1, 9)), draw(st.integers(1, 6))
    output_padding = draw(st.integers(0, max(stride, dilation) - 1))
    room = (input - 1) * stride + dilation * (filter - 1) + output_padding
    padding = draw(st.integers(0, room // 2))
    return _C.Axis(input, filter, stride, padding, output_padding, dilation)


def products(axis):
    """Every (input, tap, output) of the definition whose output exists."""
    for i, k in itertools.product(range(axis.input), range(axis.filter)):
        o = axis.stride * i + axis.dilation * k - axis.padding
        if 0 <= o < axis.output:
            yield i, k, o


@settings(deadline=None, max_examples=300)
@given(axes(), st.sampled_from(ORIGINS))
def test_every_product_of_the_definition_is_where_its_tap_says(axis, origin):
    for i, k, o in products(axis):
        shift, phase = axis.tap(k, origin)
        assert 0 <= phase < axis.stride
        assert axis.output_of(i + shift, phase, origin) == o


@settings(deadline=None, max_examples=300)
@given(axes(), st.sampled_from(ORIGINS))
def test_the_q_grid_holds_every_output_once(axis, origin):
    begin, count = axis.q_grid(origin)
    places = [axis.output_of(q, phase, origin) for q in range(begin, begin + count) for phase in range(axis.stride)]
    assert sorted(o for o in places if 0 <= o < axis.output) == list(range(axis.output))
    # No q position is idle.
    for q in (begin, begin + count - 1):
        assert any(0 <= axis.output_of(q, phase, origin) < axis.output for phase in range(axis.stride))
    if origin == _C.Origin.aligned:
        assert (begin, count) == (0, math.ceil(axis.output / axis.stride))


@settings(deadline=None, max_examples=300)
@given(axes(), st.sampled_from(ORIGINS))
def test_phase_ranges_are_the_outputs_that_exist(axis, origin):
    begin, count = axis.q_grid(origin)
    for phase in range(axis.stride):
        first, last = axis.phase_range(phase, origin)
        inside = [q for q in range(begin - 2, begin + count + 2) if 0 <= axis.output_of(q, phase, origin) < axis.output]
        assert inside == list(range(first, last))


@settings(deadline=None, max_examples=300)
@given(axes(), st.sampled_from(ORIGINS), st.integers(0, 5), st.integers(1, 5))
def test_the_patch_of_a_box_is_what_its_taps_read(axis, origin, skip, extent):
    begin = axis.q_grid(origin)[0] + skip
    read = {q - axis.tap(k, origin)[0] for q in range(begin, begin + extent) for k in range(axis.filter)}
    first, last = axis.patch(begin, begin + extent, origin)
    assert (first, last) == (min(read), max(read) + 1)
    assert last - first == extent + axis.halo(origin)


@settings(deadline=None, max_examples=300)
@given(axes())
def test_the_input_range_of_a_tap_is_its_products(axis):
    for k in range(axis.filter):
        expected = [i for i, tap, _ in products(axis) if tap == k]
        assert list(range(*axis.tap_input_range(k))) == expected


@settings(deadline=None, max_examples=300)
@given(axes())
def test_taps_of_a_phase_are_a_period_apart(axis):
    g = math.gcd(axis.stride, axis.dilation)
    assert axis.tap_period == axis.stride // g
    phases = {}
    for k in range(axis.filter):
        shift, phase = axis.tap(k)
        assert phase % g == 0
        phases.setdefault(phase, []).append((k, shift))
    assert len(phases) == min(axis.stride // g, axis.filter)
    for taps in phases.values():
        for (k, shift), (next_k, next_shift) in itertools.pairwise(taps):
            assert (next_k - k, next_shift - shift) == (axis.stride // g, axis.dilation // g)


def test_sizes_beyond_32_bits():
    axis = _C.Axis(2**33, 3, stride=5, padding=1, dilation=2)
    assert axis.output == (2**33 - 1) * 5 - 2 + 4 + 1
    assert axis.tap_input_range(0) == (1, 2**33)
    begin, count = axis.q_grid(_C.Origin.aligned)
    assert (begin, count) == (0, -(-axis.output // 5))


@pytest.mark.parametrize(
    ("argument", "value"),
    [("input", 0), ("filter", 0), ("stride", 0), ("dilation", -1), ("padding", -1), ("output_padding", -2)],
)
def test_an_illegal_axis_is_refused_by_name(argument, value):
    arguments = {"input": 3, "filter": 2, argument: value}
    with pytest.raises(ValueError, match=rf"^{argument} is {value}; legal: at least [01]$"):
        _C.Axis(**arguments)


@pytest.mark.cuda
@pytest.mark.parametrize("origin", ORIGINS)
def test_the_gpu_computes_the_same_tap_table(origin):
    axis = _C.Axis(50, 300, stride=6, padding=7, output_padding=3, dilation=4)
    assert _C.cuda_taps(axis, origin) == [axis.tap(k, origin) for k in range(axis.filter)]
