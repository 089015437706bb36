"""Starts the processes of a training, kills them at a random moment, and restarts them."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import multiprocessing
import multiprocessing.connection
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path
from unittest import mock

import torch
import torch.distributed as dist

from . import loops
from .life import MOMENTS, Life, Training

TIMEOUT = 120.0  # seconds that a life may take

# Processes are forked from one that has imported the loops' packages once, and runs no threads.
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload([f"{__package__}.preloaded"])


def _live(training: Training, folder: Path, rank: int, life: int) -> None:
    os.setsid()  # with its worker processes, it can be killed as a group
    multiprocessing.set_start_method("fork", force=True)  # for the loaders
    torch.set_num_threads(1)
    log = os.open(folder / f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    here = Life(training, folder, rank)
    if training.ranks > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": training.ranks}
        ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 29500, "GLOO_SOCKET_IFNAME": "lo"}
        os.environ.update({name: str(value) for name, value in ranks.items()})
        dist.init_process_group(
            "gloo",
            f"file://{folder}/meeting-{life}",
            rank=rank,
            world_size=training.ranks,
            timeout=datetime.timedelta(seconds=60),
        )
    loops.load(training.loop).train(here)
    if dist.is_initialized():  # its threads may abort a process that ends with them
        dist.destroy_process_group()


def _path() -> dict[str, str]:
    """An environment in which the forkserver can import what this process can."""
    return {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}


class Killed:
    """A training in `folder`, over several processes.

    Attributes:
        moments: how many lives ended in which moment.
    """

    def __init__(self, training: Training, folder: Path) -> None:
        self.training, self.folder = training, folder
        self.moments: Counter[str] = Counter()
        self.lives = 0
        folder.mkdir(parents=True, exist_ok=True)

    def live(self, seconds: float | None = None, chance: random.Random | None = None) -> bool:
        """Run one process and kill it after `seconds`; returns whether it finished before.

        One rank is killed, and the others a little later, as by a launcher.
        """
        self.lives += 1
        processes = self._start()
        begun = time.monotonic()
        try:
            if seconds is not None and chance is not None:
                _wait_for(processes, begun + seconds)
                order = list(range(len(processes)))
                chance.shuffle(order)
                first = processes[order[0]]
                if all(process.is_alive() for process in processes):
                    _kill(first)
                    first.join()
                    time.sleep(chance.random() * 0.01 if len(processes) > 1 else 0)
                    moment = (self.folder / f"moment-{order[0]}").read_bytes()[0]
                    self.moments[MOMENTS[moment]] += 1
                    return False
            _wait_for(processes, begun + TIMEOUT, until_all=True)
            return self._ended_well(processes)
        finally:
            for process in processes:
                _kill(process)
                process.join()

    def warm_up(self) -> None:
        """Wait until the forkserver has imported everything."""
        with mock.patch.dict(os.environ, _path()):
            process = CONTEXT.Process(target=os.getpid)
            process.start()
        process.join()

    def _start(self) -> list[BaseProcess]:
        with mock.patch.dict(os.environ, _path()):
            for rank in range(self.training.ranks):
                (self.folder / f"moment-{rank}").write_bytes(bytes(1))
            processes = [
                CONTEXT.Process(target=_live, args=(self.training, self.folder, rank, self.lives))
                for rank in range(self.training.ranks)
            ]
            for process in processes:
                process.start()
        return list(processes)

    def _ended_well(self, processes: list[BaseProcess]) -> bool:
        for rank, process in enumerate(processes):
            if process.exitcode != 0:
                log = (self.folder / f"log-{rank}").read_text()[-4000:]
                raise RuntimeError(
                    f"{self.training}, life {self.lives}: rank {rank} ended with "
                    f"{process.exitcode}\n{log}"
                )
        return True


def _wait_for(processes: list[BaseProcess], until: float, until_all: bool = False) -> None:
    """Return at `until`, or when any process (`until_all`: every one, or a failing one) has
    ended."""
    while (left := until - time.monotonic()) > 0:
        alive = [process for process in processes if process.is_alive()]
        failed = any(process.exitcode not in (None, 0) for process in processes)
        if not alive or failed or (len(alive) < len(processes) and not until_all):
            return
        multiprocessing.connection.wait([process.sentinel for process in alive], left)


def _kill(process: BaseProcess) -> None:
    """SIGKILL to one of our processes and its workers."""
    if process.pid is None:
        return
    for kill in (os.killpg, os.kill):
        with contextlib.suppress(ProcessLookupError):
            kill(process.pid, signal.SIGKILL)


def undisturbed(training: Training, folder: Path) -> tuple[Killed, float]:
    """The undisturbed training, and its duration in seconds."""
    whole = Killed(training, folder)
    whole.warm_up()
    begun = time.monotonic()
    whole.live()
    return whole, time.monotonic() - begun


def killed(
    training: Training, folder: Path, kills: int, seconds: float, chance: random.Random
) -> Iterator[Killed]:
    """The training killed `kills` times, each at a moment between 0 and `seconds`; yields each
    finished run."""
    left = kills
    for number in itertools.count():
        if left == 0:
            return
        run = Killed(training, folder / str(number))
        for _ in range(min(left, chance.randint(1, 4))):
            if run.live(chance.random() * seconds, chance):
                break
            left -= 1
        else:
            run.live()
        yield run
