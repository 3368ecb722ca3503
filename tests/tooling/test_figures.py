"""The figures of docs/math.md: drawn from today's geometry, which is the definition's."""

import importlib.util
import re
from pathlib import Path

import pytest

DOCS = Path(__file__).resolve().parents[2] / "docs"


def load():
    spec = importlib.util.spec_from_file_location("figures", DOCS / "figures" / "make.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


figures = load()


@pytest.mark.parametrize("name", figures.FIGURES)
def test_pictures_show_the_geometry_of_today(name, tmp_path):
    """`python docs/figures/make.py` draws them again."""
    data = figures.FIGURES[name].data()
    assert figures.data_of(DOCS / "figures" / f"{name}.svg") == data
    drawn = figures.make(name, tmp_path)
    assert figures.data_of(drawn) == data
    assert drawn.stat().st_size > 10_000, "a picture, not only its description"


def test_every_picture_is_shown_and_no_other():
    shown = re.findall(r"!\[[^\]]+\]\(figures/(\w+)\.svg\)", (DOCS / "math.md").read_text())
    assert sorted(shown) == sorted(figures.FIGURES)
    assert {path.stem for path in (DOCS / "figures").glob("*.svg")} == set(figures.FIGURES)


@pytest.mark.parametrize("name", ["taps", "dilation", "gather"])
def test_products_are_those_of_the_definition(name):
    data = figures.FIGURES[name].data()
    axis = {"padding": 0, "dilation": 1, **data["axis"]}
    found = {(p["pixel"], p["tap"]): p for p in data["products"]}
    assert len(found) == len(data["products"]) == axis["input"] * axis["filter"]
    for (pixel, tap), product in found.items():
        assert product["output"] + axis["padding"] == axis["stride"] * pixel + axis["dilation"] * tap
        assert product["output"] == axis["stride"] * product["q"] + product["phase"]


def test_empty_phases_are_those_that_no_product_reaches():
    data = figures.dilation_data()
    axis = data["axis"]
    reached = {(axis["stride"] * i + axis["dilation"] * k) % axis["stride"] for i in range(4) for k in range(3)}
    assert data["empty"] == sorted(set(range(axis["stride"])) - reached) == [1, 3]


def test_the_patch_is_what_the_outputs_read():
    data = figures.patch_data()
    axis = data["axis"]
    for side, reached in data["reached"].items():
        read = {
            i
            for i in range(-9, 99)
            for k in range(axis["filter"])
            if axis["stride"] * i + k - axis["padding"] in reached
        }
        assert [min(read), max(read) + 1] == data["patch"][side]
        assert len(reached) == axis["stride"] * (data["box"][side][1] - data["box"][side][0])


def test_gathered_rows_are_sorted_by_phase_and_shift():
    data = figures.gather_data()
    rows = [(data["taps"][tap][1], data["taps"][tap][0]) for tap in data["order"]]
    assert rows == sorted(rows)
    assert sorted(data["order"]) == list(range(data["axis"]["filter"]))


def test_problem_81_as_the_text_describes_it():
    panel = figures.shifts_data()["panels"][-1]
    shifts, phases = ({tap[side] for tap in panel["taps"]} for side in (0, 1))
    assert (len(panel["taps"]), len(shifts) * panel["axis"]["stride"]) == (3, 10)
    assert panel["axis"]["stride"] - len(phases) == 2
