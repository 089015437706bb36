"""Runs functions in several processes that form a gloo group, and returns their results."""

from __future__ import annotations

import datetime
import multiprocessing
import os
import pickle
import socket
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
import torch.multiprocessing as processes

import emp_kernels  # noqa: F401

TIMEOUT = 60.0  # seconds that a rank waits for another


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def _run(
    rank: int,
    world: int,
    port: int,
    timeout: float,
    target: Callable,
    arguments: tuple,
    folder: Path,
) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=timeout),
    )
    result = target(rank, world, *arguments)
    (folder / str(rank)).write_bytes(pickle.dumps(result))
    dist.destroy_process_group()


# Processes are forked from one that has imported this module and runs no threads.
PRELOADED = ["torch.distributed.tensor", "torch.distributed.checkpoint", "pytest"]
PRELOADED += ["hypothesis.extra.numpy", "hard_rows", "oracle", __name__]
multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)


def on_ranks(world: int, target: Callable, *arguments: Any, timeout: float = TIMEOUT) -> list:
    """The result of `target(rank, world, *arguments)` in each of `world` gloo processes; None for a
    process that ended before by os._exit(0)."""
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # for the forkserver
    with tempfile.TemporaryDirectory() as name, mock.patch.dict(os.environ, path):
        folder = Path(name)
        processes.start_processes(
            _run,
            (world, free_port(), timeout, target, arguments, folder),
            world,
            start_method="forkserver",
        )
        written = [folder / str(rank) for rank in range(world)]
        return [pickle.loads(x.read_bytes()) if x.exists() else None for x in written]
