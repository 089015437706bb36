"""Rows of logits: scores against float64, and selections of rows and tokens."""

from __future__ import annotations

import numpy as np
import torch

import emp_kernels as emp

from .. import hard_rows, oracle
from .cases import Case

DTYPES = [torch.float32, torch.float16, torch.bfloat16]
IGNORED = -100
TINY = float(np.finfo(np.float32).tiny)  # the smallest normal number


def _rows(case: Case, n: int, classes: int) -> torch.Tensor:
    """(n, classes): rows of hard families in any order, among ordinary ones."""
    dtype = case.one_of(DTYPES)
    scale = float(case.one_of([1e-6, 0.1, 1.0, 5.0, 100.0]))
    rows = torch.from_numpy(scale * case.random.standard_normal((n, classes))).to(dtype)
    hard = hard_rows.family(case.one_of(list(hard_rows.FAMILIES)), classes, dtype, case.number)
    for row in hard[: n // 2]:
        rows[case.below(n)] = row
    return rows


def _labels(case: Case, n: int, classes: int) -> torch.Tensor:
    labels = torch.from_numpy(case.random.integers(0, classes, n))
    return labels.masked_fill(torch.from_numpy(case.random.random(n) < 0.1), IGNORED)


def _laid_out(case: Case, logits: torch.Tensor) -> torch.Tensor:
    layout = case.below(4)
    if layout == 0:
        return torch.cat([logits, logits], 1)[:, logits.shape[1] :]
    if layout == 1:
        return logits.t().contiguous().t()
    if layout == 2:
        return torch._neg_view(-logits)
    return logits


def _near(got: torch.Tensor, want: np.ndarray, rtol: float, atol: float, what: str) -> None:
    values = oracle.to_float64(got)
    with np.errstate(invalid="ignore"):
        good = (values == want) | (np.abs(values - want) <= rtol * np.abs(want) + atol)
    good |= np.isnan(values) & np.isnan(want)
    if not good.all():
        row = int(np.flatnonzero(~good)[0])
        raise AssertionError(f"{what} of row {row}: got {values[row]!r}, want {want[row]!r}")


def scoring(case: Case) -> None:
    """score and sample_statistics against the oracle in float64."""
    n, classes = 1 + case.below(20), 1 + case.below(case.one_of([4, 40, 300]))
    logits, labels = _rows(case, n, classes), _labels(case, n, classes)
    beta = float(case.one_of([1.0, 0.0, 0.5, -1.0, 10.0]))
    truth = oracle.statistics(logits, labels, IGNORED)
    given = _laid_out(case, logits)
    labels_given = labels.to(case.one_of([torch.int64, torch.int32, torch.int16]))
    torch.set_num_threads(1)
    with case.mode():
        found = emp.score(given, labels_given, beta=beta, ignore_index=IGNORED)
        statistics = emp.sample_statistics(given, labels_given, ignore_index=IGNORED)
    valid = torch.from_numpy(truth.valid)
    step = 4 * oracle.FLOAT32_STEP
    for name in ("loss", "entropy"):
        want = getattr(truth, name)[truth.valid]
        _near(getattr(found, name)[valid], want, 1e-5, step, name)
        _near(getattr(statistics, name)[valid], want, 1e-5, step, f"statistics' {name}")
    want = truth.loss + beta * truth.entropy
    scale = truth.loss + abs(beta) * truth.entropy
    for row in np.flatnonzero(truth.valid):
        _near(
            found.score[row][None],
            want[row : row + 1],
            0,
            1e-5 * scale[row] + (1 + abs(beta)) * step,
            "score",
        )
    for name in ("lse", "confidence", "el2n", "margin"):
        want = getattr(truth, name)[truth.valid]
        with np.errstate(over="ignore"):
            want = want.astype(np.float32).astype(np.float64)  # which may overflow, as results do
        _near(getattr(statistics, name)[valid], want, 2e-5, 1e-6, name)
    if not np.array_equal(statistics.correct.numpy(), truth.correct):
        raise AssertionError("correct differs")
    if not np.array_equal(statistics.prediction.numpy(), truth.prediction):
        raise AssertionError("prediction differs")
    skipped = torch.from_numpy(truth.ignored)
    if not (found.score[skipped] == -torch.inf).all():
        raise AssertionError("an ignored row's score is not -inf")
    if not found.score[~valid & ~skipped].isnan().all():
        raise AssertionError("an invalid row's score is not NaN")
    case.count("rows scored", n)


def _expected(score: np.ndarray, kept: float | int, of_all: bool) -> np.ndarray:
    """Ascending positions that are kept of scores (n,)."""
    counted = score > -np.inf
    number = int(counted.sum())
    count = min(oracle.kept(kept, len(score) if of_all else number), number)
    return np.sort(oracle.order(np.where(counted, score, np.nan))[:count])


def tokens(case: Case) -> None:
    """score_and_select of rows, tokens and sequences: positions follow from its own scores."""
    sequences, length, classes = (1 + case.below(9) for _ in range(3))
    n = sequences * length
    logits, labels = _rows(case, n, classes), _labels(case, n, classes)
    of_all = case.below(2) == 0
    if of_all:
        labels = labels.clamp(min=0)
    ignore_index = None if of_all else IGNORED
    kept = float(case.random.random()) or 1.0
    per = case.one_of(["all", "row", "sequence", None])
    samples = sequences if per == "sequence" else n
    ids = torch.from_numpy(case.random.permutation(samples))
    state = emp.EMPState(samples, device="cpu") if case.below(2) else None
    options = {"ignore_index": ignore_index, "indices": ids}
    torch.set_num_threads(1)
    with case.mode():
        plain = emp.score(logits, labels, ignore_index=ignore_index)
        if per is None:
            found = emp.score_and_select(logits, labels, state, kept, **options)
        else:
            shaped = logits.view(sequences, length, classes), labels.view(sequences, length)
            found = emp.score_and_select(*shaped, state, kept, per=per, **options)
    for name, ours, theirs in zip(plain._fields, found.scores, plain, strict=True):
        if not torch.equal(ours.reshape(-1).view(torch.int32), theirs.view(torch.int32)):
            raise AssertionError(f"{name} of score_and_select is not that of score")
    score = oracle.to_float64(plain.score)
    got = found.indices.numpy()
    if per == "sequence":
        rows = score.reshape(sequences, length)
        counted = rows > -np.inf
        with np.errstate(invalid="ignore"):
            means = np.where(counted, rows, 0).sum(1) / counted.sum(1)
        score = np.where(counted.any(1), means.astype(np.float32), np.nan)
        score = np.where((rows == -np.inf).all(1), -np.inf, score)
        want = _expected(score, kept, of_all)
        # Means that may be ordered differently by another order of addition are interchangeable,
        # and so are those that torch flushes to zero.
        same = len(got) == len(want) and np.allclose(
            np.sort(score[got]), np.sort(score[want]), rtol=1e-6, atol=TINY if case.flushed else 0
        )
        same = same and (np.diff(got) > 0).all()
    elif per == "row":
        parts = score.reshape(sequences, length)
        want = [_expected(row, kept, of_all) + i * length for i, row in enumerate(parts)]
        same = np.array_equal(got, np.concatenate(want))
    else:
        same = np.array_equal(got, _expected(score, kept, of_all))
    if not same:
        raise AssertionError(f"per={per!r}, keep {kept}: got {got.tolist()}")
    if int(found.num_invalid) != int(np.isnan(oracle.to_float64(plain.score)).sum()):
        raise AssertionError(f"num_invalid is {int(found.num_invalid)}")
    if state is not None and int(state.selections.sum()) != len(got):
        raise AssertionError("the state counts other selections")
    case.count("token batches" if per else "pruned batches")
