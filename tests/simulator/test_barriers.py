"""Every barrier is needed: without it, some schedule of the warps and copies computes something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simulated import CONFIGS, PAIRS, SCHEDULES, Call, operands_of, problem

pytestmark = pytest.mark.simulator

# The names in cuda/kernel/implicit_gemm.hpp, and what a barrier separates.
BARRIERS = {
    "Step": "copies of a filter slab and a patch from the products that read them, and these from the next copies",
    "Staging": "the products from the accumulators' staging in the same memory",
    "Output": "the staging from the output's rows, which other warps have staged",
    "Split": "a part of a sum from the count that says it is there",
}
# A GPU's multiprocessors decide about splits: one has enough to do without.
WHOLE = {"multiprocessors": 1}
# The last slab of filter lies in one stage of the pipeline or another: shifts of any remainder. Two phases along H:
# outputs without phases may leave from registers.
PROBLEMS = [
    problem(1, (channels, 64), (17, 19), (2, taps), (2, 1), padding=1) for channels in (8, 24) for taps in (3, 4, 5, 6)
]
SPLIT = problem(1, (150, 64), (9, 15), 3, padding=1)


def barriers() -> dict[str, int]:
    """Numbers of the barriers by name."""
    text = (Path(__file__).parents[2] / "cuda" / "kernel" / "implicit_gemm.hpp").read_text()
    return {name: int(value) for name, value in re.findall(r"\bk(\w+?)Barrier = (\d+);", text)}


def test_every_barrier_has_its_test():
    numbers = barriers()
    assert set(numbers) == set(BARRIERS)
    assert len(set(numbers.values())) == len(numbers)


def differs(call: Call, kept, schedule: tuple[int, bool], barrier: int) -> bool:
    """Whether leaving the barrier out changes the output; a wild access counts as well."""
    try:
        output, _ = call.play(schedule, barrier)
    except (IndexError, RuntimeError) as error:
        assert "memory" in str(error)
        return True
    return not bool((call.bits(output) == call.bits(kept)).all())


def shows(call: Call, barrier: int) -> bool:
    """Whether some schedule is wrong without the barrier; with it, all is right."""
    kept = call.play()[0]
    assert call.error(kept) <= 1
    shown = any(differs(call, kept, schedule, barrier) for schedule in SCHEDULES)
    assert bool((call.bits(call.play()[0]) == call.bits(kept)).all()), "nothing stays behind"
    return shown


@pytest.mark.parametrize("barrier", [name for name in BARRIERS if name != "Split"])
@pytest.mark.parametrize(("config", "operand"), PAIRS)
def test_without_a_barrier(config, operand, barrier):
    calls = (Call(config, wanted, operand, device=WHOLE) for wanted in PROBLEMS)
    assert any(shows(call, barriers()[barrier]) for call in calls), f"not needed: {BARRIERS[barrier]}"


@pytest.mark.parametrize("config", CONFIGS)
def test_without_a_barrier_in_a_part_of_a_sum(config):
    operands = operands_of(config)
    operand = operands[CONFIGS.index(config) % len(operands)]
    call = Call(config, SPLIT, operand)
    assert call.told["split"] > 1
    assert shows(call, barriers()["Step"])
    assert shows(call, barriers()["Split"])


@pytest.mark.parametrize("config", CONFIGS)
def test_a_sum_in_parts_does_not_depend_on_who_comes_last(config):
    """Order 1 plays the thread blocks of a tile backwards."""
    for operand in operands_of(config)[1::2]:
        call = Call(config, SPLIT, operand)
        assert call.told["split"] > 1
        first, last = call.play((0, False))[0], call.play((1, False))[0]
        assert call.error(first) <= 1
        assert (call.bits(first) == call.bits(last)).all()
