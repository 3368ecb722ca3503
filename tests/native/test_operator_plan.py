"""The choice among the kernel families, for GPUs that need not be here."""

from __future__ import annotations

import json
import math

import pytest
import torch

from adversarial import NO_ROOM, grouped, is_hoppers
from convt import _C
from convt.plan import cuda_plan
from convt.problem import Geometry, forward_problem
from convt.settings import KERNELS

DENSE = forward_problem((16, 64, 32, 32), (64, 64, 4, 4), None, Geometry((2, 2), (1, 1), (0, 0), 1, (1, 1)))
DEPTHWISE = forward_problem((16, 256, 64, 64), (256, 1, 4, 4), None, Geometry((2, 2), (1, 1), (0, 0), 256, (1, 1)))
# 99 KB of shared memory for a thread block, 100 KB for a multiprocessor.
SMALL = {
    "name": "small", "capability": (8, 6), "multiprocessors": 84, "memory_bytes": 2**34,
    "shared_per_block": 99 * 1024, "shared_per_multiprocessor": 100 * 1024, "l2_bytes": 6 * 2**20,
    "clock_ghz": 1.7, "memory_gbs": 800.0,
}  # fmt: skip
TOLD = {
    "kernel", "config", "phases", "taps", "tile", "grid", "threads", "shared_bytes", "registers", "workspace_bytes",
    "flops", "bytes_minimum", "bytes_predicted", "predicted_us", "roofline_us", "bound", "terms_us", "origin", "split",
    "candidates",
}  # fmt: skip


@pytest.mark.parametrize(
    ("problem", "dtype", "kernel"),
    [
        (DENSE, torch.float32, "implicit_gemm"),
        (DENSE, torch.bfloat16, "implicit_gemm"),
        (DENSE, torch.float64, "simt"),
        (DEPTHWISE, torch.float32, "depthwise"),
        (DEPTHWISE, torch.float16, "depthwise"),
        (DEPTHWISE, torch.float64, "depthwise"),
    ],
    ids=[
        "dense-float32",
        "dense-bfloat16",
        "dense-float64",
        "depthwise-float32",
        "depthwise-float16",
        "depthwise-float64",
    ],
)
@pytest.mark.parametrize("channels_last", [False, True])
def test_each_family_is_chosen_where_it_belongs(problem, dtype, kernel, channels_last):
    assert cuda_plan(problem, dtype, channels_last=channels_last).kernel == kernel


@pytest.mark.parametrize("kernel", KERNELS)
def test_every_family_explains_itself(kernel):
    """In values that JSON knows; the fastest candidate is the one that was chosen."""
    made = cuda_plan(DEPTHWISE, torch.float32, kernel=kernel)
    told = json.loads(json.dumps(made.explain()))
    assert set(told) >= TOLD
    assert told["kernel"] == made.kernel == kernel
    assert told["config"] == made.config and told["predicted_us"] == made.predicted_us
    assert told["workspace_bytes"] == made.workspace_bytes
    assert (made.workspace_bytes > 0) == (kernel == "implicit_gemm"), "only the packed filter needs memory"
    assert told["bound"] in told["terms_us"] and max(told["terms_us"].values()) <= made.predicted_us
    assert told["predicted_us"] == min(entry["predicted_us"] or 1e9 for entry in told["candidates"])
    assert told["grid"] > 0 and 32 <= told["threads"] <= 1024 and told["tile"]


def test_candidates_are_configurations_and_families():
    names = [entry["name"] for entry in cuda_plan(DENSE).explain()["candidates"]]
    assert names == [*_C.cuda_configs(), "depthwise", "simt"]
    assert len(set(names)) == len(names), "a name forces one configuration"
    assert [entry["name"] for entry in cuda_plan(DENSE, kernel="simt").explain()["candidates"]] == ["simt"]


def raw(kernel, dtype="float32", device=None):
    sizes = DENSE.input_size, (65536, 1024, 32, 1), DENSE.weight_size, (1024, 16, 4, 1), None, (262144, 4096, 64, 1)
    return _C.cuda_plan("forward", *sizes, dtype, "ieee", *DENSE.geometry, device, kernel)


def test_an_unknown_kernel_is_refused_with_the_legal_ones():
    legal = ", ".join((*KERNELS, *_C.cuda_configs()))
    with pytest.raises(ValueError, match=f"kernel: mma; legal are {legal}$"):
        raw("mma")


def test_reasons_name_the_forced_kernel_once():
    message = "kernel {} cannot compute this problem: tensor cores of this family do not multiply float64$"
    for kernel in ("implicit_gemm", _C.cuda_configs()[-1]):
        with pytest.raises(ValueError, match=message.format(kernel)):
            raw(kernel, "float64")
    with pytest.raises(ValueError, match="kernel depthwise cannot compute this problem: a group has 64 input"):
        raw("depthwise")


@pytest.mark.parametrize("operator", ["forward", "grad_input", "grad_weight"])
def test_configurations_without_registers_for_ieee_say_so(operator):
    """What is listed for an operand is planned for it, on a GPU with room; what is not has a reason."""
    sizes = DENSE.input_size, (65536, 1024, 32, 1), DENSE.weight_size, (1024, 16, 4, 1), None, (262144, 4096, 64, 1)
    room = {"shared_per_block": 2**20, "shared_per_multiprocessor": 2**23}
    listed = _C.cuda_configs(operator)
    refused = 0
    for operand in ("tf32", "ieee", "bfloat16", "float16"):
        legal = _C.cuda_configs(operator, operand)
        assert legal == [name for name in listed if name in legal]
        dtype = ("float32", operand)[operand in ("bfloat16", "float16")], ("ieee", "tf32")[operand == "tf32"]
        for name in listed:
            if name in legal:
                assert _C.cuda_plan(operator, *sizes, *dtype, *DENSE.geometry, room, name).config == name
                continue
            refused += 1
            why = "instructions truncate" if is_hoppers(name) else "no registers for the three products of ieee"
            with pytest.raises(ValueError, match=f"kernel {name} cannot .*{why}"):
                _C.cuda_plan(operator, *sizes, *dtype, *DENSE.geometry, room, name)
        assert operand == "ieee" or legal == listed
    assert 0 < refused < len(listed)
    with pytest.raises(ValueError, match="operand: float64; legal are tf32, ieee, bfloat16 and float16"):
        _C.cuda_configs(operator, "float64")


GROUPED = [name for name in _C.cuda_configs() if grouped(name)]


@pytest.mark.parametrize("capability", [(8, 0), (8, 6), (9, 0), (10, 0), (12, 0)])
def test_warpgroups_are_hoppers(capability):
    """Forced elsewhere they say so, and none is chosen; those of warps go everywhere."""
    assert 0 < len(GROUPED) < len(_C.cuda_configs())
    device = {"capability": capability}
    for name in _C.cuda_configs():
        if name in GROUPED and capability != (9, 0):
            reason = "its instructions are Hopper's"
            with pytest.raises(ValueError, match=f"kernel {name} cannot compute this problem: {reason}$"):
                raw(name, "bfloat16", device)
        else:
            assert raw(name, "bfloat16", device).config == name
    assert not grouped(raw("implicit_gemm", "bfloat16", device).config) or capability == (9, 0)


def test_a_halo_without_room_is_refused_by_warpgroups_alone():
    far = forward_problem((1, 8, 700), (8, 8, 3), None, Geometry((1,), (512,), (0,), 1, (512,)))
    for name in _C.cuda_configs():
        if name in GROUPED:
            with pytest.raises(ValueError, match=f"kernel {name} cannot compute this problem: {NO_ROOM}$"):
                cuda_plan(far, torch.bfloat16, kernel=name)
        else:
            assert cuda_plan(far, torch.bfloat16, kernel=name).config == name


@pytest.mark.parametrize("name", GROUPED)
def test_warpgroups_and_as_many_that_load_take_tile_after_tile(name):
    """128 threads each; beside boxes three warpgroups with a multiprocessor to themselves, that store as well. As many
    thread blocks as fit the GPU, and no more. Sums are whole."""
    gathered = cuda_plan(DENSE, torch.bfloat16, kernel=name, device={"tensor_copies": 0}).explain()
    assert gathered["way_in"] == "gathered" and gathered["threads"] == 256 * int(name[-1])
    turned = cuda_plan(DENSE, torch.bfloat16, kernel=name, device={"tensor_copies": 2}).explain()
    assert turned["way_in"] == "turned" and 4 < turned["terms_us"]["turning"] < turned["predicted_us"]
    told = cuda_plan(DENSE, torch.bfloat16, kernel=name, channels_last=True).explain()
    assert "turning" not in gathered["terms_us"] and "turning" not in told["terms_us"]
    assert told["way_in"] == "boxes" and told["threads"] == {1: 256, 2: 640}[int(name[-1])] and told["split"] == 1
    tiles = math.prod(told["tiles"].values()) * told["phase_blocks"] * told["channel_blocks"]
    blocks = 2 if told["threads"] == 256 else 1
    assert told["grid"] <= min(tiles, 132 * blocks)
    small = raw(name, "bfloat16", {"multiprocessors": 3}).explain()
    assert small["grid"] <= 3 * blocks < tiles


def test_a_capability_may_be_any_pair():
    """As JSON gives it back, too."""
    assert raw(None, device=SMALL | {"capability": [8, 6]}).config == raw(None, device=SMALL).config


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("problem", [DENSE, DEPTHWISE], ids=["dense", "depthwise"])
def test_a_gpu_with_little_shared_memory_has_a_plan(problem, dtype):
    made = cuda_plan(problem, dtype, device=SMALL)
    assert made.explain()["shared_bytes"] <= SMALL["shared_per_block"]
    assert problem is DENSE or made.kernel == "depthwise"


def test_only_the_gemm_is_simulated():
    plan = cuda_plan(DENSE, kernel="simt")
    with pytest.raises(ValueError, match="plan: simt; only implicit_gemm is simulated"):
        _C.simulate(plan, 0, 0, 0, 0, 0)
