"""A training killed in mid-epoch resumes from its last checkpoint, bit for bit."""

import multiprocessing
import os
import random
import signal
import sys
import time
from pathlib import Path
from unittest import mock

import pytest
import torch

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
STEPS = 62

# Processes are forked from one that has imported this file and runs no threads.
multiprocessing.get_context("forkserver").set_forkserver_preload([__name__])


def train(folder):
    """The plain example in this process, recording steps, losses and the final results in files."""
    sys.path.insert(0, str(EXAMPLES))
    import plain

    torch.set_num_threads(1)
    with (folder / "log").open("a", buffering=1) as log:
        sys.stdout = log
        model, state = plain.train(
            folder / "checkpoint.pt", lambda step, loss: print(f"step {step} {loss.hex()}")
        )
        sys.stdout = sys.__stdout__
    contents = {"model": model.state_dict(), "state": state.state_dict()}
    torch.save(contents, folder / "result.pt")


def start(folder):
    folder.mkdir(exist_ok=True)
    path = {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # for the forkserver
    with mock.patch.dict(os.environ, path):
        process = multiprocessing.get_context("forkserver").Process(target=train, args=(folder,))
        process.start()
    return process


def losses(folder):
    """The last loss logged of each step: a step trained twice is logged twice."""
    lines = (folder / "log").read_text().splitlines()
    return {line.split()[1]: line.split()[2] for line in lines if line.startswith("step ")}


def epochs(folder):
    """What each epoch drew and how it overlapped, as the example prints it."""
    lines = (folder / "log").read_text().splitlines()
    return sorted({line for line in lines if line.startswith("epoch ")})


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    process = start(folder)
    process.join()
    assert process.exitcode == 0
    assert len(losses(folder)) == STEPS
    return folder


def flat(contents, name=""):
    if isinstance(contents, dict):
        return [x for key, value in contents.items() for x in flat(value, f"{name}.{key}")]
    return [(name, contents.tolist() if isinstance(contents, torch.Tensor) else contents)]


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_training_goes_on_bit_for_bit(seed, whole, tmp_path):
    folder = tmp_path / "run"
    chance = random.Random(seed)
    step = chance.randrange(1, STEPS - 1)
    process = start(folder)
    while process.is_alive() and not ((folder / "log").exists() and len(losses(folder)) >= step):
        time.sleep(0.0005)
    time.sleep(chance.random() * 0.005)  # anywhere in the step, also while it saves
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert step <= len(losses(folder)) < STEPS
    again = start(folder)
    again.join()
    assert again.exitcode == 0
    assert losses(folder) == losses(whole)
    assert epochs(folder) == epochs(whole)
    ours, theirs = (
        flat(torch.load(run / "result.pt", weights_only=True)) for run in (folder, whole)
    )
    assert ours == theirs
