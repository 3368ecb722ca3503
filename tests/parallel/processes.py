"""Two real processes that talk over gloo: started once, they run one function of a test after the other."""

from __future__ import annotations

import multiprocessing
import os
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from typing import Any

import pytest
import torch
import torch.distributed as dist

WORLD = 2
PATIENCE = 120  # seconds for one job; a collective that one rank never enters would wait for ever


def several_gpus() -> bool:
    """Whether every process gets a GPU of its own."""
    return torch.cuda.device_count() >= WORLD and dist.is_nccl_available()


def serve(rank: int, rendezvous: str, jobs: Connection) -> None:
    """A process: answers (function, arguments) with (error or None), in the process group of all ranks."""
    torch.set_num_threads(1)
    backend = "gloo"
    if several_gpus():
        torch.cuda.set_device(rank)
        backend = "cpu:gloo,cuda:nccl"
    dist.init_process_group(backend, init_method=f"file://{rendezvous}", rank=rank, world_size=WORLD)
    while (job := jobs.recv()) is not None:
        function, arguments = job
        torch.manual_seed(0)
        try:
            function(*arguments)
            jobs.send(None)
        except BaseException:
            jobs.send(f"rank {rank}:\n{traceback.format_exc()}")
    dist.destroy_process_group()
    os._exit(0)  # the interpreter's own way out takes seconds


class Ranks:
    """Runs functions on all ranks at once; a failure on any of them is raised here, and the next job starts afresh."""

    def __init__(self, folder: Any) -> None:
        self.folder = folder
        self.starts = 0
        self.workers: list[tuple[Any, Connection]] = []

    def start(self) -> None:
        context = multiprocessing.get_context("spawn")
        rendezvous = str(self.folder / f"rendezvous{self.starts}")
        self.starts += 1
        for rank in range(WORLD):
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(rank, rendezvous, there), daemon=True)
            process.start()
            there.close()
            self.workers.append((process, here))

    def __call__(self, function: Callable[..., None], *arguments: Any) -> None:
        if not self.workers:
            self.start()
        pipes = [pipe for _, pipe in self.workers]
        for pipe in pipes:
            pipe.send((function, arguments))
        waiting, error = list(pipes), None
        while waiting and error is None:
            ready = wait(waiting, PATIENCE)
            error = None if ready else f"no answer in {PATIENCE} seconds"
            for pipe in ready:
                waiting.remove(pipe)
                try:
                    error = error or pipe.recv()
                except EOFError:
                    error = "a process died"
        if error is not None:
            self.stop(kill=True)
            pytest.fail(error, pytrace=False)

    def stop(self, kill: bool = False) -> None:
        for process, pipe in self.workers:
            if kill:
                process.kill()
            else:
                pipe.send(None)
        for process, _ in self.workers:
            process.join()
        self.workers = []
