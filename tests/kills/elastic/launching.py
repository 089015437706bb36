"""Starts torchrun, and kills ranks at random moments."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import torch.distributed as dist

from .training import MOMENTS, STEPS, WORLDS

TIMEOUT = 900.0  # seconds that a launch may take
STARTING = 5.0  # in which a rank that starts is killed
ROOT = Path(__file__).parents[3]


class Training:
    """A training in `folder`, launch after launch.

    Attributes:
        moments: how many ranks were killed in which moment.
        world: how many ranks there were as each was killed.
    """

    def __init__(self, kind: str, folder: Path, chance: random.Random) -> None:
        self.kind, self.folder, self.chance = kind, folder, chance
        self.moments: Counter[str] = Counter()
        self.worlds: Counter[int] = Counter()
        self.torchruns: list[subprocess.Popen] = []
        self._gone: set[int] = set()  # ranks of lives that are over
        folder.mkdir(parents=True)

    def start(self, *options: str) -> None:
        """One more torchrun beside those that run."""
        path = [str(ROOT), str(ROOT / "tests"), *filter(None, sys.path)]
        environment = {
            "PYTHONPATH": os.pathsep.join(path),
            "GLOO_SOCKET_IFNAME": "lo",
            "OMP_NUM_THREADS": "1",
            # Else ranks started anew find the addresses of those before in torchrun's own store,
            # or wait for that of a machine that is gone (torch 2.13).
            "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        }
        command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "c10d"]
        command += ["--monitor-interval", "0.1", *options]
        with (self.folder / "log").open("ab") as log:
            self.torchruns.append(
                subprocess.Popen(
                    [*command, "-m", "kills.elastic.training", self.kind, str(self.folder)],
                    env=os.environ | environment,
                    stdout=log,
                    stderr=log,
                )
            )

    def kill(self, with_node: bool = False) -> bool:
        """SIGKILL to a rank, and, `with_node`, to its torchrun before: while they start, or behind
        a step drawn at random, there at any time or in a moment that is drawn, too. False where the
        training came to its end before."""
        chance = self.chance.random()
        if chance < 0.1 and not with_node:  # torchrun cannot do without one that is lost so early
            self._wait(lambda: bool(self._ranks()))
            self._wait(_passed(self.chance.random() * STARTING))
        else:
            self._wait(self._all_begun)
            step, pids = self.chance.randrange(STEPS), list(self._ranks())
            at = self.chance.choice(MOMENTS[1:]) if chance < 0.6 else None
            if pids and at in (None, *MOMENTS[3:]):
                self._wait(lambda: _at(self.folder, pids[0])[1] >= step, 0.001)
            if pids and at is not None:
                self._wait(lambda: _at(self.folder, pids[0])[0] == at, 0.0002)
            time.sleep(self.chance.random() * (0.1 if at is None else 0.003))
        ranks = self._ranks()
        if not ranks or any(torchrun.poll() is not None for torchrun in self.torchruns):
            return False
        pid = self.chance.choice(list(ranks))
        if with_node:
            ranks[pid].kill()
            ranks[pid].wait()
            self.torchruns.remove(ranks[pid])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self.moments[_at(self.folder, pid)[0]] += 1
        self.worlds[len(ranks)] += 1
        self._gone |= set(ranks)
        return True

    def end(self) -> bool:
        """Wait for the torchruns: whether the training came to its end."""
        self._wait(lambda: False)
        codes = [torchrun.returncode for torchrun in self.torchruns]
        self.torchruns = []
        return not any(codes)

    def stop(self) -> None:
        """Leave nothing behind."""
        ranks = self._ranks()
        for torchrun in self.torchruns:
            torchrun.kill()
            torchrun.wait()
        for pid in ranks:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def _ranks(self) -> dict[int, subprocess.Popen]:
        """The processes of the life that goes on, and which torchrun started each."""
        found = {}
        for torchrun in self.torchruns:
            children = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
            with contextlib.suppress(OSError):
                found |= dict.fromkeys(map(int, children.read_text().split()), torchrun)
        return {pid: torchrun for pid, torchrun in found.items() if pid not in self._gone}

    def _all_begun(self) -> bool:
        """Whether all torchruns have ranks, which run the training's own code."""
        ranks = self._ranks()
        begun = [pid for pid in ranks if (self.folder / f"moment-{pid}").exists()]
        started = {torchrun.pid for torchrun in ranks.values()}
        return len(started) == len(self.torchruns) and len(begun) == len(ranks)

    def _wait(self, reached: Callable[[], bool], pause: float = 0.005) -> None:
        """Return as something is reached, or as all torchruns have ended."""
        until = time.monotonic() + TIMEOUT
        while not reached():
            if all(torchrun.poll() is not None for torchrun in self.torchruns):
                return
            if time.monotonic() > until:
                log = (self.folder / "log").read_text()[-4000:]
                raise RuntimeError(f"{self.folder}: no end within {TIMEOUT} s\n{log}")
            time.sleep(pause)


def _passed(seconds: float) -> Callable[[], bool]:
    until = time.monotonic() + seconds
    return lambda: time.monotonic() > until


def _at(folder: Path, pid: int) -> tuple[str, int]:
    """What a rank does, and behind how many steps; before it runs the training's own code, it
    starts."""
    try:
        moment, steps = (folder / f"moment-{pid}").read_bytes()
    except FileNotFoundError:
        return MOMENTS[0], 0
    return MOMENTS[moment], steps


def _log(training: Training) -> str:
    return (training.folder / "log").read_text()[-4000:]


def restarted(training: Training, worlds: tuple[int, ...], kills: int) -> None:
    """Of each number of ranks a torchrun, which starts all ranks anew behind a first kill and ends
    behind a second one: the next goes on with fewer ranks. At most `kills`."""
    for world in worlds:
        last = world == worlds[-1]
        training.start(
            *("--nnodes", "1", "--nproc-per-node", str(world), "--max-restarts", "1"),
            *("--rdzv-endpoint", "127.0.0.1:0"),
        )
        for _ in range(1 if last else 2):
            left = kills - sum(training.moments.values())
            if left > 0 and not training.kill():
                break
        if training.end():
            return
    raise RuntimeError(f"{training.folder}: the training did not come to its end\n{_log(training)}")


def shrunk(training: Training, worlds: tuple[int, ...], kills: int) -> None:
    """As many torchruns of a rank each as there are ranks, as on so many machines: with one that is
    killed its rank is, and the others go on without it, until there are `worlds[-1]`."""
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    options = "is_host=0,keep_alive_interval=2,keep_alive_max_attempt=8,last_call_timeout=2"
    for _ in range(worlds[0]):
        training.start(
            *("--nnodes", f"{worlds[-1]}:{worlds[0]}", "--nproc-per-node", "1"),
            *("--max-restarts", "9", "--rdzv-endpoint", f"127.0.0.1:{store.port}"),
            *("--rdzv-id", "killed", "--rdzv-conf", options),
        )
    for _ in range(min(kills, worlds[0] - worlds[-1])):
        if not training.kill(with_node=True):
            break
    if not training.end():
        raise RuntimeError(f"{training.folder}: torchruns failed\n{_log(training)}")


WAYS = {"restarts": restarted, "machines lost": shrunk}


def killed(
    kind: str,
    way: str,
    folder: Path,
    kills: int,
    chance: random.Random,
    worlds: tuple[int, ...] = WORLDS,
) -> Iterator[Training]:
    """Trainings killed `kills` times together; each as it has come to its end."""
    number = 0
    while kills > 0:
        training = Training(kind, folder / str(number), chance)
        try:
            WAYS[way](training, worlds, kills)
        finally:
            training.stop()
        kills -= sum(training.moments.values())
        number += 1
        yield training
