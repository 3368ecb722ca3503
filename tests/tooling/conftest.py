"""A place for choices that were measured, apart from everything else."""

import pytest

from convt import choices, tuning


@pytest.fixture
def store(tmp_path, monkeypatch):
    """A directory of choices of this test's own; plans of other tests are neither seen nor changed."""
    folder = tmp_path / "choices"
    monkeypatch.setenv("CONVT_CHOICES", str(folder))
    choices.forget()
    choices._unwritable.clear()
    tuning.forget_plans()
    yield folder
    monkeypatch.undo()
    choices.forget()
    tuning.forget_plans()
