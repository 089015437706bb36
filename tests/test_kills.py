"""Trainings killed at random moments: a part of `make kill-test`, and tests of the harness."""

import random
import shutil
from collections import Counter
from importlib.util import find_spec
from itertools import count

import pytest
from kills import compare, loops
from kills.__main__ import kill_all, table
from kills.elastic import compare as elastic_compare
from kills.elastic import launching, training
from kills.killing import Killed, undisturbed
from kills.life import Training
from ranks import on_ranks

SHARE = [  # of all loops, workers, ranks and accumulations
    Training("plain", 0, 2, 1),
    Training("StatefulDataLoader", 1, 1, 1),
    Training("Trainer", 1, 1, 2),
    Training("Lightning", 2, 1, 2),
    Training("Accelerate", 1, 2, 2),
]


@pytest.mark.parametrize("training", SHARE, ids=lambda training: training.loop)
def test_a_killed_training_goes_on_as_if_nothing_had_been(training, tmp_path):
    needs = loops.NEEDS.get(training.loop)
    if needs and not find_spec(needs):
        pytest.skip(f"{needs} is not installed")
    hit, wrong = kill_all([training], 2, 0, tmp_path)
    assert sum(hit.values()) == 2
    assert not wrong, "\n".join(wrong)
    assert f"| {training.loop} | 2 |" in table([training.loop], hit)


def test_what_it_finds(tmp_path):
    """A batch trained twice, one left out, and a lost checkpoint are seen."""
    training = Training("plain", 0, 1, 1)
    whole, seconds = undisturbed(training, tmp_path / "whole")
    assert compare.differences(training, whole.folder, whole.folder) == []

    def spoil(name, change):
        folder = shutil.copytree(whole.folder, tmp_path / name)
        journal = folder / "journal-0"
        lines = journal.read_text().splitlines()
        change(lines)
        journal.write_text("\n".join(lines) + "\n")
        return compare.differences(training, whole.folder, folder)

    def left_out(lines):
        del lines[14]  # batch 14 of epoch 1

    def twice(lines):
        lines.append("batch 25 " + lines[14].split(" ", 2)[2])

    ids = [int(i) for i in (whole.folder / "journal-0").read_text().splitlines()[14].split()[4:]]
    same = "rank 0: other batches or losses"
    words = "epoch 1: not trained {}, trained too often {}"
    assert spoil("left out", left_out) == [words.format(sorted(ids), []), same]
    assert spoil("twice", twice) == [words.format([], sorted(ids)), same]

    # A process that starts over overrides what earlier ones trained. No second process takes as
    # long as the first; one that has finished is not counted.
    chance = random.Random(1)
    for number in count():
        run = Killed(training, tmp_path / f"run {number}")
        ended = run.live(seconds * chance.random(), chance)
        if checkpoints := [] if ended else list(run.folder.glob("whole-*")):
            break
    for checkpoint in checkpoints:
        shutil.rmtree(checkpoint)
    run.live()
    assert compare.differences(training, whole.folder, run.folder) == []


def alone(rank, world, kind, folder):
    training.train(kind, training.Rank(folder))


def test_ranks_killed_under_torchrun(tmp_path):
    """A share of `make kill-test-ranks`: torchrun starts three ranks anew, then two. They train
    what one process does that nobody kills, bit for bit."""
    whole = tmp_path / "whole"
    whole.mkdir()
    on_ranks(1, alone, "shared", whole)
    epochs = elastic_compare.epochs(whole)
    sizes = [training.SAMPLES] + [training.KEEP] * (training.EPOCHS - 1)
    assert [epochs[i].total() for i in range(len(epochs))] == sizes
    moments = Counter()
    chance = random.Random(2)
    for run in launching.killed("shared", "restarts", tmp_path / "run", 2, chance, (3, 2)):
        moments += run.moments
        assert elastic_compare.differences(whole, run.folder) == []
        assert len(elastic_compare.lives(run.folder)) <= 1 + run.moments.total()
    assert moments.total() == 2

    journal = (whole / "journal").read_text().splitlines()
    spoilt = shutil.copytree(whole, tmp_path / "spoilt")
    (spoilt / "journal").write_text("\n".join([*journal[:5], *journal[6:]]))
    ids = sorted(map(int, journal[5].split()[3:]))
    words = f"epoch 1: not trained {ids}, trained too often []"
    assert elastic_compare.differences(whole, spoilt) == [words]
