"""Losses with options, log-probabilities and entropies of rows with sharded columns: equal to those
of whole rows in float64, on every rank, with the gradient of each rank's columns.

On threads, for every backend and option; then on gloo processes.
"""

import math

import hard_rows
import oracle
import pytest
import torch
from test_loss_options import (
    INTERPRETED,
    REDUCTIONS,
    assert_gradient,
    assert_gradient_of_rows,
    every_option,
    label_gradient,
    make,
    reduce,
    some_options,
    true_losses,
)
from test_vocab_parallel import cuts_of, on_threads, same_on_all_ranks, shard  # noqa: F401

import emp_kernels as emp
from emp_kernels.distributed import score_vocab_parallel

INF = float("inf")
WORLDS = (3,) if INTERPRETED else (1, 2, 4)
options_of_each = some_options if INTERPRETED else every_option
pytestmark = [
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),  # NaN in the interpreter
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:All-NaN:RuntimeWarning"),
]


def part_of(options, labels, rank, world, classes):
    """The options and labels of `rank`: its columns of class weights and of probabilities."""
    start, stop = cuts_of(classes, world)[rank]
    options = dict(options)
    if options.get("weight") is not None:
        options["weight"] = options["weight"][start:stop]
    return options, labels[..., start:stop] if labels.is_floating_point() else labels


def joined(parts, classes, world):
    """Columns of all ranks in their order."""
    cuts = cuts_of(classes, world)
    order = sorted(range(world), key=lambda rank: cuts[rank])
    return torch.cat([parts[rank] for rank in order], -1)


def check(
    run, world, logits, labels, options, backend, *, reduction="mean", rows=None,
    ignore_index=None, state_size=None, indices=None,
):  # fmt: skip
    """Loss, gradient and state on every rank; the states."""
    positions = rows.indices if isinstance(rows, emp.Selection) else rows
    exact, classes = logits.detach().double().requires_grad_(), logits.shape[-1]
    want = reduce(*true_losses(exact, labels, options, ignore_index), reduction, positions)
    upstream = torch.randn(want.shape, generator=torch.Generator().manual_seed(3))
    (want_gradient,) = torch.autograd.grad(want, exact, upstream.double())

    def train(rank, world):
        local, start = shard(logits, rank, world)
        mine, y = part_of(options, labels, rank, world, classes)
        leaf = local.detach().requires_grad_()
        state = None if state_size is None else emp.EMPState(state_size, beta=0.5)
        loss = emp.cross_entropy(
            leaf, y, state, indices=indices, rows=rows, reduction=reduction,
            ignore_index=ignore_index, backend=backend, vocab_start=start, **mine,
        )  # fmt: skip
        (gradient,) = torch.autograd.grad(loss, leaf, upstream)
        return loss.detach(), gradient, state

    found = run(world, train)
    (loss,) = same_on_all_ranks([(x[0],) for x in found])
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want.detach(), rtol=1e-5, atol=1e-12)
    gradient = joined([x[1] for x in found], classes, world)
    assert gradient.dtype == logits.dtype
    assert_gradient(gradient, want_gradient)
    return [x[2] for x in found]


@options_of_each
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_loss_and_gradient(asked, dtype, backend, on_threads):  # noqa: F811
    for classes in (17,) if INTERPRETED else (1, 2, 17, 100):
        logits, labels, options = make(9, classes, asked, dtype, seed=classes)
        for world in WORLDS:
            check(on_threads, world, logits, labels, options, backend)


@options_of_each
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("selected", [False, True])
def test_reductions_rows_and_ignored_labels(
    asked, reduction, selected, backend, on_threads  # noqa: F811
):  # fmt: skip
    logits, labels, options = make(37, 11, asked)
    ignore_index = None
    if not labels.is_floating_point():
        labels[::4], ignore_index = 3, 3
    rows = torch.tensor([5, 0, 36, 5, 8, 17, 12, 1]) if selected else None  # row 5 counts twice
    check(
        on_threads, 3, logits, labels, options, backend, reduction=reduction, rows=rows,
        ignore_index=ignore_index,
    )  # fmt: skip


@some_options
def test_shards_of_several_chunks(asked, backend, on_threads):  # noqa: F811
    for classes in (2055,) if INTERPRETED else (1025, 8199):
        check(on_threads, 2, *make(5, classes, asked, scale=6.0), backend)


@options_of_each
@pytest.mark.parametrize("given_rows", [False, True])
def test_states_remember_the_plain_loss(asked, given_rows, backend, on_threads):  # noqa: F811
    logits, labels, options = make(20, 9, asked)
    ids = torch.randperm(50, generator=torch.Generator().manual_seed(1))[:20]
    rows = torch.tensor([0, 1, 9]) if given_rows else None
    states = check(
        on_threads, 3, logits, labels, options, backend, rows=rows, state_size=50, indices=ids
    )
    same_on_all_ranks([(x.score, x.loss, x.entropy, x.updates) for x in states])
    a = oracle.adjusted(logits, options.get("temperature", 1.0), options.get("softcap"))
    log_p, t = a.log_softmax(1), labels.double()
    if not labels.is_floating_point():
        t = torch.nn.functional.one_hot(labels, 9).double()
    loss, entropy = -(t * log_p).sum(1), -(log_p.exp() * log_p).sum(1)
    want = emp.EMPState(50, beta=0.5)
    want.update(ids, emp.Scores(*(x.float() for x in (loss + 0.5 * entropy, loss, entropy, loss))))
    for name in ("loss", "entropy", "score"):
        got = getattr(states[0], name)
        torch.testing.assert_close(got, getattr(want, name), rtol=1e-5, atol=1e-12)
    assert torch.equal(states[0].updates, want.updates)


@options_of_each
def test_a_selection(asked, backend, on_threads):  # noqa: F811
    """Its results are reused if they suffice: replacing the logits by NaN then makes no
    difference."""
    logits, labels, options = make(40, 7, asked)
    adjustment = {name: options[name] for name in ("temperature", "softcap") if name in options}
    plain = torch.zeros(40, dtype=torch.int64) if labels.is_floating_point() else labels
    scores = emp.score(oracle.adjusted(logits, **adjustment), plain)
    selection = emp.Selection(
        torch.tensor([3, 4, 17, 39]), emp.Scores(*(x.float() for x in scores)), torch.tensor(0.0),
        torch.tensor(0),
    )  # fmt: skip
    for reduction in REDUCTIONS:
        check(on_threads, 3, logits, labels, options, backend, rows=selection, reduction=reduction)
    if "label_smoothing" in options or labels.is_floating_point():
        return

    def train(rank, world, scale=1.0):
        local, start = shard(logits, rank, world)
        mine, _ = part_of(options, labels, rank, world, 7)
        given = {"rows": selection, "backend": backend, "vocab_start": start, **mine}
        return emp.cross_entropy(local * scale, labels, **given)

    nan = on_threads(3, lambda rank, world: train(rank, world, math.nan))
    assert all(torch.equal(x, y) for x, y in zip(nan, on_threads(3, train), strict=True))


def log_probs(run, world, logits, labels, backend, ignore_index=None, **options):
    """LogProbs, the same on all ranks, and the gradients of whole rows by each of them and all."""
    n = len(labels)
    upstream = torch.randn(3, n, generator=torch.Generator().manual_seed(5))

    def train(rank, world):
        local, start = shard(logits, rank, world)
        leaf = local.detach().requires_grad_()
        found = emp.log_prob_and_entropy(
            leaf, labels, vocab_start=start, backend=backend, ignore_index=ignore_index, **options
        )
        gradients = [
            torch.autograd.grad(sum((found[i] * upstream[i]).sum() for i in used), leaf,
                                retain_graph=True)[0]
            for used in ([0], [1], [2], [0, 1, 2])
        ]  # fmt: skip
        return [x.detach() for x in found], gradients

    parts = run(world, train)
    found = emp.LogProbs(*same_on_all_ranks([x[0] for x in parts]))
    classes = logits.shape[-1]
    return found, [joined([x[1][i] for x in parts], classes, world) for i in range(4)], upstream


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    "asked", [{}, {"temperature": 0.7}, {"temperature": "random", "softcap": 30.0}], ids=str
)
def test_log_probs_with_all_gradients(asked, dtype, backend, on_threads):  # noqa: F811
    for classes in (1, 40):
        logits, labels, options = make(11, classes, asked, dtype)
        labels[4] = -7
        exact = logits.double().requires_grad_()
        log_p, counted = oracle.adjusted(exact, **options).log_softmax(1), (labels >= 0).double()
        want = [log_p.gather(1, labels.clamp(min=0)[:, None])[:, 0]]
        want += [-(log_p.exp() * log_p).sum(1), oracle.adjusted(exact, **options).logsumexp(1)]
        want = [x * counted for x in want]
        for world in WORLDS:
            found, gradients, upstream = log_probs(
                on_threads, world, logits, labels, backend, -7, **options
            )
            for have, truth in zip(found, want, strict=True):
                torch.testing.assert_close(have.double(), truth, rtol=1e-5, atol=1e-12)
            for used, gradient in zip(([0], [1], [2], [0, 1, 2]), gradients, strict=True):
                (truth,) = torch.autograd.grad(
                    sum((want[i] * upstream[i].double()).sum() for i in used), exact,
                    retain_graph=True,
                )  # fmt: skip
                assert_gradient(gradient, truth)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [7] if INTERPRETED else [1, 2, 7, 33, 130])
@pytest.mark.parametrize("adjustment", [{}, {"temperature": 0.7}], ids=str)
def test_log_probs_of_hard_rows(adjustment, classes, dtype, backend, on_threads):  # noqa: F811
    """Of valid rows, also where all of a shard is at -inf, and where a row is nearly certain."""
    logits, labels, _ = hard_rows.batch(classes, dtype, seed=1)
    logits = logits[((logits.abs() < 1e30) | logits.isinf()).all(1)]
    labels = hard_rows.labels_for(logits, 1)
    a = oracle.adjusted(logits, **adjustment)
    truth = oracle.statistics(a, labels)
    keep = truth.valid
    found, gradients, upstream = log_probs(
        on_threads, 3, logits[keep], labels[keep], backend, **adjustment
    )
    assert oracle.relative_errors(-found.log_prob, truth.loss[keep]).max() <= 1e-5
    assert oracle.relative_errors(found.entropy, truth.entropy[keep], 64).max() <= 1e-5
    lse = torch.from_numpy(truth.lse[keep])
    torch.testing.assert_close(found.lse.double(), lse, rtol=1e-6, atol=1e-6)
    scale = adjustment.get("temperature", 1.0)
    by = upstream.double().numpy()[..., None]
    want = -by[0] * label_gradient(a[keep], labels[keep]) / scale
    assert_gradient_of_rows(gradients[0], want)
    assert_gradient_of_rows(gradients[1], by[1] * oracle.entropy_gradient(a[keep]) / scale)


def test_near_certain_rows_keep_their_accuracy(backend, on_threads):  # noqa: F811
    """Losses and gradients of 1e-8 to 1e-32, by label and by probabilities that say the same,
    whichever shard holds the maximum."""
    logits = torch.tensor([[20.0, -1.0, 0.5, 0.0], [0.0, 31.0, -60.0, 1.0], [0.0, 5.0, 6.0, 80.0]])
    labels, ones = torch.tensor([0, 1, 3]), torch.ones(3)
    e = (logits.double() - logits.double().amax(1, keepdim=True)).exp()
    others = e.scatter(1, labels[:, None], 0.0)
    total = others.sum(1, keepdim=True)
    want = (others / (1 + total)).scatter(1, labels[:, None], -total / (1 + total))
    weight = torch.tensor([0.5, 2.0, 3.0, 0.7])
    onehot = torch.nn.functional.one_hot(labels, 4).float()
    for options, given, scale in (
        ({"weight": weight}, labels, weight[labels]),
        ({"sample_weight": weight[:3]}, labels, weight[:3]),
        ({"sample_weight": ones}, onehot, ones),
    ):

        def train(rank, world, options=options, given=given):
            local, start = shard(logits, rank, world)
            mine, y = part_of(options, given, rank, world, 4)
            leaf = local.detach().requires_grad_()
            loss = emp.cross_entropy(
                leaf, y, reduction="none", backend=backend, vocab_start=start, **mine
            )
            return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

        for world in WORLDS:
            found = on_threads(world, train)
            truth = (total[:, 0].log1p() * scale).numpy()
            assert oracle.relative_errors(found[0][0], truth).max() <= 1e-5
            gradient = joined([x[1] for x in found], 4, world)
            largest = (want * scale[:, None]).abs().amax(1, keepdim=True)
            error = (gradient - want * scale[:, None]).abs()
            assert (error <= 2e-5 * largest + math.exp(-87)).all()


@pytest.mark.parametrize("softcap", [None, 4.0])
def test_rows_without_a_softmax(softcap, backend, on_threads):  # noqa: F811
    """NaN on all shards, whichever shard has the NaN, the +inf or only -inf; with a softcap
    infinite logits are finite. Like whole rows; other rows are not affected."""
    logits, labels = torch.randn(7, 12), torch.tensor([1, 5, 9, 2, 0, 3, 2])
    logits[0, 3], logits[1, 11], logits[2] = math.nan, INF, -INF
    logits[3, :4], logits[4, 4:], logits[5, 3] = -INF, -INF, -INF
    options = {"softcap": softcap, "z_loss": 1e-3, "temperature": 0.5, "backend": backend}
    for extra in ({}, {"label_smoothing": 0.1}):
        whole = logits.clone().requires_grad_()
        want = emp.cross_entropy(whole, labels, reduction="none", **options, **extra)
        (want_gradient,) = torch.autograd.grad(want, whole, torch.ones(7))

        def train(rank, world, extra=extra):
            leaf = logits[:, 4 * rank : 4 * rank + 4].clone().requires_grad_()
            given = {**options, **extra, "vocab_start": 4 * rank}
            loss = emp.cross_entropy(leaf, labels, reduction="none", **given)
            gradient = torch.autograd.grad(loss, leaf, torch.ones(7))[0]
            found = emp.log_prob_and_entropy(
                leaf, labels, vocab_start=4 * rank, softcap=softcap, backend=backend
            )
            return loss.detach(), gradient, [x.detach() for x in found]

        parts = on_threads(3, train)
        loss, gradient = parts[0][0], torch.cat([x[1] for x in parts], 1)
        broken = [True] * 3 if softcap is None else [True, False, False]
        assert loss.isnan().tolist()[:5] == [*broken, False, False]
        torch.testing.assert_close(loss, want.detach(), equal_nan=True)
        torch.testing.assert_close(gradient, want_gradient, equal_nan=True)
        plain = emp.log_prob_and_entropy(logits, labels, softcap=softcap, backend=backend)
        for have, truth in zip(parts[0][2], plain, strict=True):
            torch.testing.assert_close(have[3:], truth[3:], equal_nan=True)
            assert (have.isfinite() == truth.isfinite()).all()


def test_weights_and_probabilities_of_columns_that_are_masked(backend, on_threads):  # noqa: F811
    """A shard that is all -inf adds nothing if it has no targets."""
    logits = torch.randn(4, 12, generator=torch.Generator().manual_seed(0))
    logits[:, 4:8] = -INF
    probabilities = torch.rand(4, 12)
    probabilities[:, 4:8] = 0
    probabilities /= probabilities.sum(1, keepdim=True)
    weight = torch.rand(12) + 0.5
    weight[4:8] = 0
    exact = logits.double().requires_grad_()
    log_p = exact.log_softmax(1)
    q = probabilities.double() * weight.double() * 0.9 + 0.1 / 12 * weight.double()
    want = -torch.where(q == 0, 0.0, q * log_p.masked_fill(q == 0, 0.0)).sum(1)

    def train(rank, world):
        part = slice(4 * rank, 4 * rank + 4)
        leaf = logits[:, part].clone().requires_grad_()
        loss = emp.cross_entropy(
            leaf, probabilities[:, part], weight=weight[part], label_smoothing=0.1,
            reduction="none", vocab_start=4 * rank, backend=backend,
        )  # fmt: skip
        return loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]

    parts = on_threads(3, train)
    torch.testing.assert_close(parts[1][0].double(), want.detach(), rtol=1e-5, atol=0)
    found = torch.cat([x[1] for x in parts], 1)
    assert_gradient(found, torch.autograd.grad(want.sum(), exact)[0])


@pytest.mark.parametrize(
    "adjustment",
    [{"temperature": 0.7}, {"softcap": 5.0}, {"temperature": "random", "softcap": 9.0}],
)
def test_scores_of_adjusted_logits(adjustment, as_default, on_threads):  # noqa: F811
    logits, labels, options = make(23, 60, adjustment)
    labels[::5] = -100
    truth = oracle.statistics(oracle.adjusted(logits, **options), labels, -100)

    def score(rank, world):
        local, start = shard(logits, rank, world)
        return score_vocab_parallel(
            local, labels, vocab_start=start, beta=0.5, ignore_index=-100, **options
        )

    for world in WORLDS:
        got = same_on_all_ranks(on_threads(world, score))
        counted = ~truth.ignored
        for field in ("loss", "entropy", "lse"):
            want = torch.from_numpy(getattr(truth, field)).float()
            torch.testing.assert_close(getattr(got, field), want, rtol=1e-5, atol=1e-7)
        assert (got.score[torch.from_numpy(truth.ignored)] == -INF).all()
        want = torch.from_numpy(truth.loss + 0.5 * truth.entropy).float()
        torch.testing.assert_close(got.score[counted], want[counted])


@options_of_each
def test_float64_is_answered_in_float64(asked, on_threads):  # noqa: F811
    logits, labels, options = make(9, 30, asked, torch.float64)
    for name in ("weight", "sample_weight"):
        if name in options:
            options[name] = options[name].double()
    exact = logits.clone().requires_grad_()
    want = reduce(*true_losses(exact, labels, options), "mean")
    want.backward()

    def train(rank, world):
        local, start = shard(logits, rank, world)
        mine, y = part_of(options, labels, rank, world, 30)
        leaf = local.detach().requires_grad_()
        loss = emp.cross_entropy(leaf, y, vocab_start=start, **mine)
        loss.backward()
        return loss.detach(), leaf.grad

    found = on_threads(3, train)
    (loss,) = same_on_all_ranks([x[:1] for x in found])
    torch.testing.assert_close(loss, want.detach(), rtol=1e-13, atol=0)
    gradient = joined([x[1] for x in found], 30, 3)
    torch.testing.assert_close(gradient, exact.grad, rtol=1e-11, atol=1e-15)
