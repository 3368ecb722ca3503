"""`convt info`: what this build is, what it runs on, and why there is no GPU when there is none."""

from __future__ import annotations

import json
import platform
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from convt import _C
from convt.bench import machine
from convt.choices import cpu_name
from convt.plan import LEAST_CAPABILITY


def gather() -> dict[str, Any]:
    """Everything that `convt info` prints, as plain JSON values."""
    build = _C.build_info()
    gpus = [
        {
            "name": gpu["name"],
            "capability": list(gpu["capability"]),
            "multiprocessors": gpu["multiprocessors"],
            "memory_bytes": gpu["memory_bytes"],
        }
        for gpu in _C.cuda_devices()
    ]
    return {
        "version": build["version"],
        "compiler": build["compiler"],
        "commit": machine.commit(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "isa": _C.isa(),
        "isas": list(build["isas"]),
        "threads": _C.num_threads(),
        "cuda": build["cuda"],
        "cuda_architectures": build["cuda_architectures"],
        "torch_cuda": torch.version.cuda,
        "gpus": gpus,
        "no_gpu": None if gpus else _why_no_gpu(build["cuda"]),
    }


def _why_no_gpu(cuda: str | None) -> str:
    if torch.cuda.is_available():
        names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
        built = "was built without CUDA" if cuda is None else "cannot open it"
        return f"PyTorch sees {names}, but this build of convt {built}; GPU tensors run through ATen"
    if torch.version.cuda is None:
        return "this PyTorch is a CPU build" + ("" if cuda is not None else ", and convt was built without CUDA")
    return "PyTorch finds no NVIDIA GPU or no driver"


def show(*, as_json: bool = False, console: Console | None = None) -> int:
    """Print it as a table, or as one JSON object."""
    facts = gather()
    if as_json:
        print(json.dumps(facts, indent=2))
        return 0
    console = console or Console()
    rows = {
        "convt": f"{facts['version']}" + (f" ({facts['commit']})" if facts["commit"] else ""),
        "compiler": facts["compiler"],
        "CPU": f"{facts['cpu']}, {facts['threads']} threads",
        "instruction set": f"{facts['isa']} of {', '.join(facts['isas'])}",
        "Python": facts["python"],
        "PyTorch": f"{facts['torch']}, CUDA {facts['torch_cuda'] or 'none'}",
        "CUDA build": "none" if facts["cuda"] is None else f"{facts['cuda']} for {facts['cuda_architectures']}",
        "GPU": facts["no_gpu"] and f"none: {facts['no_gpu']}",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows.items():
        if value:
            table.add_row(name, str(value))
    for gpu in facts["gpus"]:
        major, minor = gpu["capability"]
        table.add_row(
            "GPU",
            f"{gpu['name']}, compute capability {major}.{minor}, {gpu['multiprocessors']} multiprocessors, "
            f"{gpu['memory_bytes'] / 2**30:.0f} GiB"
            + (": too old for convt's kernels, ATen computes" if major < LEAST_CAPABILITY[0] else ""),
        )
    console.print(table, highlight=False)
    return 0
