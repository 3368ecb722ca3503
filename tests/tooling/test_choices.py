"""Files of choices: whoever writes them, reads them or spoils them, nothing breaks."""

import json
import multiprocessing
import os
import threading
import warnings

import pytest
import torch

from convt import choices, tuning
from convt.choices import Choice
from convt.tuning import Task
from tuned import ATEN, NATIVE, PROBLEM, TASK, other_than_the_rule, path_with_a_choice, planned

pytestmark = pytest.mark.usefixtures("store")


def edited(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda path: path.write_text("{"), "cannot be read"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "cannot be read"),
        (lambda path: path.write_text("[]"), "no file of choices"),
        (lambda path: path.write_text("null"), "no file of choices"),
        (lambda path: edited(path, choices={TASK.key: {"backend": "native"}}), "no file of choices"),
        (lambda path: edited(path, choices={TASK.key: NATIVE.__class__.__name__}), "no file of choices"),
        (lambda path: edited(path, choices={TASK.key: {**CHOICE, "backend": "cudnn"}}), "no file of choices"),
        (lambda path: edited(path, format=99), "format 99 instead of 1"),
        (lambda path: edited(path, torch="1.0"), "torch '1.0' instead of"),
        (lambda path: edited(path, device="another"), "device 'another' instead of"),
        (lambda path: path.unlink() or path.mkdir(), "cannot be read"),
    ],
)
def test_corrupted_and_foreign_files_are_ignored_with_one_warning(spoil, words):
    path = path_with_a_choice()
    spoil(path)
    choices.forget()
    tuning.forget_plans()
    with pytest.warns(RuntimeWarning, match="is ignored") as told:
        assert planned().reason == "measured rule"
    assert len(told) == 1 and words in str(told[0].message) and str(path) in str(told[0].message)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert planned(Task(PROBLEM, "grad_input", torch.float32)).reason == "measured rule"


CHOICE = {"backend": "native", "kernel": None, "us": 1.0, "rule_us": 2.0}


def test_a_corrupted_file_is_replaced_by_the_next_choice():
    path = path_with_a_choice()
    path.write_text("{")
    choices.forget()
    with pytest.warns(RuntimeWarning, match="cannot be read"):
        assert choices.store(choices.processor(), {TASK.key: NATIVE}) == path
    choices.forget()
    assert choices.of(choices.processor()) == {TASK.key: NATIVE}


def test_where_nothing_can_be_written_choices_hold_in_this_process(tmp_path, monkeypatch):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("CONVT_CHOICES", str(blocked / "below"))
    choices.forget()
    with pytest.warns(RuntimeWarning, match="cannot be written, choices hold for this process only") as told:
        assert choices.store(choices.processor(), {TASK.key: other_than_the_rule()}) is None
        assert choices.store(choices.processor(), {"another": NATIVE}) is None
    assert len(told) == 1
    tuning.forget_plans()
    assert planned().backend == other_than_the_rule().backend


def test_a_directory_that_may_only_be_read_is_read(monkeypatch):
    path = path_with_a_choice()

    def refused(*arguments, **keywords):
        raise PermissionError(13, "Permission denied")

    choices.forget()
    tuning.forget_plans()
    monkeypatch.setattr(choices.tempfile, "mkstemp", refused)
    assert planned().reason.startswith("tuned here")
    with pytest.warns(RuntimeWarning, match="cannot be written"):
        choices.store(choices.processor(), {"another": NATIVE})
    assert set(choices.of(choices.processor())) == {TASK.key, "another"}
    assert json.loads(path.read_text())["choices"].keys() == {TASK.key}


def test_a_write_that_fails_half_way_leaves_the_old_file(monkeypatch, store):
    path = path_with_a_choice()
    before = path.read_bytes()

    def failing(values, file, **keywords):
        file.write('{"half":')
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(choices.json, "dump", failing)
        with pytest.warns(RuntimeWarning, match="No space left"):
            choices.store(choices.processor(), {"another": NATIVE})
    assert path.read_bytes() == before and not list(store.glob("*.tmp"))


def _write(folder, number, rounds):
    os.environ["CONVT_CHOICES"] = folder
    for turn in range(rounds):
        choices.store("a device", {f"{number} {turn}": Choice("native", None, float(turn), 99.0)})


def test_writers_at_the_same_time_lose_nothing(store):
    """Four processes that know nothing of each other, and a reader that never sees half a file."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_write, args=(str(store), number, 10)) for number in range(4)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        for path in store.glob("*.json"):
            assert "choices" in json.loads(path.read_text())
    assert all(writer.exitcode == 0 for writer in writers)
    choices.forget()
    assert choices.of("a device").keys() == {f"{number} {turn}" for number in range(4) for turn in range(10)}


def test_threads_that_plan_while_choices_change():
    failures = []

    def work(choice):
        try:
            for _ in range(20):
                choices.store("a device", {TASK.key: choice})
                assert choices.lookup("a device", PROBLEM, "forward", torch.float32, False, "ieee") is not None
                choices.forget()
                assert planned().backend in ("native", "aten")
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(choice,)) for choice in (NATIVE, ATEN, NATIVE, ATEN)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
