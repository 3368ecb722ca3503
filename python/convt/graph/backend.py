"""torch.compile(model, backend="convt"): the pass, and then another compiler for the rest of the graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import wrapt
from torch import Tensor, fx

from .rewrite import rewrite

NAME = "convt"


def compile_backend(
    gm: fx.GraphModule,
    example_inputs: Sequence[Tensor],
    *,
    inner: str | Callable[..., Any] = "inductor",
    mode: str | None = None,
    options: Mapping[str, Any] | None = None,
) -> Callable[..., Any]:
    """A backend for torch.compile: convt's rewrite of the graph, compiled by another backend.

    inner is the name of a backend of Dynamo's ("inductor", "aot_eager", "eager", ...) or one itself; it can stand in
    options as well: torch.compile(model, backend="convt", options={"inner": "aot_eager"}). mode and the other options
    are inductor's own. Raises ValueError for them with another inner backend.
    """
    settings = dict(options or {})
    inner = settings.pop("inner", inner)
    rewrite(gm)
    if inner == "inductor":
        from torch._inductor import list_mode_options
        from torch._inductor.compile_fx import compile_fx

        patches = {**(list_mode_options(mode) if mode else {}), **settings}
        compiled: Any = compile_fx(gm, example_inputs, config_patches=patches)
        return compiled  # type: ignore[no-any-return]
    if mode or settings:
        raise ValueError(f"convt.compile_backend: mode {mode!r} and options {settings} are inductor's, not {inner!r}'s")
    from torch._dynamo.backends.registry import lookup_backend

    return lookup_backend(inner)(gm, list(example_inputs))


@wrapt.when_imported("torch._dynamo")
def _register(_: ModuleType) -> None:
    """Make the name known where the package's metadata, and with it the entry point, is not installed."""
    if not any(point.name == NAME for point in entry_points(group="torch_dynamo_backends")):
        torch._dynamo.register_backend(compile_backend, name=NAME)


def inductor_pass() -> Any:
    """The rewrite as torch._inductor.config.pre_grad_custom_pass takes it, with an identity for inductor's caches."""
    try:
        from torch._inductor.custom_graph_pass import CustomGraphPass, get_hash_for_files
    except ImportError:  # PyTorch before 2.6 takes functions only
        return rewrite

    class Rewrite(CustomGraphPass):
        def __call__(self, graph: fx.Graph) -> None:
            rewrite(graph)

        def uuid(self) -> Any:
            return get_hash_for_files(tuple(str(path) for path in sorted(Path(__file__).parent.glob("*.py"))))

    return Rewrite()
