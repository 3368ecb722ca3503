"""The submissions pass KernelBench's check on a CPU, for the right reasons; what passes when is measured, not said."""

from __future__ import annotations

import inspect
import math
import re
from pathlib import Path

import pytest
import torch

import convt
from convt import kernelbench, problems
from convt.bench import record
from convt.kernelbench import __main__ as command
from convt.kernelbench import documents, harness, precision, runner, sources
from convt.testing import tf32_nearest
from convt.testing.kernelbench import PROBLEMS, shrunk

ROOT = Path(__file__).resolve().parents[2]
FINDINGS = ROOT / "docs" / "results" / "kernelbench_precision.jsonl"
DOCUMENT = ROOT / "docs" / "precision.md"

pytestmark = pytest.mark.usefixtures("one_thread")


def loaded(number, **how):
    return kernelbench.load(
        kernelbench.reference(number, shrunk(PROBLEMS[number])), kernelbench.submission(number, **how)
    )


def layer_of(model):
    (layer,) = model.children()
    return layer


# submissions


@pytest.mark.parametrize("number", kernelbench.NUMBERS)
def test_a_submission_passes_the_check(number):
    verdict = kernelbench.check(loaded(number), trials=2)
    assert verdict.correct and verdict.shapes_agree and verdict.beyond == 0.0
    assert verdict.max_difference < 1e-5, "on a CPU both compute float32"


@pytest.mark.parametrize("number", kernelbench.NUMBERS)
def test_state_and_constructor_are_models(number):
    both = loaded(number)
    signatures = [inspect.signature(kind.__init__) for kind in (both.model, both.model_new)]
    assert signatures[0].parameters == signatures[1].parameters
    model, model_new = harness.build(both, "cpu")
    state, state_new = model.state_dict(), model_new.state_dict()
    assert list(state) == list(state_new)
    assert all(torch.equal(state[name], state_new[name]) for name in state), "drawn from the same seed, not copied"
    assert model_new.training
    kind = type(layer_of(model)).__name__
    assert type(layer_of(model_new)) is getattr(convt.nn, kind)


@pytest.mark.parametrize("number", kernelbench.NUMBERS)
def test_the_reference_states_the_problem(number):
    """Built from the printed source alone, at KernelBench's sizes, without memory for them."""
    names = {}
    exec(kernelbench.reference(number), names)
    with torch.device("meta"):
        layer = layer_of(names["Model"](*names["get_init_inputs"]()))
        (input,) = names["get_inputs"]()
    problem, p = PROBLEMS[number], PROBLEMS[number]
    assert tuple(input.shape) == problem.input_size
    # 73: its groups arrive where output_padding stands, which Model ignores.
    told = (layer.kernel_size, layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
    assert told == (p.filter, p.stride, p.padding, p.output_padding, p.dilation, p.groups)
    assert (layer.in_channels, layer.out_channels, layer.bias) == (p.in_channels, p.out_channels, None)


def test_problem_73_has_its_groups_in_the_wrong_place():
    names = {}
    exec(kernelbench.reference("73"), names)
    assert names["get_init_inputs"]() == [32, 32, 3, 2, 1, 4]
    assert list(inspect.signature(names["Model"]).parameters)[5] == "output_padding"
    assert PROBLEMS["73"].groups == 1 and not any(PROBLEMS["73"].output_padding)


@pytest.mark.parametrize("number", problems.NUMBERS)
def test_references_agree_with_the_demos_problems(number):
    theirs = problems.load(number)
    names = {}
    exec(kernelbench.reference(str(number)), names)
    assert names["get_init_inputs"]() == theirs.get_init_inputs()
    parameters = [inspect.signature(kind).parameters for kind in (names["Model"], theirs.Model)]
    assert list(parameters[0]) == list(parameters[1])
    assert [name for name, _ in names["Model"](1, 1, 1).named_children()] == [
        name for name, _ in theirs.Model(1, 1, 1).named_children()
    ]


def test_a_submission_leaves_the_references_names_alone():
    for number in kernelbench.NUMBERS:
        names = {}
        exec(kernelbench.reference(number), names)
        before = {name: id(value) for name, value in names.items()}
        exec("import os\n" + kernelbench.submission(number), names)  # KernelBench puts lines before it
        assert {name: id(names[name]) for name in before if name != "__builtins__"} == {
            name: value for name, value in before.items() if name != "__builtins__"
        }
        assert set(names) - set(before) <= {"os", "__doc__", "convt", "ModelNew", "Module", "Tensor", *dir(convt.nn)}


@pytest.mark.parametrize("number", ["57", "72"])
def test_a_submission_says_who_computes_and_how(number, monkeypatch):
    seen = []
    forward = getattr(convt.nn, f"ConvTranspose{PROBLEMS[number].rank}d").forward

    def spy(self, input):
        seen.append((convt.current_backend(), convt.current_precision()))
        return forward(self, input)

    monkeypatch.setattr(getattr(convt.nn, f"ConvTranspose{PROBLEMS[number].rank}d"), "forward", spy)
    for backend in ("native", "auto"):
        assert kernelbench.check(loaded(number, backend=backend), trials=1).correct
    expected = "ieee" if number in sources.IEEE else convt.current_precision()
    assert seen == [("native", expected), ("auto", expected)]
    assert convt.current_backend() == "auto"


def test_ieee_is_where_cudnn_measured_as_float32():
    lines = record.read(ROOT / "docs" / "results" / "h200_kernelbench.jsonl")
    of = {
        line.problem: line.eager_rounding for line in lines if line.precision == "tf32" and line.direction == "forward"
    }
    assert set(of) == set(kernelbench.NUMBERS)
    assert {number for number, rounding in of.items() if rounding == "fp32"} == set(sources.IEEE)
    assert {rounding for number, rounding in of.items() if number not in sources.IEEE} == {"tf32_nearest"}


# the check


WRONG = """
from torch import nn
class ModelNew(nn.Module):
    def __init__(self, *arguments):
        super().__init__()
        self.layer = Model(*arguments)
    def forward(self, x):
        return {result}
"""


@pytest.mark.parametrize(
    ("result", "passed", "shapes_agree"),
    [
        ("self.layer(x)", 5, True),
        ("self.layer(x) + 0.9e-4", 5, True),
        ("self.layer(x) + 3e-4", 0, True),
        ("self.layer(x)[:, :, 1:]", 0, False),
        ("self.layer(x) * float('nan')", 0, True),
    ],
)
def test_the_check_tells_right_from_wrong(result, passed, shapes_agree):
    reference = kernelbench.reference("79", shrunk(PROBLEMS["79"]))
    verdict = kernelbench.check(kernelbench.load(reference, WRONG.format(result=result)))
    assert (verdict.passed, verdict.trials, verdict.shapes_agree) == (passed, 5, shapes_agree)
    assert verdict.correct == (passed == 5)


def test_other_draws_are_another_state():
    """A submission that draws anything before its parameters fails, as in KernelBench."""
    reference = kernelbench.reference("79", shrunk(PROBLEMS["79"]))
    late = WRONG.format(result="self.layer(x)").replace(
        "self.layer =", "import torch; torch.rand(1)\n        self.layer ="
    )
    assert kernelbench.check(kernelbench.load(reference, late), trials=1).passed == 0


def test_trials_have_inputs_of_their_own_and_repeat():
    inputs = []
    record_them = WRONG.format(result="(self.seen.append(x.clone()), self.layer(x))[1]").replace(
        "super().__init__()", "super().__init__()\n        self.seen = SEEN"
    )
    for _ in range(2):
        source = f"SEEN = []\n{record_them}"
        both = kernelbench.load(kernelbench.reference("79", shrunk(PROBLEMS["79"])), source)
        kernelbench.check(both, trials=3)
        inputs.append(both.model_new.forward.__globals__["SEEN"])
    first, second = inputs
    assert len(first) == 3 and not torch.equal(first[0], first[1])
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert all(float(x.min()) >= 0 and float(x.max()) < 1 for x in first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bits_have_their_own_tolerance(dtype):
    assert (kernelbench.tolerance(torch.float32), kernelbench.tolerance(dtype)) == (1e-4, 1e-2)
    verdict = kernelbench.check(loaded("73"), dtype=dtype, trials=1)
    assert verdict.correct and verdict.max_difference < 1e-2


def test_a_missing_name_is_named():
    with pytest.raises(ValueError, match="ModelNew"):
        kernelbench.load(kernelbench.reference("57"), "x = 1")
    with pytest.raises(ValueError, match="56"):
        kernelbench.submission("56")
    with pytest.raises(ValueError, match="aten"):
        kernelbench.submission("57", backend="aten")


def test_the_clock_counts_what_it_should(monkeypatch):
    calls = []
    times = harness.clock(lambda x: calls.append(x), [1], trials=7)
    assert len(calls) == harness.WARM_UPS + harness.DISCARDED + 7
    assert times.trials == 7 and 0 <= times.least <= times.mean <= times.most
    assert (harness.TRIALS, harness.WARM_UPS, harness.DISCARDED, harness.TIMED) == (5, 3, 1, 100)


@pytest.mark.cuda
@pytest.mark.parametrize("number", ["72", "75", "79", "81"])
def test_submissions_pass_on_a_gpu(number):
    """At KernelBench's sizes, against eager PyTorch as it comes: the smaller ones of the 17."""
    outcome = runner.evaluate(number, device="cuda", full=True, trials=2, timed=3)
    assert outcome.verdict.correct, outcome.verdict
    assert outcome.speedup > 0


# commands


def test_run_prints_a_verdict_for_each(capsys, tmp_path):
    assert command.main(["write", str(tmp_path)]) == 0
    assert len(list(tmp_path.glob("level_1_problem_*_sample_0_kernel.py"))) == len(kernelbench.NUMBERS) == 17
    quick = ["--device", "cpu", "--quick", "--submissions", str(tmp_path)]
    assert command.main(["run", "--problems", "79", "81", *quick]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == "2 of 2 problems pass"
    file = tmp_path / "level_1_problem_81_sample_0_kernel.py"
    file.write_text(file.read_text().replace("(x)", "(x) + 1.0"))
    assert command.main(["run", "--problems", "79", "81", *quick]) == 1
    said = capsys.readouterr().out
    assert "FAIL 0/2" in said and said.splitlines()[-1] == "1 of 2 problems pass"


def test_run_takes_references_from_a_folder(tmp_path, capsys):
    (tmp_path / "79_conv_transposed.py").write_text(kernelbench.reference("79", shrunk(PROBLEMS["79"])))
    options = ["--device", "cpu", "--quick", "--references", str(tmp_path)]
    assert command.main(["run", "--problems", "79", *options]) == 0
    assert command.main(["run", "--problems", "81", *options]) == 2
    assert "problem 81: 0 files" in capsys.readouterr().err
    assert command.main(["run", "--problems", "80", "--device", "cpu"]) == 2
    if not torch.cuda.is_available():
        assert command.main(["run", "--device", "cuda"]) == 2


# precision


@pytest.mark.parametrize("number", ["72", "73", "75", "79"])
def test_findings_are_measured(number):
    """`python -m convt.kernelbench precision --out docs/results/kernelbench_precision.jsonl`."""
    kept = {(f.reference, f.submission): f for f in precision.read(FINDINGS) if f.problem == number}
    assert set(kept) == set(precision.PAIRS)
    for finding in precision.compare(number):
        other = kept[finding.reference, finding.submission]
        assert (finding.passes, finding.input) == (other.passes, other.input)
        assert finding.beyond == pytest.approx(other.beyond, rel=0.02)
        # Sums of other libraries and chips round elsewhere.
        factor = 1.02 if "other sums" not in finding.submission else 8.0
        assert other.max_difference / factor <= finding.max_difference <= other.max_difference * factor


def test_what_the_document_concludes():
    findings = precision.read(FINDINGS)
    assert {f.problem for f in findings} == set(kernelbench.NUMBERS)
    passing = {pair: {f.passes for f in findings if (f.reference, f.submission) == pair} for pair in precision.PAIRS}
    assert passing["tf32", "fp32"] == passing["tf32", "tf32 truncated"] == {False}
    assert passing["tf32", "tf32, other sums"] == passing["fp32", "3xtf32"] == {True}
    assert passing["bf16", "bf16, other sums"] == {True}
    worst = {f.problem: f.beyond for f in findings if f.submission == "fp32"}
    assert {number for number in worst if worst[number] > 0.2} == {"58", "70"}, "in_channels are twice out_channels"


def test_ways_are_what_their_names_say():
    problem = shrunk(PROBLEMS["79"])
    input, weight = torch.rand(problem.input_size), torch.randn(problem.weight_size)
    ways = precision.ways(problem, input, weight)
    again = precision.ways(problem, tf32_nearest(input), tf32_nearest(weight))
    assert torch.equal(again["tf32"], ways["tf32"]), "rounding twice is rounding once"
    assert torch.equal(again["fp32"], ways["tf32"]) and torch.equal(again["3xtf32"], ways["tf32"])
    scale = math.sqrt(problem.in_channels * problem.taps)
    assert (ways["3xtf32"] - ways["fp32"]).abs().max() < 1e-6 * scale
    assert (ways["tf32"] - ways["fp32"]).abs().max() > 1e-5
    assert set(ways) == {name for pair in precision.PAIRS for name in pair}


def test_tables_are_what_the_results_make(tmp_path, capsys):
    """`python -m convt.kernelbench table --update docs/precision.md` writes them."""
    assert documents.filled(DOCUMENT) == DOCUMENT.read_text()
    assert len(re.findall("<!-- python -m convt.kernelbench table", DOCUMENT.read_text())) == 2
    page = tmp_path / "page.md"
    page.write_text(
        f"<!-- python -m convt.kernelbench table passing {FINDINGS} -->\nold\n<!-- end of table -->\nafter\n"
    )
    assert command.main(["table", "--update", str(page)]) == 0
    assert command.main(["table", "--update", str(page)]) == 0
    assert [line.split()[-1] for line in capsys.readouterr().out.splitlines()] == ["written", "unchanged"]
    assert "| 57 | 48x48 |" in page.read_text() and page.read_text().endswith("<!-- end of table -->\nafter\n")
    page.write_text("nothing\n")
    assert command.main(["table", "--update", str(page)]) == 2
    assert command.main(["table"]) == 2


def test_precision_writes_what_it_reads(tmp_path, capsys):
    path = tmp_path / "lines.jsonl"
    assert command.main(["precision", "--problems", "75", "--out", str(path)]) == 0
    assert precision.passing(path) in capsys.readouterr().out
    assert [f.problem for f in precision.read(path)] == ["75"] * len(precision.PAIRS)
    with pytest.raises(ValueError, match="80"):
        precision.compare("80")
