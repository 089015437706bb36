"""distributed.select, compared with one process that has all scores, and its errors."""

import datetime
import functools
import math
import os
import time
from types import SimpleNamespace

import oracle
import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks

import emp_kernels as emp
from emp_kernels.distributed import score_vocab_parallel, select
from emp_kernels.distributed.selection import Disagreement, Terms, _Keys, counting_rounds
from emp_kernels.order_keys import order_keys

INF, NAN = math.inf, math.nan


# ---- the counting, without processes: every rank's generator, in step


def sent(rounds, total):
    """What the generator yields next, or returns."""
    try:
        return rounds.send(total)
    except StopIteration as finished:
        return finished.value


def simulate(histograms, terms):
    """(how many each rank selects, lengths of the all-reduces)."""
    ranks = len(histograms)
    rounds = [
        counting_rounds(histogram, own, rank, ranks)
        for rank, (histogram, own) in enumerate(zip(histograms, terms, strict=True))
    ]
    counts, lengths = [next(each) for each in rounds], []
    while True:
        assert {c.dtype for c in counts} == {torch.int64}
        lengths.append({len(c) for c in counts}.pop())
        total, counts, results = torch.stack(counts).sum(0), [], []
        for each in rounds:
            result = sent(each, total)
            (results if isinstance(result, int) else counts).append(result)
        if not counts:
            return results, lengths


def simulated_select(parts, keep):
    terms = [Terms(keep, part.dtype == torch.float64, True) for part in parts]
    counts, lengths = simulate([_Keys(part) for part in parts], terms)
    assert max(lengths) <= 2048 + 67
    return [emp.select(part, k) if k else [] for part, k in zip(parts, counts, strict=True)]


def joined(parts, selections):
    """Positions in the concatenated parts."""
    starts = torch.tensor([0, *map(len, parts)]).cumsum(0)
    return [
        int(i) + int(start) for start, own in zip(starts, selections, strict=False) for i in own
    ]


def scores_of(ranks, seed, dtype=torch.float32):
    """Parts of uneven length, some empty; few values, so many ties, or many; all the special
    ones."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for _ in range(ranks):
        n = int(torch.randint(1, 50, (), generator=generator)) * int(
            torch.rand((), generator=generator) < 0.8
        )
        values = torch.randn(n, generator=generator)
        if seed % 3:
            values = (values * (seed % 3)).round()
        special = torch.tensor([NAN, -NAN, INF, -INF, -0.0, 0.0, 1e-42])
        where = torch.rand(n, generator=generator) < 0.3
        drawn = special[torch.randint(len(special), (n,), generator=generator)]
        parts.append(torch.where(where, drawn, values).to(dtype))
    return parts


def keeps_of(parts, seed):
    n = sum(map(len, parts))
    return [0.3, 1.0, 1e-9, 1 + seed % n, n, n - n // 8] if n else [0.3, 4]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("ranks", range(1, 9))
def test_equals_selecting_from_all_scores(ranks, dtype):
    for seed in range(6):
        parts = scores_of(ranks, 100 * ranks + seed, dtype)
        for keep in keeps_of(parts, seed):
            want = emp.select(torch.cat(parts), keep).tolist()
            assert want == oracle.select(torch.cat(parts), keep).tolist()
            assert joined(parts, simulated_select(parts, keep)) == want, (seed, keep)


@pytest.mark.parametrize("step", [1, 7, 11, 12, 21, 22, 31])
def test_scores_that_differ_in_one_digit_only(step):
    """Neighbours in the order of the bits, below and above the edges of the digits."""
    around = torch.arange(-40, 41, dtype=torch.int64) * (1 << step) // 8
    bits = (0x3F800000 + around).clamp(0, 0x7F800000).to(torch.int32)
    scores = bits.view(torch.float32)
    scores = torch.cat([scores, -scores, scores[:9]])[torch.randperm(171)]
    parts = list(scores.split([50, 0, 100, 21]))
    for keep in (1, 5, 40, 86, 130, 171):
        want = oracle.select(scores, keep).tolist()
        assert joined(parts, simulated_select(parts, keep)) == want


class Counted:
    """Scores as values (V,) and how often each occurs (V,)."""

    def __init__(self, values, times):
        self.keys, self.times = order_keys(values).long() + 2**31, times

    def __call__(self, prefix, shift, width):
        inside = self.keys >> (shift + width) == prefix
        digits = (self.keys >> shift & (1 << width) - 1)[inside]
        return torch.zeros(1 << width, dtype=torch.int64).index_add(0, digits, self.times[inside])


def counted_select(values, times, keep):
    """How many of each (rank, value) are selected; values (R, V), times (R, V)."""
    order = sorted(
        ((-float(v), rank, i) for rank, row in enumerate(values) for i, v in enumerate(row)),
    )
    left, taken = keep, [0] * len(values)
    for _, rank, i in order:
        here = min(left, int(times[rank, i]))
        left -= here
        taken[rank] += here
    return taken


@pytest.mark.parametrize(
    ("ranks", "kinds", "most", "distinct"),
    [
        (64, 100, 2**19, 10**6),  # 1.7e9 scores, some of them ties
        (64, 40, 2**26, 30),  # 8.6e10, most of them ties across ranks
        (64, 1, 2**31, 1),  # all of them tie
        (2100, 3, 2**12, 5),  # more ranks than a digit has values
    ],
)
def test_many_ranks_and_more_scores_than_fit_in_32_bits(ranks, kinds, most, distinct):
    generator = torch.Generator().manual_seed(ranks + kinds)
    values = torch.randint(distinct, (ranks, kinds), generator=generator) / 7.0
    # one rank's equal values are one kind, so that the lower index is no question here
    values += torch.arange(kinds) * distinct if kinds > 1 and distinct <= 5 else 0
    times = torch.randint(most // 2, most, (ranks, kinds), generator=generator)
    n = int(times.sum())
    assert n > 10**9 or ranks > 64
    for keep in (0.3, 1, n // 3, n - 1, n) if ranks == 64 else (n // 2, n - n // 7):
        count = round(keep * n) if isinstance(keep, float) else keep
        got, lengths = simulate(
            [Counted(*pair) for pair in zip(values, times, strict=True)],
            [Terms(keep, False, True)] * ranks,
        )
        assert sum(got) == count
        assert got == counted_select(values, times, count)
        assert lengths[:3] == [2048 + 67, 2048, 1024]
        assert len(lengths) <= (5 if ranks > 2048 else 4)


@pytest.mark.parametrize(
    "other",
    [Terms(0.5, False, True), Terms(1, False, True), Terms(0.3, True, True)]
    + [Terms(0.3, False, False), Terms(math.nextafter(0.3, 1), False, True)],
)
def test_terms_that_differ_end_it_on_every_rank(other):
    for place in range(5):
        terms = [other if rank == place else Terms(0.3, False, True) for rank in range(5)]
        assert Terms.heard(other.told()) == other
        rounds = [
            counting_rounds(_Keys(torch.ones(2)), own, rank, 5) for rank, own in enumerate(terms)
        ]
        total = torch.stack([next(each) for each in rounds]).sum(0)
        for each in rounds:
            with pytest.raises(Disagreement):
                each.send(total)


# ---- processes

SEEDS = range(2)


def ignored_of(ranks):
    """Parts, and which of their scores are ignored: all of one rank's, none of another's."""
    parts = scores_of(ranks, 500 + ranks)
    generator = torch.Generator().manual_seed(ranks)
    masks = [torch.rand(len(part), generator=generator) < 0.5 for part in parts]
    masks[-1].fill_(True)
    masks[0].fill_(False)
    return parts, masks


def counted_keeps(masks):
    n = int((~torch.cat(masks)).sum())
    return [0.3, 1.0, n // 2, n] if n > 1 else [0.3, 1.0]


def selects(rank, world):
    """This rank's parts of selections over the first 1 to `world` ranks, and of refusals."""
    results, messages = {}, {}
    groups = [dist.new_group(range(size)) for size in range(1, world + 1)]
    for size, group in enumerate(groups, 1):
        if rank >= size:
            with pytest.raises(ValueError, match="group must include this process"):
                select(torch.ones(3), 0.5, group=group)
            continue
        for seed in SEEDS:
            parts = scores_of(size, 10 * size + seed)
            for i, keep in enumerate(keeps_of(parts, seed)):
                before = oracle.fingerprint(parts[rank])
                results[size, seed, i] = select(parts[rank], keep, group=group).tolist()
                assert oracle.fingerprint(parts[rank]) == before
        parts, masks = ignored_of(size)
        for i, keep in enumerate(counted_keeps(masks)):
            mask = masks[rank] if masks[rank].any() else None
            own = select(parts[rank], keep, ignored=mask, group=group)
            results[size, "ignored", i] = own.tolist()
    last = rank == world - 1
    scores = torch.arange(5.0) + rank
    calls = {
        "share": (scores, 0.5 if last else 0.3),
        "number": (scores, 2 if last else 1.0),
        "invalid": (scores, 1.5 if last else 0.3),
        "bool": (scores, True if last else 1),
        "shape": (scores[None] if last else scores, 0.3),
        "wide": (scores.double() if last else scores, 0.3),
        "too many": (scores, 5 * world + 1),
        "too many counted": (scores, 4 * world + 2),
        "ignored": (scores, 0.3),
    }
    masks = {
        "too many counted": torch.arange(5) == (0 if rank else -1),  # of rank 0 all count
        "ignored": torch.zeros(5 if last else 4).bool() if rank >= world - 2 else None,
    }
    for name, arguments in calls.items():
        with pytest.raises((ValueError, TypeError), match=r"distributed\.select: ") as caught:
            select(*arguments, ignored=masks.get(name), group=None)
        messages[name] = str(caught.value)
    both = torch.randn(6, requires_grad=True)[::2]  # every second one, with a gradient
    results["strided"] = select(both, 3 * world, group=None).tolist()
    return results, messages


@functools.cache
def selected():
    return on_ranks(8, selects)


@pytest.mark.parametrize("ranks", range(1, 9))
def test_processes_select_as_one(ranks):
    results = [result for result, _ in selected()]
    assert [result["strided"] for result in results] == [[0, 1, 2]] * 8
    for seed in SEEDS:
        parts = scores_of(ranks, 10 * ranks + seed)
        for i, keep in enumerate(keeps_of(parts, seed)):
            got = joined(parts, [result[ranks, seed, i] for result in results[:ranks]])
            assert got == emp.select(torch.cat(parts), keep).tolist()


@pytest.mark.parametrize("ranks", range(1, 9))
def test_processes_ignore_as_one(ranks):
    parts, masks = ignored_of(ranks)
    for i, keep in enumerate(counted_keeps(masks)):
        own = [result[ranks, "ignored", i] for result, _ in selected()[:ranks]]
        want = emp.select(torch.cat(parts), keep, ignored=torch.cat(masks))
        assert joined(parts, own) == want.tolist()


def test_what_ranks_disagree_on_is_named_on_all_of_them():
    said = [messages for _, messages in selected()]
    keep, valid = "keep must be the same on all ranks", "arguments must be valid on all ranks"
    want = {
        "share": (f"{keep}, got 0.3 on rank 0, 0.5 on rank 7",) * 2,
        "number": (f"{keep}, got 1.0 on rank 0, 2 on rank 7",) * 2,
        "invalid": (f"{valid}, got valid ones on rank 0, an error on rank 7", "keep must be in (0"),
        "bool": (f"{valid}, got valid ones on rank 0, an error on rank 7", "keep must be a float"),
        "shape": (f"{valid}, got valid ones on rank 0, an error on rank 7", "got (1, 5)"),
        "wide": ("float64 on all ranks or on none, got another dtype on rank 0, float64 on",) * 2,
        "too many": ("keep must be between 1 and the number of rows 40, got 41",) * 2,
        "too many counted": ("keep must be between 1 and the number of rows 33, got 34",) * 2,
    }
    for name, (others, last) in want.items():
        for rank, messages in enumerate(said):
            assert (last if rank == 7 else others) in messages[name], (name, rank)
    for rank, messages in enumerate(said):
        wrong = "ignored must have the shape (5,) of local_scores, got (4,)"
        heard = f"{valid}, got valid ones on rank 0, an error on rank 6"
        assert (wrong if rank == 6 else heard) in messages["ignored"]


# ---- sequences whose parts lie on several ranks


def sequences():
    """Logits (B, T, C) and labels with padding; in one sequence nothing counts."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(5, 17, 9, generator=generator)
    labels = torch.randint(9, (5, 17), generator=generator)
    labels[torch.rand(5, 17, generator=generator) < 0.3] = -100
    labels[3] = -100
    labels[1, :6] = -100  # on rank 0 nothing of this one counts
    return logits, labels


def select_parts(rank, world):
    """(b, t) of what this rank keeps of all tokens, and of each sequence's."""
    edges = [0, 6, 6, 17][: world + 1]  # uneven, one of them empty
    first, last = edges[rank], edges[rank + 1]
    logits, labels = (whole[:, first:last] for whole in sequences())
    scores, ignored = emp.score(logits, labels, ignore_index=-100).score, labels == -100
    found = {}
    for keep in (0.4, 1.0):
        flat = select(scores.flatten(), keep, ignored=ignored.flatten(), group=None)
        length = max(1, last - first)
        found["all", keep] = [(int(i) // length, first + int(i) % length) for i in flat]
        found["row", keep] = [
            (row, first + int(i))
            for row in range(len(scores))
            for i in select(scores[row], keep, ignored=ignored[row], group=None)
        ]
    return found


def test_tokens_of_sequences_that_are_split_over_ranks():
    logits, labels = sequences()
    parts = on_ranks(3, select_parts)
    for per, keep in parts[0]:
        want = emp.score_and_select(logits, labels, None, keep, ignore_index=-100, per=per).indices
        got = sorted(b * 17 + t for part in parts for b, t in part[per, keep])
        assert got == want.tolist(), (per, keep)
        assert len(got) > 10


def dies(rank, world):
    """The survivors' errors when a rank does not call in time, calls something else, or dies."""
    calls = {
        "select": lambda group: select(torch.ones(3), 1, group=group),
        "score": lambda group: score_vocab_parallel(
            torch.zeros(3, 2), torch.zeros(3).long(), vocab_start=2 * rank, group=group
        ),
        "cross_entropy": lambda group: emp.cross_entropy(
            torch.zeros(3, 2), torch.zeros(3).long(), vocab_start=2 * rank, group=group
        ),
        "sync": lambda group: emp.distributed.sync(emp.EMPState(3), group),
    }
    heard = {}

    def call(name, group):
        began = time.monotonic()
        with pytest.raises(RuntimeError, match="alike, got nothing from rank") as caught:
            calls[name](group)
        return str(caught.value), time.monotonic() - began

    wait = datetime.timedelta(seconds=2)
    late = dist.new_group([0, 1], timeout=wait)
    if rank == 0:
        heard["late"] = call("select", late)
    dist.barrier()
    if rank == world - 1:
        os._exit(0)
    if rank == 1:  # rank 0, which hosts the store, has heard of it long before
        store = dist.distributed_c10d._get_default_store()
        slow = SimpleNamespace(
            set=store.set, check=lambda keys: time.sleep(0.1) or store.check(keys)
        )
        dist.distributed_c10d._get_default_store = lambda: slow
    return heard | {name: call(name, dist.group.WORLD) for name in calls}


def test_a_rank_that_dies_or_never_calls_is_an_error_within_the_timeout():
    *survivors, dead = on_ranks(3, dies, timeout=10)
    assert dead is None
    assert survivors[0]["late"][0].startswith(
        "distributed.select: all 2 ranks of the group must make this call alike, got nothing from "
        "rank 1 (it died, raised before the call, or did not come), as rank 0 sees it: "
    )
    names = ("select", "distributed.select"), ("score", "distributed.score_vocab_parallel")
    for rank, heard in enumerate(survivors):
        for name, function in (*names, ("cross_entropy",) * 2, ("sync", "distributed.sync")):
            message, seconds = heard[name]
            assert message.startswith(
                f"{function}: all 3 ranks of the group must make this call alike, got nothing from "
                "rank 2 (it died"
            )
            assert f"as rank {rank} sees it: " in message
            assert seconds < 20


def test_without_a_process_group():
    with pytest.raises(RuntimeError, match=r"distributed\.select: a process group must be init"):
        select(torch.ones(3), 1, group=None)
