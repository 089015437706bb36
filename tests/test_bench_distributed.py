"""The model of an epoch's start against what real ranks give to torch.distributed."""

import pytest
from ranks import on_ranks

from bench import bench_distributed, distributed_model
from emp_kernels.distributed import orders, sharing, states, write_log

SAMPLES, KEEP, CALL = 30_000, 0.31, 700


def travel_in_pieces():
    write_log._FEWEST = write_log._MOST = 1500
    sharing._DRAWN = orders._PIECE = 900
    states._ROWS = 800


def counted(rank, world):
    """What a rank sends, of both kinds."""
    travel_in_pieces()
    bench_distributed.CALL, bench_distributed.ROUNDS = CALL, 4
    sent = bench_distributed.Sent(rank, world)
    rows = [
        bench_distributed.epochs_of(kind, SAMPLES, KEEP, sent)[0] for kind in ("shared", "whole")
    ]
    return [(row["sent_bytes"], row["sent_messages"]) for row in rows]


@pytest.mark.parametrize("world", [1, 2, 3, 5])
def test_what_ranks_send(world, monkeypatch):
    """Messages exactly; bytes exactly, but for how many of a rank's entries are its own."""
    found = on_ranks(world, counted)
    for module, name in (
        *((write_log, "_FEWEST"), (write_log, "_MOST"), (sharing, "_DRAWN")),
        *((orders, "_PIECE"), (states, "_ROWS")),
    ):
        monkeypatch.setattr(module, name, getattr(module, name))
    travel_in_pieces()
    epoch = distributed_model.Epoch(SAMPLES, world, KEEP, CALL)
    assert distributed_model.log_blocks(epoch) > 1
    for kind, *of_ranks in zip(("shared", "whole"), *found, strict=True):
        want = distributed_model.sends(kind, epoch)
        if kind == "shared" and of_ranks[0][1] != want.messages:
            want = distributed_model.sends(kind, epoch._replace(ties=False))
        assert {messages for _, messages in of_ranks} == {want.messages}
        sent = [size for size, _ in of_ranks]
        if kind == "whole":
            assert set(sent) == {want.bytes}
        else:
            assert sum(sent) == pytest.approx(world * want.bytes, rel=0.02)


def test_the_fit_finds_coefficients():
    rows = [
        {"state": kind, "samples": 10**6, "ranks": ranks, "keep": keep}
        for kind in distributed_model.COLLECTIVES
        for keep in (0.1, 0.3, 0.9)
        for ranks in (1, 2)
    ]
    for row in rows:
        epoch = distributed_model.epoch_of(row)
        row["start_cpu_seconds"] = distributed_model.seconds(
            row["state"], epoch, [3e-8, 2e-9, 1e-9]
        )
    for kind in distributed_model.COLLECTIVES:
        epoch = distributed_model.Epoch(10**9, 64, 0.1)
        got = distributed_model.seconds(kind, epoch, distributed_model.fitted(rows, kind))
        want = distributed_model.seconds(kind, epoch, [3e-8, 2e-9, 1e-9])
        assert got == pytest.approx(want, rel=0.05)
