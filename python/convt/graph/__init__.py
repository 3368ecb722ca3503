"""Unmodified models: the rewrite of a graph that has PyTorch's transposed convolutions, and a backend made of it."""

from .backend import compile_backend, inductor_pass
from .rewrite import rewrite

__all__ = ["compile_backend", "inductor_pass", "rewrite"]
