"""A small problem, choices for it, and what the plan says."""

import torch

from convt import choices, heuristics, plan
from convt.choices import Choice
from convt.problem import Geometry, forward_problem
from convt.tuning import Task

PROBLEM = forward_problem((2, 8, 12, 12), (8, 4, 3, 3), None, Geometry((2, 2), (1, 1), (0, 0), 1, (1, 1)))
TASK = Task(PROBLEM, "forward", torch.float32)
NATIVE, ATEN = Choice("native", None, 10.0, 20.0), Choice("aten", None, 10.0, 20.0)


def planned(task=TASK, requested="auto"):
    return plan.plan(task.problem, task.operator, task.dtype, "cpu", task.channels_last, requested)


def other_than_the_rule(task=TASK):
    rule = heuristics.choose(task.problem, task.operator, task.dtype, task.channels_last)
    return ATEN if rule == "native" else NATIVE


def path_with_a_choice():
    """Writes the file of this processor."""
    return choices.store(choices.processor(), {TASK.key: other_than_the_rule()})
