"""The processes that all of these tests share."""

import pytest
import torch.distributed as dist
from processes import Ranks, several_gpus


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """ranks(function, *arguments) runs a module's function in every process."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.stop()


@pytest.fixture
def gpu_ranks(ranks):
    """The same where every process has a GPU of its own, over NCCL."""
    if not several_gpus():
        pytest.skip("one GPU for every process is needed")
    return ranks
