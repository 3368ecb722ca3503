"""torch.export and AOTInductor: programs and packages keep convt's ops, any size, and work in another process."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest
import torch

import convt
from graphs import HAS_COMPILER, ours, targets

KINDS = {1: convt.nn.ConvTranspose1d, 2: convt.nn.ConvTranspose2d, 3: convt.nn.ConvTranspose3d}
SIZES = {1: (11,), 2: (5, 7), 3: (3, 5, 4)}


def dims(rank):
    """A dynamic batch, and every spatial axis dynamic."""
    names = ("depth", "height", "width")[-rank:]
    return {0: torch.export.Dim("batch"), **{axis: torch.export.Dim(name) for axis, name in enumerate(names, 2)}}


def model(rank):
    """Groups, dilation, output padding; an activation in between; the second layer without a bias."""
    torch.manual_seed(0)
    first = KINDS[rank](4, 6, 3, stride=2, padding=1, output_padding=1, groups=2)
    return torch.nn.Sequential(first, torch.nn.ReLU(), KINDS[rank](6, 3, 2, dilation=2, bias=False)).eval()


def others(rank):
    """Inputs of other sizes than the example."""
    return [torch.randn(batch, 4, *(size + more for size in SIZES[rank])) for batch, more in ((2, 1), (7, 4), (3, 13))]


@pytest.mark.parametrize("rank", (1, 2, 3))
@pytest.mark.parametrize("strict", (True, False), ids=("strict", "not_strict"))
def test_any_size(rank, strict):
    module = model(rank)
    program = torch.export.export(
        module, (torch.randn(3, 4, *SIZES[rank]),), dynamic_shapes=(dims(rank),), strict=strict
    )
    assert ours(program.graph) == [f"convt.conv_transpose{rank}d"] * 2
    inference = program.run_decompositions()
    assert targets(inference.graph) == ["convt.forward.default", "aten.relu.default", "convt.forward.default"]
    for input in others(rank):
        for exported in (program, inference):
            torch.testing.assert_close(exported.module()(input), module(input))


@pytest.mark.parametrize("strict", (True, False), ids=("strict", "not_strict"))
def test_channels_last_and_unbatched(strict):
    module = model(2)
    for example in (torch.randn(2, 4, 5, 7).to(memory_format=torch.channels_last), torch.randn(4, 5, 7)):
        program = torch.export.export(module, (example,), strict=strict).run_decompositions()
        output = program.module()(example)
        assert output.stride() == module(example).stride()
        torch.testing.assert_close(output, module(example))


def test_autocast_and_output_size():
    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.up = convt.nn.ConvTranspose1d(4, 3, 5, stride=4)

        def forward(self, input):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                return self.up(input, output_size=[input.shape[2] * 4 + 2])

    module = convt.accelerate(Model().eval())
    program = torch.export.export(module, (torch.randn(2, 4, 9),), dynamic_shapes=({2: torch.export.Dim("length")},))
    for length in (5, 9, 30):
        input = torch.randn(2, 4, length)
        output = program.module()(input)
        assert output.dtype is torch.bfloat16 and output.shape[2] == length * 4 + 2
        torch.testing.assert_close(output, module(input))


# another process


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A program on disk, an input of another size than its example, and the output."""
    folder = tmp_path_factory.mktemp("saved")
    module = model(1)
    program = torch.export.export(module, (torch.randn(3, 4, 11),), dynamic_shapes=(dims(1),))
    torch.export.save(program, folder / "program.pt2")
    input = torch.randn(2, 4, 23)
    with torch.no_grad():
        torch.save((input, module(input)), folder / "called.pt")
    return folder, program, module


@pytest.fixture(scope="module")
def package(saved):
    """The same as an AOTInductor package; without optimisation of the wrapper, which takes most of the time."""
    if not HAS_COMPILER:
        pytest.skip("AOTInductor needs a C++ compiler")
    folder, program, _ = saved
    quickly = {"aot_inductor.compile_wrapper_opt_level": "O0"}
    return torch._inductor.aoti_compile_and_package(
        program, package_path=str(folder / "package.pt2"), inductor_configs=quickly
    )


def test_the_documents_example():
    """The block of docs/compile.md that takes as long as a C++ compiler does, after those that it stands on."""
    if not HAS_COMPILER:
        pytest.skip("AOTInductor needs a C++ compiler")
    text = (Path(__file__).parents[2] / "docs" / "compile.md").read_text().split("## torch.export")[1]
    exported, packaged = re.findall(r"^```py(?:thon)?\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)[:2]
    namespace = {"torch": torch, "convt": convt}
    with torch._inductor.config.patch({"aot_inductor.compile_wrapper_opt_level": "O0"}):
        exec(exported + packaged, namespace)
    assert namespace["loaded"](torch.ones(2, 8, 3, 3)).shape == (2, 4, 6, 6)


def elsewhere(folder, program):
    return subprocess.run([sys.executable, "-c", dedent(program), str(folder)], capture_output=True, text=True)


def test_a_package_runs(saved, package):
    _, _, module = saved
    loaded = torch._inductor.aoti_load_package(package)
    for input in others(1):
        torch.testing.assert_close(loaded(input), module(input))


def test_in_a_fresh_process(saved, package):
    program = """
        import sys, torch, convt
        folder = sys.argv[1]
        input, output = torch.load(folder + "/called.pt")
        program = torch.export.load(folder + "/program.pt2").module()
        package = torch._inductor.aoti_load_package(folder + "/package.pt2")
        for loaded in (program, package):
            torch.testing.assert_close(loaded(input), output)
            print("same")
    """
    run = elsewhere(saved[0], program)
    assert run.stdout == "same\nsame\n", run.stderr


def test_without_the_import(saved, package):
    """What docs/compile.md says about it."""
    program = """
        import sys, torch
        folder = sys.argv[1]
        for load, file in ((torch.export.load, "program"), (torch._inductor.aoti_load_package, "package")):
            try:
                load(f"{folder}/{file}.pt2")
            except RuntimeError as error:
                print(file, error)
    """
    run = elsewhere(saved[0], program)
    assert "program We ran into an error when deserializing the saved file" in run.stdout and "convt" in run.stderr
    assert "package Could not find schema for convt::forward" in run.stdout
