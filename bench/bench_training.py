"""The cost of EMP in training: the loss in a training step and alone, and an epoch's selection and
order."""

import itertools
from collections import deque

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.data import RandomSampler

import emp_kernels as emp
from bench import harness
from emp_kernels.experiments.networks import small_cnn

KEEP = 0.3
TOPK, INFOBATCH, COMPOSER = "topk + sort", "InfoBatch", "Composer"
SELECT, DRAWS = "select", "RandomSampler"
SAMPLES = 1_300_000  # of ImageNet
STEP = 128, 3, 16, 100  # images, channels, height and width, classes
STEP_PATIENCE = 25.0  # seconds: steps vary by ten percent, so the median needs hundreds

LOSSES = [  # N, C, dtype, rounds, calls per round, and the goals
    (8192, 32000, "float32", 9, 1, {"torch": (2, 3)}),
    (8192, 32000, "bfloat16", 9, 1, {}),
    (128, 100, "float32", 61, 100, {"torch": (1.2, 1.5)}),
]


def gradient_of(loss: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(loss, logits)[0]


def check_gradients(logits, labels, ours, theirs) -> None:
    """Both gradients of the mean loss agree with float64 on sampled rows, ours within the rounding
    of its dtype."""
    rows = torch.linspace(0, len(labels) - 1, harness.ORACLE_ROWS, dtype=torch.float64).long()
    right = logits[rows].detach().double().softmax(1)
    right[torch.arange(len(rows)), labels[rows]] -= 1
    right /= len(labels)
    eps = torch.finfo(ours.dtype).eps
    for found, rtol in ((ours, 2e-5 + eps), (theirs, 1e-3 + 20 * eps)):
        torch.testing.assert_close(found[rows].double(), right, rtol=rtol, atol=1e-10)


def bench_step(case):
    """A step of SGD on one batch; both losses train the same model alternately."""
    size, channels, height, classes = STEP
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(size, channels, height, height, generator=generator)
    labels = torch.randint(classes, (size,), generator=generator)
    ids = torch.randperm(50_000, generator=generator)[:size]
    state = emp.EMPState(50_000)
    model = small_cnn(channels, classes, seed=0)
    optimizer = torch.optim.SGD(model.parameters(), 1e-4, 0.9, weight_decay=5e-4, nesterov=True)

    def ours():
        step(emp.cross_entropy(model(images), labels, state, indices=ids))

    def theirs():
        step(F.cross_entropy(model(images), labels))

    def step(loss):
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    logits = model(images)
    loss = emp.cross_entropy(logits, labels, state, indices=ids)
    plain = F.cross_entropy(logits, labels)
    torch.testing.assert_close(loss, plain)
    check_gradients(logits, labels, gradient_of(loss, logits), gradient_of(plain, logits))
    scores = emp.score(logits, labels)
    assert torch.equal(state.score[ids], scores.score)
    case(
        f"train step, CNN, {size}×{channels}×{height}×{height}",
        ours,
        {"torch": theirs},
        moved=3 * logits.nbytes,
        rounds=701,
        patience=STEP_PATIENCE,
        goals={"torch": (1 / 1.01, None)},
        fields={"n": size, "c": classes, "dtype": "float32"},
    )


@pytest.mark.parametrize(
    ("n", "c", "dtype", "rounds", "calls", "goals"),
    LOSSES,
    ids=[f"{n}x{c}-{dtype}" for n, c, dtype, *_ in LOSSES],
)
def bench_loss(case, n, c, dtype, rounds, calls, goals):
    """Loss with a state update and gradient, against torch's loss and gradient. The bytes counted
    are two reads of the logits and one write of the gradient."""
    logits = harness.normal_logits(n * c, dtype).view(n, c).requires_grad_()
    labels = torch.randint(0, c, (n,), generator=torch.Generator().manual_seed(1))
    state = emp.EMPState(n)

    def ours():
        return gradient_of(emp.cross_entropy(logits, labels, state), logits)

    def theirs():
        return gradient_of(F.cross_entropy(logits, labels), logits)

    loss = emp.cross_entropy(logits, labels, state).detach()
    harness.check_scores(logits.detach(), labels, state.loss, state.entropy)
    torch.testing.assert_close(loss, state.loss.mean(), rtol=1e-5, atol=0)
    check_gradients(logits, labels, ours(), theirs())
    case(
        f"cross_entropy and gradient {n}×{c} {dtype}",
        ours,
        {"torch": theirs},
        moved=3 * logits.nbytes,
        rounds=rounds,
        calls=calls,
        goals=goals,
        fields={"n": n, "c": c, "dtype": dtype},
    )


def infobatch_lines(
    losses: np.ndarray, random: np.random.RandomState, pruned: float = 0.5
) -> tuple[np.ndarray, np.ndarray]:
    """Ids and weights of InfoBatch (arXiv 2303.04947), as in its NumPy code: all samples with at
    least the mean loss, and a share 1 - pruned of the others, with weight 1 / (1 - pruned)."""
    easy = losses < losses.mean()
    candidates = np.where(easy)[0]
    kept = random.choice(candidates, int((1 - pruned) * len(candidates)), replace=False)
    weights = np.ones(len(losses), dtype=np.float32)
    weights[kept] = 1 / (1 - pruned)
    return np.concatenate([np.where(~easy)[0], kept]), weights


def infobatch_order(losses: np.ndarray, random: np.random.RandomState) -> list[int]:
    """The same ids as a shuffled list, as in its code."""
    order = infobatch_lines(losses, random)[0].tolist()
    random.shuffle(order)
    return order


def composer_lines(losses: torch.Tensor, random: np.random.RandomState, keep: float):
    """Ids by selective backprop (arXiv 1910.00762) as Composer samples them: the loss at quantile q
    with probability proportional to q^(1/keep − 1), without replacement."""
    n = len(losses)
    odds = ((np.arange(n) + 0.5) / n) ** (1 / keep - 1)
    drawn = random.choice(n, int(keep * n), replace=False, p=odds / odds.sum())
    return losses.argsort()[torch.from_numpy(drawn)]


@pytest.fixture(scope="module")
def epoch():
    """A state in which all samples have scores, its losses as an array, and its selection."""
    state = emp.EMPState(SAMPLES)
    generator = torch.Generator().manual_seed(0)
    ids = torch.arange(SAMPLES)
    for part in ids.split(2**17):
        logits = 3 * torch.randn(len(part), 10, generator=generator)
        labels = torch.randint(10, (len(part),), generator=generator)
        state.update(part, emp.score(logits, labels))
    return state, state.loss.numpy(), state.select(KEEP)


def check_infobatch(losses: np.ndarray) -> None:
    """Every hard sample is kept, none twice, and the weights add up to all samples."""
    ids, weights = infobatch_lines(losses, np.random.RandomState(0))
    assert len(np.unique(ids)) == len(ids)
    assert np.isin(np.where(losses >= losses.mean())[0], ids).all()
    assert abs(float(weights[ids].sum()) - len(losses)) <= 2


def check_composer(losses: torch.Tensor, keep: float) -> None:
    """The right number, none twice, high losses more often: q^(1/keep − 1) has its mean at
    1 / (1 + keep), which drawing without replacement lowers, but not to the 1 / 2 of a uniform
    choice."""
    ids = composer_lines(losses, np.random.RandomState(0), keep)
    assert len(ids.unique()) == len(ids) == int(keep * len(losses))
    ranks = losses.argsort().argsort()
    mean = float((ranks[ids].double().mean() + 0.5) / len(losses))
    assert 0.5 < mean < 1 / (1 + keep)


def bench_epoch_selection(case, epoch):
    state, losses, found = epoch
    count, random = round(KEEP * SAMPLES), np.random.RandomState(0)
    harness.check_selection(state.score, found, count)
    harness.check_selected_values(state.score, harness.select_lines(state.score, count), found)
    check_infobatch(losses)
    check_composer(state.loss, KEEP)
    case(
        f"epoch's selection, 0.3 of {SAMPLES:.1e}",
        lambda: state.select(KEEP),
        {
            TOPK: lambda: harness.select_lines(state.score, count),
            INFOBATCH: lambda: infobatch_lines(losses, random),
            COMPOSER: lambda: composer_lines(state.loss, random, KEEP),
        },
        moved=4 * SAMPLES + 8 * count,
        rounds=41,
        calls=3,
        goals={TOPK: (5, 15), INFOBATCH: (10, None)},
        fields={"n": SAMPLES, "keep": KEEP, "dtype": "float32"},
    )


def bench_epoch_order(case, epoch):
    """``iter(sampler)``, which selects and shuffles; the goal is twice the selection's time."""
    state, losses, found = epoch
    sampler = emp.EMPSampler(state, KEEP, warmup_epochs=0)
    order = torch.tensor(list(itertools.islice(iter(sampler), len(sampler))))
    assert torch.equal(order.sort().values, found)
    assert not torch.equal(order, found)
    random = np.random.RandomState(0)
    case(
        f"epoch's order, 0.3 of {SAMPLES:.1e}",
        lambda: iter(sampler),
        {
            SELECT: lambda: state.select(KEEP),
            INFOBATCH: lambda: infobatch_order(losses, random),
        },
        moved=4 * SAMPLES + 24 * len(sampler),
        rounds=41,
        calls=3,
        goals={SELECT: (0.5, None)},
        fields={"n": SAMPLES, "keep": KEEP, "dtype": "float32"},
    )


def bench_epoch_draws(case, epoch):
    """Drawing every id of an epoch, with the epoch's start and the count of selections."""
    state, _, found = epoch
    sampler = emp.EMPSampler(state, KEEP, warmup_epochs=0)
    plain = RandomSampler(range(len(found)))
    before = state.selections.clone()
    assert torch.equal(torch.tensor(sorted(sampler)), found)
    before[found] += 1
    assert torch.equal(state.selections, before)
    case(
        f"epoch's ids one by one, 0.3 of {SAMPLES:.1e}",
        lambda: deque(sampler, maxlen=0),
        {DRAWS: lambda: deque(plain, maxlen=0)},
        moved=4 * SAMPLES + 24 * len(found),
        rounds=21,
        goals={DRAWS: (1, None)},
        fields={"n": SAMPLES, "keep": KEEP, "dtype": "float32"},
    )
