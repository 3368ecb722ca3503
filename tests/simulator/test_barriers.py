"""Every barrier is needed: without it, some schedule of the warps and copies computes something else."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from simulated import CONFIGS, OPERANDS, SCHEDULES, Call, problem

pytestmark = pytest.mark.simulator

# The names in cuda/kernel/implicit_gemm.hpp, and what a barrier separates.
BARRIERS = {
    "Step": "copies of a filter slab and a patch from the products that read them, and these from the next copies",
    "Staging": "the products from the accumulators' staging in the same memory",
    "Output": "the staging from the output's rows, which other warps have staged",
}
# A GPU's multiprocessors decide about splits: one has enough to do without.
WHOLE = {"multiprocessors": 1}
PROBLEMS = {
    "rows": (problem(1, (24, 128), (17, 19), 3, padding=1), WHOLE),
    "phases": (problem(1, (20, 32), (13, 21), 4, 2, padding=1), WHOLE),
    "split": (problem(1, (150, 64), (9, 15), 3, padding=1), None),
}


def barriers() -> dict[str, int]:
    """Numbers of the barriers by name. Those of a split are in the counting of thread blocks, which is played as one."""
    text = (Path(__file__).parents[2] / "cuda" / "kernel" / "implicit_gemm.hpp").read_text()
    numbers = {name: int(value) for name, value in re.findall(r"\bk(\w+?)Barriers? = (\d+);", text)}
    numbers.pop("Split", None)
    return numbers


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


@pytest.mark.parametrize("name", PROBLEMS)
@pytest.mark.parametrize("config", CONFIGS)
def test_without_a_barrier(config, name):
    wanted, device = PROBLEMS[name]
    operand = list(OPERANDS)[(CONFIGS.index(config) + list(PROBLEMS).index(name)) % len(OPERANDS)]
    call = Call(config, wanted, operand, device=device)
    assert (call.told["split"] > 1) == (name == "split"), call.told
    kept, counted = call.play()
    assert call.error(kept) <= 1, "with all barriers the result is right"
    for barrier, number in barriers().items():
        if name == "split" and barrier != "Step":
            continue  # the counting of thread blocks waits for all warps, too
        seen = [schedule for schedule in SCHEDULES if differs(call, kept, schedule, number)]
        assert seen, f"{call.label}: nothing shows without the barrier {barrier!r}: {BARRIERS[barrier]}"
    again, recounted = call.play()
    assert (call.bits(again) == call.bits(kept)).all() and recounted == counted


@pytest.mark.parametrize("config", CONFIGS)
def test_a_sum_in_parts_does_not_depend_on_who_comes_last(config):
    """Order 1 plays the thread blocks of a tile backwards."""
    wanted, device = PROBLEMS["split"]
    for operand in OPERANDS:
        call = Call(config, wanted, operand, device=device)
        assert call.told["split"] > 1
        first, last = call.play((0, False))[0], call.play((1, False))[0]
        assert call.error(first) <= 1
        assert (call.bits(first) == call.bits(last)).all()
