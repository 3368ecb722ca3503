"""How operands of warpgroups come to shared memory: gathered, as boxes of the tensor, or of one that was turned."""

from __future__ import annotations

import pytest
import torch

from adversarial import is_hoppers
from convt import _C
from simulated import (
    GROUPED,
    LAYOUTS,
    OPERANDS,
    RESULTS,
    Call,
    Layouts,
    channels_last,
    contiguous,
    operands_of,
    planned,
    problem,
    sliced,
)

pytestmark = pytest.mark.simulator

# What makes a plan take each of them: a GPU without tensor copies, and those that prefer rows, or turned tensors.
GATHERED, TURNED, ROWS = ({"tensor_copies": copies} for copies in (0, 2, 3))
INNERMOST = Layouts(channels_last, channels_last, channels_last, 1)
SIXTEEN_BITS = tuple(name for name, operand in OPERANDS.items() if operand.dtype.itemsize == 2)

# In whole vectors of 16-bit channels; of other numbers.
WHOLE = {
    "k3": problem(2, (64, 24), (9, 11), 3, 1, 1),
    "k4s2": problem(1, (64, 16), (9, 10), 4, 2, 1),
    "k3s2": problem(1, (40, 64), (7, 8), 3, 2, 1, 1),
    "3d": problem(1, (16, 16), (4, 5, 6), 3, 2, 1, 1),
    "chunks": problem(1, (72, 40), (3, 5, 6), (2, 3, 3), 1, 1),
    "groups": problem(2, (128, 128), (8, 9), 3, 1, 0, groups=2),
    "1d": problem(1, (24, 8), (40,), 5, 3, 2),
    "dilated": problem(1, (64, 64), (7, 9), 3, 1, 2, dilation=2),
    "images": problem(33, (8, 8), (5,), 2, 2),
    "s8": problem(1, (64, 32), (9, 17), (4, 9), (4, 8), (0, 3)),
}
ODD = {
    "k4s2": problem(1, (63, 17), (9, 10), 4, 2, 1),
    "rgb": problem(1, (3, 3), (4, 5, 6), 3, 2, 1, 1),
    "groups": problem(2, (45, 30), (8, 9), 3, 1, 0, groups=3),
    "one": problem(5, (1, 1), (77,), 4, 3),
    "wide": problem(1, (33, 40), (9, 17), (4, 9), (4, 8), (0, 3)),
    "images-and-groups": problem(33, (16, 16), (5,), 2, 2, groups=2),
}


OUTER = tuple(filter(is_hoppers, _C.cuda_configs("grad_weight")))


def at(*names: str) -> int:
    """A number that changes with the names."""
    return sum(map(ord, "".join(names)))


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("config", GROUPED)
def test_boxes(config, name, operator):
    number = at(config, name, operator)
    for operand in operands_of(config):  # float32 is rounded in shared memory
        made = Call(config, WHOLE[name], operand, INNERMOST, None, 0, operator)
        assert made.told["way_in"] == "boxes"
        made.check(number, 2)
    # The same plan, of tensors that begin anywhere: no copy takes them.
    moved = Call(
        config, WHOLE[name], operand, Layouts(channels_last, contiguous, channels_last, 1, 1), None, 0, operator
    )
    assert moved.told["way_in"] == "boxes"
    moved.check(number + 1, 1)


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
@pytest.mark.parametrize("name", [*WHOLE, *(f"odd-{name}" for name in ODD)])
@pytest.mark.parametrize("config", GROUPED)
def test_turned_and_gathered(config, name, operator):
    """From every layout, rounded or not, with zeros between groups and beyond the last channel."""
    wanted = ODD[name[4:]] if name.startswith("odd-") else WHOLE[name]
    number = at(config, name, operator)
    operands = operands_of(config)
    operand = operands[number % len(operands)]
    for device, ways in ((TURNED, {"turned", "boxes"}), (GATHERED, {"gathered"})):
        made = planned(config, wanted, operand, LAYOUTS[number % len(LAYOUTS)], device, 0, operator)
        if made is None:  # the halo of all W phases side by side
            assert device is GATHERED
            continue
        assert made.told["way_in"] in ways
        made.check(number, 1)


def padded(size: tuple[int, ...]) -> tuple[int, ...]:
    """Strides of rows that begin at multiples of eight elements."""
    return (*contiguous((*size[:-1], -(-size[-1] // 8) * 8 + 8))[:-1], 1)


IN_ROWS = WHOLE | {
    "rgb": problem(1, (3, 3), (4, 5, 6), 3, 2, 1, 1),
    "one": problem(5, (1, 1), (77,), 4, 3),
    "chunks-and-some": problem(1, (77, 20), (9, 41), (2, 3), 1, (0, 1)),
    "images-and-rows": problem(9, (40, 24), (5, 6), 3, 1, 1),
    "column": problem(2, (24, 16), (37, 1), (3, 1), (2, 1)),
}


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
@pytest.mark.parametrize("name", IN_ROWS)
@pytest.mark.parametrize("config", GROUPED)
def test_rows(config, name, operator):
    """Turned to lines in shared memory, from contiguous tensors and wider ones; gathered where they begin elsewhere."""
    wanted, number = IN_ROWS[name], at(config, name, operator)
    for turn, operand in enumerate(operands_of(config)):
        output = (contiguous, channels_last, padded)[(number + turn) % 3]
        layouts = Layouts(padded, contiguous, output, 1) if operator == "forward" else Layouts(output, output=padded)
        made = Call(config, wanted, operand, layouts, ROWS, 0, operator)
        skips = operator == "grad_input" and wanted.stride[-1] > 1
        chunk = int(config.split("p")[1][0]) * OPERANDS[operand].vector
        channels = wanted.in_channels if operator == "forward" else wanted.out_channels
        reaches = wanted.groups > 1 and channels // wanted.groups % chunk != 0
        assert (made.told["way_in"] == "rows") == (not skips and not reaches)
        made.check(number, 2)
    moved = (
        Layouts(padded, contiguous, contiguous, 1, 1) if operator == "forward" else Layouts(elements=1, output=padded)
    )
    Call(config, wanted, operand, moved, ROWS, 0, operator).check(number + 1, 1)


def test_what_comes_in_rows():
    def way(wanted, operand="bfloat16", layouts=None, operator="forward", device=ROWS):
        return Call("64x256p4g1", wanted, operand, layouts or Layouts(), device, 0, operator).told["way_in"]

    even, odd = (problem(1, (64, 32), (9, width), 3, 1, 1) for width in (16, 17))
    assert way(even) == way(even, "tf32") == "rows" and way(even, device=GATHERED) == "gathered"
    assert way(odd) == way(problem(1, (64, 32), (9, 20), 3)) == "gathered"
    assert way(problem(1, (64, 32), (9, 20), 3), "tf32") == "rows", "16 bytes are four elements"
    assert way(even, layouts=Layouts(sliced)) == "gathered"
    assert way(even, layouts=INNERMOST) == "boxes"
    assert way(problem(2, (48, 32), (8, 16), 3, groups=2)) == "gathered", "a copy would reach the next group"
    assert way(even, operator="grad_input") == "rows"
    for stride, wanted in ((1, 2), "gathered"), ((2, 1), "rows"):  # no copy leaves neighbours along W out
        assert way(problem(1, (64, 32), (8, 16), stride, stride), operator="grad_input") == wanted


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
@pytest.mark.parametrize("layout", range(len(LAYOUTS)))
def test_all_layouts_are_turned(layout, operator):
    wanted = problem(2, (37, 21), (11, 13), 3, 2, 1)
    for operand in operands_of(GROUPED[0]):
        made = Call(GROUPED[0], wanted, operand, LAYOUTS[layout], TURNED, 1, operator)
        assert made.told["way_in"] == "turned"
        made.check(layout, 2)


@pytest.mark.parametrize("channels", (5, 24, 70))
@pytest.mark.parametrize("elements", (0, 1, 2, 4))
@pytest.mark.parametrize("extents", ((13, 24), (9, 20), (17, 10), (15, 19)))
def test_pixels_are_turned_from_wherever_they_begin(extents, elements, channels):
    """Images of multiples of 8, 4, 2 and 1 pixels; tensors that begin so many elements behind 16 bytes."""
    wanted = problem(2, (channels, 9), extents, 2, 1)
    for operand in ("bfloat16", "tf32"):
        made = Call("64x256p4g1", wanted, operand, Layouts(elements=elements), TURNED, 0, "forward")
        assert made.told["way_in"] == "turned"
        made.check(elements + channels, 1)


@pytest.mark.parametrize("config", GROUPED)
def test_columns_that_are_dropped_are_read_nearby(config):
    """Patches of few pixels, in shared memory that ends soon after the last of them."""
    wanted = problem(64, (32, 32), (4, 4), 2, 2)
    made = Call(config, wanted, "bfloat16", INNERMOST, {"multiprocessors": 132}, 0, "grad_input")
    assert made.told["way_in"] == "boxes" and made.told["patch_stages"] > 2
    made.check(1, 1)


def test_what_comes_in_boxes():
    def way(wanted, operand="bfloat16", layouts=INNERMOST, operator="forward", device=None):
        return Call("64x256p4g1", wanted, operand, layouts, device, 0, operator).told["way_in"]

    plain = WHOLE["k3"]
    assert way(plain) == "boxes"
    assert way(plain, device=GATHERED) == "gathered"
    assert way(plain, "tf32") == "boxes" and way(plain, "tf32", device=GATHERED) == "gathered"
    assert way(plain, layouts=Layouts(), device=TURNED) == "turned"
    assert way(plain, layouts=Layouts(sliced, contiguous, channels_last, 1), device=TURNED) == "turned"
    assert way(ODD["k4s2"], device=TURNED) == "turned", "half a vector"
    assert way(problem(1, (48, 32), (8, 9), 3, groups=2), device=TURNED) == "turned", "a box would reach the next group"
    far = problem(1, (32, 32), (6, 6), 9, 9)  # copies take every eighth pixel at most
    assert way(far) == "boxes" and way(far, operator="grad_input") == "gathered"


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
def test_a_turned_input_is_in_the_workspace(operator):
    """And nothing else grows."""
    made, without = (
        Call("64x256p8g1", WHOLE["k3"], "bfloat16", Layouts(), device, 0, operator) for device in (TURNED, GATHERED)
    )
    read = next(
        tensor for name, tensor in made.read.items() if name in ("input", "output") and name != RESULTS[operator]
    )
    pixels = read.numel() // read.shape[1]
    turned = pixels * -(-read.shape[1] // 8) * 16
    assert turned <= made.plan.workspace_bytes - without.plan.workspace_bytes + 4096
    assert made.plan.workspace_bytes <= turned + 2 * without.plan.workspace_bytes


@pytest.mark.parametrize("operator", ["forward", "grad_input"])
@pytest.mark.parametrize("operand", operands_of("64x256p4g1"))
def test_turned_groups_have_whole_vectors_and_nothing_between(operator, operand):
    """Fewer channels than a box spans: what a copy finds behind them is zero, not the next group's."""
    wanted = problem(3, (32, 32), (8, 9), 3, 2, 1, 1, groups=4)
    made, without = (
        Call("64x256p4g1", wanted, operand, LAYOUTS[0], device, 0, operator) for device in (TURNED, GATHERED)
    )
    assert made.told["way_in"] == "turned"
    name = "input" if operator == "forward" else "output"
    turned = made.read[name].numel() * made.read[name].element_size()
    assert abs(made.plan.workspace_bytes - without.plan.workspace_bytes - turned) <= 4096
    for group in (0, 2):
        own = slice(8 * group, 8 * group + 8)
        alone = torch.full_like(made.read[name], torch.nan)
        alone[:, own] = made.read[name][:, own]
        whole = made.play()[0][:, own]
        made.read, kept = made.read | {name: alone}, made.read
        output = made.play()[0]
        made.read = kept
        assert torch.equal(output[:, own], whole) and output[:, : own.start].isnan().all()


# Which tensors of a weight gradient have to be turned.
LYING = {
    ("input", "grad_output"): Layouts(elements=1),
    ("grad_output",): Layouts(channels_last, contiguous, contiguous, 1),
    ("input",): Layouts(sliced, contiguous, channels_last, 1),
    (): INNERMOST,
}


@pytest.mark.parametrize("turned", LYING)
@pytest.mark.parametrize("name", WHOLE)
@pytest.mark.parametrize("config", OUTER)
def test_weight_gradients_of_turned_tensors(config, name, turned):
    number = at(config, name, *turned)
    operand = SIXTEEN_BITS[number % 2]
    made = Call(config, WHOLE[name], operand, LYING[turned], TURNED, 0, "grad_weight")
    assert tuple(made.told["turned"]) == turned and made.told["input_bytes"] == made.told["patch_bytes"] == 16
    assert ("turning" in made.told["terms_us"]) == bool(turned)
    made.check(number, 1)


def test_what_weight_gradients_turn():
    def turned(wanted, operand="bfloat16", device=TURNED):
        return Call(OUTER[0], wanted, operand, Layouts(), device, 0, "grad_weight").told["turned"]

    plain = WHOLE["k3"]
    assert turned(plain) == ["input", "grad_output"]
    assert turned(plain, device=GATHERED) == turned(plain, "tf32") == []
    assert turned(ODD["k4s2"]) == turned(problem(1, (64, 12), (9, 11), 3)) == [], "no whole vectors"
    assert turned(problem(1, (24, 40), (8, 9), 3, groups=2)) == [], "nor in a group"
    # Where that pays: rows of an odd number of elements, and channels enough to read them often.
    rows = problem(8, (512, 512), (32, 32), 3, 2)
    assert turned(rows, device={}) == ["input", "grad_output"]
    assert turned(problem(8, (16, 16), (32, 32), 2, 2), device={}) == []
