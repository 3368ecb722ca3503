"""`convt tune`: what is measured, what is kept and for whom, and that a file can break nothing."""

import json

import pytest
import torch

import convt
from convt import choices, cli, explain, plan, settings, tuning
from convt.choices import Choice
from convt.problem import Geometry, forward_problem
from convt.timing import Timing
from convt.tuning import Task
from pretended import gpu
from tuned import ATEN, NATIVE, PROBLEM, TASK, other_than_the_rule, path_with_a_choice, planned

CPU = torch.device("cpu")

pytestmark = pytest.mark.usefixtures("store")


# the plan obeys


@pytest.mark.parametrize("operator", settings.OPERATORS)
def test_a_choice_overrides_the_rule_now_and_in_a_later_process(operator):
    task = Task(PROBLEM, operator, torch.float32)
    choice, before = other_than_the_rule(task), planned(task)
    assert before.backend != choice.backend and before.reason == "measured rule"
    path = choices.store(choices.processor(), {task.key: choice})
    assert json.loads(path.read_text())["choices"].keys() == {task.key}
    tuning.forget_plans()
    for _ in range(2):
        assert planned(task).backend == choice.backend and planned(task).reason.startswith("tuned here: 10 us")
        choices.forget()  # as a process that begins
        tuning.forget_plans()
    assert planned(Task(PROBLEM, operator, torch.float64)).reason == "measured rule", "of this dtype alone"
    choices.store(choices.processor(), {task.key: None})
    tuning.forget_plans()
    assert planned(task) == before


def test_calls_compute_with_what_was_chosen_whoever_was_asked_before():
    input, weight = torch.randn(PROBLEM.input_size), torch.randn(PROBLEM.weight_size)
    expected = torch.conv_transpose2d(input, weight, None, 2, 1)
    for choice in (NATIVE, ATEN, NATIVE):
        choices.store(choices.processor(), {TASK.key: choice})
        tuning.forget_plans()
        assert plan.plan.cache_info().currsize == 0
        torch.testing.assert_close(convt.conv_transpose2d(input, weight, None, 2, 1), expected)
        assert plan.plan.cache_info().currsize > 0, "the call was planned anew"
        assert planned().backend == choice.backend


def test_a_forced_backend_is_stronger():
    choices.store(choices.processor(), {TASK.key: NATIVE})
    tuning.forget_plans()
    assert planned(requested="aten").backend == "aten" and "forced" in planned(requested="aten").reason


def test_explain_tells_a_choice(capsys):
    choices.store(choices.processor(), {TASK.key: other_than_the_rule()})
    tuning.forget_plans()
    shapes = ["--input", "2", "8", "12", "12", "--weight", "8", "4", "3", "3", "--stride", "2", "--padding", "1"]
    assert cli.main(["explain", "2d", *shapes, "--device", "cpu", "--operator", "forward"]) == 0
    assert "tuned here: 10 us, the rule's choice 20 us" in " ".join(capsys.readouterr().out.split())


def test_off_is_off(monkeypatch):
    choices.store(choices.processor(), {TASK.key: other_than_the_rule()})
    monkeypatch.setenv("CONVT_CHOICES", "off")
    choices.forget()
    tuning.forget_plans()
    assert planned().reason == "measured rule" and choices.file_of("any") is None
    assert choices.store(choices.processor(), {TASK.key: other_than_the_rule()}) is None
    tuning.forget_plans()
    assert planned().reason == "measured rule" and not choices.of(choices.processor())


def test_without_a_variable_files_are_in_the_users_cache(monkeypatch):
    monkeypatch.delenv("CONVT_CHOICES")
    monkeypatch.setattr(choices.platformdirs, "user_cache_dir", lambda *_, **__: "/home/somebody/.cache/convt")
    assert str(choices.directory()) == "/home/somebody/.cache/convt/choices"


# on a GPU that is only pretended


@pytest.fixture
def here(monkeypatch):
    monkeypatch.setattr(plan, "cuda_devices", lambda: (gpu("Pretended GPU", (9, 0)),))
    monkeypatch.setattr(plan, "_cuda_refusal", lambda device: None)
    return torch.device("cuda", 0)


GPU_PROBLEM = forward_problem((8, 64, 32, 32), (64, 64, 4, 4), None, Geometry((2, 2), (1, 1), (0, 0), 1, (1, 1)))


def plan_of_call(device, kernel=None, precision="tf32"):
    sizes = GPU_PROBLEM.input_size, GPU_PROBLEM.weight_size, None, GPU_PROBLEM.output_size
    strides = tuple(None if size is None else plan.dense_strides(size, False) for size in sizes)
    facts = GPU_PROBLEM, torch.float32, device, False, "auto", strides, precision, kernel
    return plan.plan_of_call("forward", *facts)


def test_a_kernel_is_remembered_per_gpu_and_precision(here):
    task = Task(GPU_PROBLEM, "forward", torch.float32, precision="tf32")
    standard = plan.cuda_plan(GPU_PROBLEM, precision="tf32", device=here)
    names = tuning._configurations(task, here)
    assert 1 < len(names) <= 8 and standard.config not in names
    choices.store("Pretended GPU", {task.key: Choice("native", names[0], 1.0, 2.0)})
    tuning.forget_plans()
    choice, made = plan_of_call(here)
    forced = plan.cuda_plan(GPU_PROBLEM, precision="tf32", device=here, kernel=names[0])
    assert choice.kernel == names[0] and made.config == forced.config
    assert plan_of_call(here, precision="ieee")[0].kernel is None
    _, made = plan_of_call(here, kernel="simt")
    assert made.kernel == "simt", "who forces a kernel gets it"


def test_a_kernel_that_refuses_these_strides_leaves_it_to_the_cost_model(here):
    task = Task(GPU_PROBLEM, "forward", torch.float32, precision="tf32")
    choices.store("Pretended GPU", {task.key: Choice("native", "depthwise", 1.0, 2.0)})
    tuning.forget_plans()
    choice, made = plan_of_call(here)
    assert choice.backend == "native" and made.kernel != "depthwise"


def test_explain_tells_the_choice_of_a_gpu(here, monkeypatch, capsys):
    task = Task(GPU_PROBLEM, "forward", torch.float32, precision="tf32")
    monkeypatch.setattr(explain, "cuda_devices", plan.cuda_devices)
    before = explain.choose(GPU_PROBLEM, precision="tf32")
    choices.store("Pretended GPU", {task.key: Choice("native", "simt", 1.0, 2.0)})
    told = explain.choose(GPU_PROBLEM, precision="tf32")
    assert before["tuned"] is None and told["tuned"] == "native simt (tuned here: 1 us, the rule's choice 2 us)"
    explain.show(told)
    assert "measured choice" in capsys.readouterr().out
    assert explain.choose(GPU_PROBLEM, precision="tf32", gpu="h200")["tuned"] is None


def test_candidates_of_a_gpu_begin_with_the_rules(here):
    task = Task(GPU_PROBLEM, "forward", torch.float32, precision="ieee")
    found = tuning.candidates(task, here)
    rule = plan.ruled(GPU_PROBLEM, "forward", torch.float32, here, False, "auto", "ieee").backend
    assert (
        found[0] == (rule, None) and len(found) == len(set(found)) > 3 and {"native", "aten"} == {b for b, _ in found}
    )


# measuring


def test_only_what_beats_the_noise_is_chosen():
    def timing(low, median, high):
        return Timing(median, low, high, 10)

    rule = timing(95.0, 100.0, 105.0)
    assert tuning.is_worth_it(timing(70.0, 75.0, 80.0), rule)
    assert not tuning.is_worth_it(timing(70.0, 75.0, 96.0), rule), "percentiles overlap"
    assert not tuning.is_worth_it(timing(97.5, 98.0, 98.5), timing(99.0, 100.0, 101.0)), "two per cent"
    assert not tuning.is_worth_it(rule, timing(70.0, 75.0, 80.0))


@pytest.fixture
def clock(monkeypatch):
    """Every call is made once; the backend `slow` takes two milliseconds, the other one a millisecond."""
    told = {"slow": "aten", "measured": []}

    def turns(calls, *, seconds, device, least_turns):
        backends = [call.run(lambda inner: inner() is not None and convt.current_backend()) for call in calls]
        told["measured"].append(backends)
        return [
            Timing(median, 0.95 * median, 1.05 * median, least_turns)
            for median in (2e-3 if backend == told["slow"] else 1e-3 for backend in backends)
        ]

    monkeypatch.setattr(tuning, "interleaved", turns)
    return told


@pytest.mark.parametrize("operator", settings.OPERATORS)
@pytest.mark.parametrize("layout", [False, True])
def test_the_faster_backend_is_chosen_and_stored(operator, layout, store, clock):
    task = Task(PROBLEM, operator, torch.float32, layout)
    clock["slow"] = rule = planned(task).backend
    (result,) = tuning.run([(task, CPU)])
    assert (result.rule, result.rule_us, result.best_us, result.measured) == (rule, 2000.0, 1000.0, 2)
    assert planned(task).backend == result.choice.backend == result.best != rule
    assert clock["measured"] == [[rule, result.best]], "the rule's choice first, and both in the same turns"
    (file,) = store.glob("*.json")
    assert json.loads(file.read_text())["choices"][task.key]["us"] == 1000.0
    clock["slow"] = result.best
    (again,) = tuning.run([(task, CPU)])
    assert again.rule == rule and again.choice is None and planned(task).reason == "measured rule", "taken away again"
    assert json.loads(file.read_text())["choices"] == {}


def test_of_many_candidates_the_fastest_and_the_rules_are_measured_again(clock, monkeypatch):
    names = ["a", "b", "c", "d"]
    monkeypatch.setattr(tuning, "candidates", lambda task, device: [("aten", None), *(("native", n) for n in names)])
    monkeypatch.setattr(tuning.settings, "forced_kernel", lambda name, operator: torch.no_grad())
    result = tuning.measure(TASK, CPU)
    assert [len(turns) for turns in clock["measured"]] == [5, 4] and clock["measured"][1][0] == "aten"
    assert result.measured == 5 and result.choice == Choice("native", "a", 1000.0, 2000.0)


def test_a_candidate_that_fails_is_none(monkeypatch):
    right = tuning.operators.forward

    def forward(*arguments):
        if convt.current_backend() == other_than_the_rule().backend:
            raise RuntimeError("no memory")
        return right(*arguments)

    monkeypatch.setattr(tuning.operators, "forward", forward)
    result = tuning.measure(TASK, CPU, seconds=0.01)
    assert result.measured == 1 and result.choice is None and result.best == result.rule


# models


def model():
    torch.manual_seed(0)
    layers = torch.nn
    return layers.Sequential(
        layers.Conv1d(3, 4, 3), layers.ConvTranspose1d(4, 6, 4, stride=2), layers.BatchNorm1d(6), layers.Dropout(),
        convt.nn.ConvTranspose1d(6, 4, 3, dilation=2, bias=False), layers.ConvTranspose1d(4, 4, 3, groups=2),
        layers.ConvTranspose1d(4, 4, 3, groups=2),
    )  # fmt: skip


def test_problems_of_a_model_are_found_once_and_it_stays_as_it_was():
    made, input = model(), torch.randn(2, 3, 10)
    before = {name: tensor.clone() for name, tensor in made.state_dict().items()}
    random = torch.get_rng_state()
    found = tuning.collect(made, (input,), train=True)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(tensor, before[name]) for name, tensor in made.state_dict().items())
    assert all(parameter.grad is None for parameter in made.parameters()) and made.training
    problems = list(dict.fromkeys(task.problem for task, _ in found))
    assert [(p.in_channels, p.out_channels, p.groups) for p in problems] == [(4, 6, 1), (6, 4, 1), (4, 4, 2), (4, 4, 2)]
    assert problems[2].input != problems[3].input
    assert len(found) == 12 and {device for _, device in found} == {CPU}
    assert [task.bias for task, _ in found if task.operator == "forward"] == [True, False, True, True]
    assert len(tuning.collect(made, [input])) == 4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_layout_and_dtype_of_a_model_count(dtype):
    made = torch.nn.ConvTranspose2d(4, 4, 3).to(dtype).to(memory_format=torch.channels_last)
    input = torch.randn(2, 4, 5, 5, dtype=dtype).to(memory_format=torch.channels_last)
    ((task, _),) = tuning.collect(made, input)
    assert task.dtype is dtype and task.channels_last == (dtype is not torch.float64)


def test_named_inputs_and_plain_functions():
    weight = torch.randn(4, 4, 3, 3)

    def function(image, scale):
        return convt.conv_transpose2d(image, weight, None, 2) * scale

    ((task, _),) = tuning.collect(function, {"image": torch.randn(1, 4, 5, 5), "scale": 2.0})
    assert task.problem.stride == (2, 2) and task.operator == "forward"


def test_autocast_shows_the_dtype_that_is_computed():
    with torch.autocast("cpu", torch.bfloat16):
        ((task, _),) = tuning.collect(torch.nn.ConvTranspose2d(4, 4, 3), torch.randn(1, 4, 5, 5))
    assert task.dtype is torch.bfloat16


def test_tuning_a_model_measures_it(store):
    results = convt.tune(model(), (torch.randn(2, 3, 10),), seconds=0.001)
    assert len(results) == 4 and all(result.rule_us >= result.best_us > 0 for result in results)
    assert len(list(store.glob("*.json"))) == 1


def test_a_problem_that_cannot_be_measured_does_not_stop_the_others(tmp_path, monkeypatch, capsys):
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([{"input": [1, 2, n], "weight": [2, 2, 3]} for n in (5, 6)]))
    right = tuning._operands

    def operands(task, device):
        if task.problem.input == (5,):
            raise RuntimeError("not enough memory")
        return right(task, device)

    monkeypatch.setattr(tuning, "_operands", operands)
    assert cli.main(["tune", str(file), "--device", "cpu", "--seconds", "0.001"]) == 1
    printed = capsys.readouterr().out
    assert "1d k3 s1 2->2 5 b1 forward: RuntimeError: not enough memory" in printed and "of 1 faster" in printed


def test_interrupted_tuning_keeps_what_is_done(tmp_path, monkeypatch, capsys, clock):
    clock["slow"] = other_than_the_rule().backend
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([{"input": [1, 2, n], "weight": [2, 2, 3]} for n in (5, 6, 7)]))
    real, done = tuning.measure, []

    def interrupted(*arguments, **keywords):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments, **keywords)

    monkeypatch.setattr(tuning, "measure", interrupted)
    assert cli.main(["tune", str(file), "--device", "cpu"]) == 130
    assert "Interrupted after 2 of 3." in capsys.readouterr().out


# the command


def test_the_command_tunes_a_file_of_problems_and_shows_and_clears(store, tmp_path, capsys):
    file = tmp_path / "problems.json"
    file.write_text(json.dumps([{"name": "up", "input": [2, 4, 6, 6], "weight": [4, 4, 3, 3], "bias": True}]))
    assert cli.main(["tune", str(file), "--device", "cpu", "--train", "--seconds", "0.001"]) == 0
    printed = capsys.readouterr().out
    assert "grad_weight" in printed and "of 3 faster than the rule by more than the noise" in printed
    path = path_with_a_choice()
    assert cli.main(["tune", "--show", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert str(path) in printed and f"{TASK.key}: {other_than_the_rule().backend} (tuned here" in printed
    assert cli.main(["tune", "--clear", "--device", "cpu"]) == 0 and not path.exists()
    assert cli.main(["tune", "--clear", "--device", "cpu"]) == 0
    assert "nothing was stored" in capsys.readouterr().out


def test_the_command_tunes_a_model(tmp_path, monkeypatch, capsys):
    (tmp_path / "tuned_model.py").write_text(
        "import torch\ndef made():\n    return torch.nn.ConvTranspose1d(2, 2, 3), torch.randn(1, 2, 9)\n"
        "def nothing():\n    return torch.nn.Linear(2, 2), torch.randn(1, 2)\n"
    )
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tune", "--model", "tuned_model:made", "--seconds", "0.001"]) == 0
    assert "1d k3 s1 2->2 9 b1" in capsys.readouterr().out
    assert cli.main(["tune", "--model", "tuned_model:nothing"]) == 2
    assert "no transposed convolution in tuned_model:nothing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a suite"),
        (["kernelbench", "--model", "a:b"], "name a suite"),
        (["--model", "no_such_module_here:f"], "no_such_module_here"),
        (["--model", "json"], "MODULE:FUNCTION"),
        (["--model", "json:nothing"], "nothing"),
        (["absent.json"], "absent.json"),
    ],
)
def test_bad_arguments_are_explained(arguments, words, capsys):
    assert cli.main(["tune", *arguments]) == 2
    assert words in capsys.readouterr().err
