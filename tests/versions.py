"""What older versions of PyTorch lack, as marks of tests."""

from __future__ import annotations

import pytest
import torch

answers_in_c = pytest.mark.skipif(
    not hasattr(torch.compiler, "substitute_in_graph"),
    reason="Dynamo cannot trace a C function before PyTorch 2.5: Python answers all calls",
)
has_fp32_precision = pytest.mark.skipif(
    not hasattr(torch.backends.cudnn, "conv"), reason="torch.backends.cudnn.conv.fp32_precision is younger"
)
