"""The processes that all of these tests share."""

import pytest
import torch.distributed as dist
from processes import Ranks


@pytest.fixture(scope="session")
def ranks(tmp_path_factory):
    """ranks(function, *arguments) runs a module's function in every process."""
    if not dist.is_available() or not dist.is_gloo_available():
        pytest.skip("this build of PyTorch has no gloo")
    ranks = Ranks(tmp_path_factory.mktemp("ranks"))
    yield ranks
    ranks.stop()
