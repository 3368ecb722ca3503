"""Training in two processes: DDP, FSDP2 and channels shared out, against one process that sees everything."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from test_sharding import collectives, compile, mesh_of_all

import convt

parallel = pytest.importorskip("convt.parallel", reason="torch 2.4 keeps DTensor elsewhere")
fsdp = pytest.importorskip("torch.distributed.fsdp")

from torch.distributed.checkpoint import state_dict  # noqa: E402
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor, init_device_mesh  # noqa: E402
from torch.distributed.tensor.debug import CommDebugMode  # noqa: E402
from torch.distributed.tensor.parallel import parallelize_module  # noqa: E402
from torch.nn.parallel import DistributedDataParallel  # noqa: E402

KINDS = ("own", "accelerated")


def decoder(kind):
    """Two 2-D layers, groups among them, with something in between; PyTorch's modules for "accelerated"."""
    torch.manual_seed(1)
    nn = convt.nn if kind == "own" else torch.nn
    model = torch.nn.Sequential(
        nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, groups=2, bias=False),
        torch.nn.GroupNorm(2, 6),
        torch.nn.SiLU(),
        nn.ConvTranspose2d(6, 3, 3, stride=2, output_padding=1),
    )
    if kind == "accelerated":
        convt.accelerate(model)
    assert all(isinstance(model[place], convt.nn.ConvTranspose2d) for place in (0, 3))
    return model.double()


def batch():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(6, 4, 3, 4, generator=generator, dtype=torch.float64)


def mine(tensor):
    return tensor.chunk(dist.get_world_size())[dist.get_rank()]


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def train(model, input, steps=3):
    """Losses of a few steps, and the gradients of the last."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = model(input).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses), [full(parameter.grad) for parameter in model.parameters()]


def check_training(model, reference):
    """The ranks' halves of a batch train a model as one process does with the whole."""
    whole = batch().to(next(reference.parameters()).device)
    expected, expected_grads = train(reference, whole)
    losses, grads = train(model, mine(whole))
    dist.all_reduce(losses)
    torch.testing.assert_close(losses / dist.get_world_size(), expected)
    for actual, value in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(actual, value)
    for actual, value in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(full(actual.detach()), value.detach())


def check_ddp(kind, keywords, device="cpu"):
    model = decoder(kind).to(device)
    check_training(DistributedDataParallel(copy.deepcopy(model), **keywords), model)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "keywords",
    ({}, {"static_graph": True, "gradient_as_bucket_view": True, "bucket_cap_mb": 1e-4}),
    ids=("plain", "all"),
)
def test_ddp(ranks, kind, keywords):
    ranks(check_ddp, kind, keywords)


def check_ddp_accumulates():
    model = decoder("own")
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    half = mine(batch())
    with wrapped.no_sync():
        wrapped(half[:1]).square().sum().backward()
    wrapped(half[1:]).square().sum().backward()
    model(batch()).square().sum().backward()
    for actual, value in zip(wrapped.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(actual.grad * dist.get_world_size(), value.grad)


@pytest.mark.cuda
@pytest.mark.parametrize("kind", KINDS)
def test_ddp_on_gpus(gpu_ranks, kind):
    gpu_ranks(check_ddp, kind, {}, "cuda")


def check_accelerated_when_wrapped():
    """accelerate finds modules inside DDP, and leaves those alone whose class FSDP2 has replaced."""
    layer = torch.nn.ConvTranspose2d(4, 6, 3)
    wrapped = convt.accelerate(DistributedDataParallel(torch.nn.Sequential(copy.deepcopy(layer))))
    assert type(wrapped.module[0]) is convt.nn.ConvTranspose2d
    input = torch.randn(2, 4, 3, 4)
    torch.testing.assert_close(wrapped(input), layer(input))
    if hasattr(fsdp, "fully_shard"):
        other = convt.accelerate(fsdp.fully_shard(copy.deepcopy(layer), mesh=mesh_of_all()))
        assert not isinstance(other, convt.nn.ConvTranspose2d)
        torch.testing.assert_close(other(input), layer(input))


def test_accelerated_when_wrapped(ranks):
    ranks(check_accelerated_when_wrapped)


def test_ddp_accumulates(ranks):
    ranks(check_ddp_accumulates)


def check_ddp_compiled():
    torch._dynamo.reset()
    model = decoder("own")
    wrapped = DistributedDataParallel(copy.deepcopy(model))
    check_training(torch.compile(wrapped, backend="aot_eager"), model)


def test_ddp_compiled(ranks):
    ranks(check_ddp_compiled)


def sharded(model, **keywords):
    mesh = mesh_of_all("cuda" if model[0].weight.is_cuda else "cpu")
    for layer in (model[0], model[3], model):
        fsdp.fully_shard(layer, mesh=mesh, **keywords)
    return model


def check_fsdp(kind, keywords, device="cpu"):
    model = decoder(kind).to(device)
    wrapped = sharded(copy.deepcopy(model), **keywords)
    assert all(isinstance(parameter, DTensor) for parameter in wrapped.parameters())
    check_training(wrapped, model)
    options = state_dict.StateDictOptions(full_state_dict=True)
    saved = state_dict.get_model_state_dict(wrapped, options=options)
    if dist.get_rank() == 0:
        fresh = decoder(kind).to(device)
        fresh.load_state_dict(saved, strict=True)
        torch.testing.assert_close(fresh(batch().to(device)), model(batch().to(device)))


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="fully_shard is public from torch 2.6 on")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("keywords", ({}, {"reshard_after_forward": False}), ids=("zero3", "zero2"))
def test_fsdp2(ranks, kind, keywords):
    ranks(check_fsdp, kind, keywords)


@pytest.mark.cuda
@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="fully_shard is public from torch 2.6 on")
def test_fsdp2_on_gpus(gpu_ranks):
    gpu_ranks(check_fsdp, "own", {}, "cuda")


def check_fsdp_from_meta():
    """The usual way for models too large for one machine: no data before the shards are cut."""
    model = decoder("own")
    with torch.device("meta"):
        empty = decoder("own")
    wrapped = sharded(empty).to_empty(device="cpu")
    options = state_dict.StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    state_dict.set_model_state_dict(wrapped, model.state_dict() if dist.get_rank() == 0 else {}, options=options)
    check_training(wrapped, model)


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="fully_shard is public from torch 2.6 on")
def test_fsdp2_from_meta(ranks):
    ranks(check_fsdp_from_meta)


def check_fsdp_mixed():
    model = decoder("own").float()
    policy = fsdp.MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    wrapped = sharded(copy.deepcopy(model), mp_policy=policy)
    output = wrapped(batch().float())
    assert output.dtype is torch.bfloat16
    output.float().square().mean().backward()
    model(batch().float()).square().mean().backward()
    for actual, value in zip(wrapped.parameters(), model.parameters(), strict=True):
        assert actual.grad.dtype is torch.float32
        torch.testing.assert_close(full(actual.grad), value.grad, rtol=0.1, atol=0.1 * value.grad.abs().max().item())


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="fully_shard is public from torch 2.6 on")
def test_fsdp2_mixed_precision(ranks):
    ranks(check_fsdp_mixed)


def pair(rank):
    """Two layers without groups, channels that two ranks cannot halve."""
    kind = getattr(convt.nn, f"ConvTranspose{rank}d")
    torch.manual_seed(2)
    first, second = kind(3, 5, 3, stride=2), kind(5, 2, 2, stride=2, bias=rank != 3)
    return torch.nn.Sequential(first, torch.nn.ReLU(), second).double()


PLAN = {"0": parallel.ColwiseParallel(), "2": parallel.RowwiseParallel()}


def check_channels(rank, compiled):
    model = pair(rank)
    shared = parallelize_module(copy.deepcopy(model), mesh_of_all(), PLAN)
    assert shared[0].weight.placements == (Shard(1),) and shared[2].weight.placements == (Shard(0),)
    plain = torch.randn(2, 3, *(3, 4, 2)[:rank], dtype=torch.float64, requires_grad=True)
    input = plain.detach().clone().requires_grad_()
    expected = model(plain)
    expected.square().sum().backward()
    if compiled:
        graphs, function = compile(shared)
        output = function(input)
        output.square().sum().backward()
        sums = [[name for name in collectives(graph) if "wait" not in name] for graph in graphs]
        assert [len(names) for names in sums] == [1, 1] and all("all_reduce" in name for [name] in sums), sums
    else:
        with CommDebugMode() as forward:
            output = shared(input)
        with CommDebugMode() as backward:
            output.square().sum().backward()
        for part in (forward, backward):
            assert part.get_total_counts() == 1 and "all_reduce" in str(part.get_comm_counts())
    assert not isinstance(output, DTensor)
    torch.testing.assert_close(output, expected)
    torch.testing.assert_close(input.grad, plain.grad)
    for actual, value in zip(shared.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(full(actual.grad), value.grad)


@pytest.mark.parametrize("compiled", (False, True), ids=("eager", "compiled"))
@pytest.mark.parametrize("rank", (1, 2, 3))
def test_channels_shared_out(ranks, rank, compiled):
    ranks(check_channels, rank, compiled)


def check_layouts():
    mesh, model = mesh_of_all(), pair(2)
    layer = copy.deepcopy(model[0])
    input = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    style = parallel.ColwiseParallel(input_layouts=Shard(0), output_layouts=Replicate(), use_local_output=False)
    parallelize_module(layer, mesh, style)
    output = layer(mine(input), output_size=[10, 10])
    assert output.placements == (Replicate(),)
    torch.testing.assert_close(output.to_local(), model[0](input, [10, 10]))
    torch.testing.assert_close(layer(distribute_tensor(input, mesh, [Shard(1)])).to_local(), model[0](input))
    for module, error, match in (
        (torch.nn.ConvTranspose2d(2, 2, 1), TypeError, "convt.accelerate"),
        (convt.nn.ConvTranspose2d(2, 2, 1, groups=2), ValueError, "groups must be 1, got 2"),
        (convt.nn.ConvTranspose2d(1, 2, 1), ValueError, "in_channels must leave no rank .* got 1"),
    ):
        with pytest.raises(error, match=match):
            parallelize_module(module, mesh, parallel.RowwiseParallel())
    with pytest.raises(RuntimeError, match="batch"):
        layer(input[0])


def test_layouts_and_refusals(ranks):
    ranks(check_layouts)


def check_two_axes():
    """A mesh of two axes: every combination of splits along them."""
    world = dist.get_world_size()
    model = pair(2)
    for sizes in ((world, 1), (1, world)):
        mesh = init_device_mesh("cpu", sizes)
        for here in ([Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(1), Shard(0)]):
            input = batch()[:, :3]
            weights = [Shard(0) if placement == Shard(1) else Replicate() for placement in here]
            layer = model[0]
            arguments = [distribute_tensor(layer.weight.detach(), mesh, weights).requires_grad_()]
            arguments.append(distribute_tensor(layer.bias.detach(), mesh, [Replicate(), Replicate()]))
            output = convt.conv_transpose2d(distribute_tensor(input, mesh, here), *arguments, stride=2)
            torch.testing.assert_close(output.full_tensor(), layer(input))
            (grad,) = torch.autograd.grad(output.pow(2).sum(), arguments[:1])
            (expected,) = torch.autograd.grad(layer(input).pow(2).sum(), [layer.weight])
            torch.testing.assert_close(grad.full_tensor(), expected)


def test_a_mesh_of_two_axes(ranks):
    ranks(check_two_axes)


def check_channels_and_batch():
    """FSDP2 along one axis of a mesh, channels along the other."""
    world = dist.get_world_size()
    for sizes in ((world, 1), (1, world)):
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("data", "channels"))
        model = pair(2)
        both = parallelize_module(copy.deepcopy(model), mesh["channels"], PLAN)
        for layer in (both[0], both[2], both):
            fsdp.fully_shard(layer, mesh=mesh["data"])
        input = batch()[:, :3]
        part = input.chunk(sizes[0])[mesh["data"].get_local_rank()]
        output = both(part)
        torch.testing.assert_close(output, model(part))
        output.square().mean().backward()
        model(input).square().mean().backward()
        for actual, value in zip(both.parameters(), model.parameters(), strict=True):
            assert actual.device_mesh.ndim == 2
            torch.testing.assert_close(full(actual.grad), value.grad)


@pytest.mark.skipif(not hasattr(fsdp, "fully_shard"), reason="fully_shard is public from torch 2.6 on")
def test_channels_and_batch(ranks):
    ranks(check_channels_and_batch)
