"""Whole models trained for 50 steps: convt's losses are as near to float64's as PyTorch's are.

Three runs start from the same parameters on the same data: PyTorch in float64, PyTorch at the precision in question,
and the accelerated model at that precision. What roundings do to a loss grows with the steps, and the second run shows
how much: nothing at first, and after 50 steps whatever they add up to. Where it rounds much, on a GPU at less than
float32, one run is one draw among many: further ones on data that differ in the last bit show the others.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

import convt
from convt import _C, settings
from models import TASKS

pytestmark = pytest.mark.usefixtures("one_thread")

STEPS = 50
# Precision, dtype of autocast, and the unit of what is rounded.
MODES = {
    "ieee": ("ieee", None, 2.0**-23),
    "tf32": ("tf32", None, 2.0**-10),
    "bf16": ("ieee", torch.bfloat16, 2.0**-7),
    "fp16": ("ieee", torch.float16, 2.0**-10),
}
ON_A_GPU = [pytest.param("cuda", mode, marks=pytest.mark.cuda) for mode in MODES]
KINDS = (torch.nn.ConvTranspose1d, torch.nn.ConvTranspose2d, torch.nn.ConvTranspose3d)


@pytest.fixture
def kernels(monkeypatch):
    """The number of calls of native code, by name."""
    _C.forget_plans()  # a cache that others have filled forgets all when it is full, in the middle of a model
    calls = dict.fromkeys(("forward", "grad_input", "grad_weight", "cuda_run"), 0)

    def counted(name, function):
        def call(*arguments):
            calls[name] += 1
            return function(*arguments)

        return call

    for name in calls:
        if hasattr(_C, name):
            monkeypatch.setattr(_C, name, counted(name, getattr(_C, name)))
    return calls


def losses(task, batches, device, *, dtype=torch.float32, mode="ieee", accelerated=False):
    """(steps, losses) in float64, and their names."""
    precision, autocast, _ = MODES[mode]
    torch.manual_seed(1)
    model = task.model().to(device, dtype)
    if accelerated:
        convt.accelerate(model)
    optimizer = task.optimizer(model.parameters())
    scaler = torch.amp.GradScaler(device, init_scale=256.0, enabled=autocast is torch.float16)
    curve = []
    with settings.cudnn_precision(precision):
        for step in range(STEPS):
            batch = tuple(tensor.to(device, dtype) for tensor in batches[step % len(batches)])
            optimizer.zero_grad()
            with torch.autocast(device, dtype=autocast) if autocast is not None else nullcontext():
                terms = task.model.step(model, batch)
            scaler.scale(sum(terms.values())).backward()
            scaler.step(optimizer)
            scaler.update()
            curve.append([value.item() for value in terms.values()])
    return torch.tensor(curve, dtype=torch.float64), tuple(terms)


def stirred(batches, seed):
    """The same data, but for about a last bit of float32."""
    generator = torch.Generator().manual_seed(seed)
    return [
        tuple(tensor * (1 + 1e-7 * torch.randn(tensor.shape, generator=generator)) for tensor in batch)
        for batch in batches
    ]


@pytest.mark.parametrize("name", TASKS)
@pytest.mark.parametrize(("device", "mode"), [("cpu", "ieee"), *ON_A_GPU])
def test_losses_follow_pytorchs(kernels, device, mode, name):
    task = TASKS[name]
    batches = list(task.model.batches(4))
    exact, terms = losses(task, batches, device, dtype=torch.float64)
    theirs, _ = losses(task, batches, device, mode=mode)
    draws = [theirs] + [
        losses(task, stirred(batches, seed), device, mode=mode)[0] for seed in range(8 if device == "cuda" else 0)
    ]
    with convt.backend("native"):
        assert not any(kernels.values())
        ours, _ = losses(task, batches, device, mode=mode, accelerated=True)

    layers = sum(isinstance(module, KINDS) for module in task.model().modules())
    calls = {"forward": layers, "grad_input": layers, "grad_weight": layers}
    if name == "dcgan":  # the first layer's latents want no gradient
        calls["grad_input"] -= 1
    counted = {"cuda_run": sum(calls.values())} if device == "cuda" else calls
    # Every layer is planned in Python once; from then on C answers.
    assert {name: count for name, count in kernels.items() if count} == counted

    assert ours.isfinite().all()
    first, last = ours[:4, 0].mean(), ours[-4:, 0].mean()
    assert last < task.remains * first, f"{terms[0]} fell from {first:.3g} to {last:.3g} only"
    # Sums of another order drift on another path: no farther than a few times PyTorch's farthest so far. On a CPU
    # native code adds one product after the other where oneDNN adds blocks of sums.
    factor = 16.0 if device == "cpu" else 4.0
    drift = (torch.stack(draws) - exact).abs().amax(0).cummax(0).values
    bound = factor * drift + MODES[mode][2] * exact.abs()
    excess = (ours - exact).abs() / bound
    step, term = divmod(int(excess.argmax()), len(terms))
    assert excess.max() <= 1, (
        f"{terms[term]} at step {step} is {ours[step, term]:.9g}, PyTorch's {theirs[step, term]:.9g} and in float64 "
        f"{exact[step, term]:.9g}: beyond {bound[step, term]:.2g}"
    )
    if mode == "ieee":
        assert bound[:3].max() < 1e-4 * exact[:3].max(), "tight as long as nothing has drifted"
