"""The expected values for the tests: DESIGN.md's formulas in NumPy float64.

Written from the formulas and not from any backend: probabilities are explicit, every sum has
terms of one sign (nothing cancels), and one maximal element is left out of the sum of
exponentials, so that losses and entropies are accurate down to the smallest numbers.
test_oracle.py checks this file against 60-digit decimal arithmetic.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch

FLOAT32_MAX = float(np.finfo(np.float32).max)
FLOAT32_STEP = float(np.finfo(np.float32).smallest_subnormal)
FLOAT32_TINY = float(np.finfo(np.float32).tiny)


class Truth(NamedTuple):
    """Per-row float64 statistics (N,), `correct` bool, `prediction` int64, and which rows are
    `valid` and `ignored`."""

    loss: np.ndarray
    entropy: np.ndarray
    lse: np.ndarray
    confidence: np.ndarray
    el2n: np.ndarray
    margin: np.ndarray
    correct: np.ndarray
    prediction: np.ndarray
    valid: np.ndarray
    ignored: np.ndarray


def to_float64(tensor: torch.Tensor) -> np.ndarray:
    """A float64 NumPy copy of a floating tensor of any dtype; exact."""
    return tensor.detach().to(torch.float64).cpu().numpy().copy()


def to_ints(tensor: torch.Tensor) -> np.ndarray:
    """An object array of Python ints, which no integer dtype can wrap."""
    return np.array([int(x) for x in tensor.reshape(-1).tolist()], dtype=object)


def statistics(
    logits: torch.Tensor, labels: torch.Tensor, ignore_index: int | None = None
) -> Truth:
    """Statistics of logits (N, C) and labels (N,).

    A row is valid when its loss and entropy are finite as float32 (a float64 input: as float64).
    Invalid rows hold NaN, ignored rows 0.
    """
    z = to_float64(logits)
    n = len(z)
    label_values = to_ints(labels)
    ignored = np.array([y == ignore_index for y in label_values], dtype=bool)
    y = np.array([0 if skip else v for v, skip in zip(label_values, ignored, strict=True)])
    y = y.astype(np.int64)
    fields = {name: np.zeros(n) for name in Truth._fields[:6]}
    correct = np.zeros(n, dtype=bool)
    prediction = np.zeros(n, dtype=np.int64)
    valid = np.zeros(n, dtype=bool)
    largest = np.inf if logits.dtype == torch.float64 else FLOAT32_MAX
    for i in range(n):
        if ignored[i]:
            continue
        row = _row(z[i], int(y[i]))
        valid[i] = row["loss"] <= largest and row["entropy"] <= largest
        correct[i] = row.pop("correct") and valid[i]
        if not np.isnan(z[i]).any() and np.isfinite(z[i].max()):  # else there is no softmax
            prediction[i] = np.argmax(z[i])  # the lowest index
        for name, value in row.items():
            fields[name][i] = value
    return Truth(**fields, correct=correct, prediction=prediction, valid=valid, ignored=ignored)


def _row(z: np.ndarray, y: int) -> dict[str, Any]:
    """Statistics of one row z (C,) with label y."""
    nothing = dict.fromkeys(Truth._fields[:6], np.nan) | {"correct": False}
    if np.isnan(z).any() or not np.isfinite(z.max()) or z[y] == -np.inf:
        return nothing
    top = int(np.argmax(z))  # the lowest index of the maximum
    others = np.ones(len(z), dtype=bool)
    others[top] = False
    below = z[others] - z[top]  # <= 0
    below = below[below > -np.inf]  # a column at -inf has probability 0 and contributes nothing
    e = np.exp(below)
    u = e.sum()  # sum of exp(z - m) without the leading 1
    log_s = np.log1p(u)
    p = e / (1 + u)
    # -sum p log p, every term >= 0: log p_top = -log_s, log p_j = below_j - log_s
    entropy = log_s / (1 + u) + (p * (log_s - below)).sum()
    loss = (z[top] - z[y]) + log_s
    not_y = np.ones(len(z), dtype=bool)
    not_y[y] = False
    with np.errstate(over="ignore"):
        probabilities = np.exp(z - z[top]) / (1 + u)
        rival = z[not_y].max() if len(z) > 1 else -np.inf
        margin = z[y] - rival
    return {
        "loss": loss,
        "entropy": entropy,
        "lse": z[top] + log_s,
        "confidence": np.exp(-loss),
        "el2n": np.sqrt(np.expm1(-loss) ** 2 + (probabilities[not_y] ** 2).sum()),
        "margin": margin,
        "correct": top == y,
    }


def order(scores: np.ndarray) -> np.ndarray:
    """Positions from the highest to the lowest score: ties by position, NaN last of all."""
    scores = np.asarray(scores, dtype=np.float64)
    nan = np.isnan(scores)
    descending = -np.where(nan, 0.0, scores)
    return np.lexsort((np.arange(len(scores)), descending, nan))


def kept(keep: float | int, n: int) -> int:
    """K of n rows."""
    if n == 0:
        return 0
    return max(1, round(float(keep) * n)) if isinstance(keep, float) else min(int(keep), n)


def select(scores: torch.Tensor, keep: float | int) -> torch.Tensor:
    """Ascending positions of the K highest scores."""
    values = to_float64(scores)
    return torch.from_numpy(np.sort(order(values)[: kept(keep, len(values))]).astype(np.int64))


def ulps(got: torch.Tensor, want: np.ndarray) -> np.ndarray:
    """Distance of float32 results from float64 truths, in units in the last place of the truth
    (of float32's smallest subnormal below its normal range)."""
    spacing = np.spacing(np.abs(want).astype(np.float32)).astype(np.float64)
    return np.abs(to_float64(got) - want) / np.maximum(spacing, FLOAT32_STEP)


def relative_errors(got: torch.Tensor, want: np.ndarray, steps: int = 4) -> np.ndarray:
    """|got - want| / |want|, after forgiving `steps` float32 subnormal steps where the truth is
    below float32's normal range and has no relative accuracy to keep."""
    error = np.abs(to_float64(got) - want)
    allowance = np.where(np.abs(want) < FLOAT32_TINY, steps * FLOAT32_STEP, 0.0)
    return np.maximum(error - allowance, 0.0) / np.maximum(np.abs(want), FLOAT32_STEP)


def fingerprint(*tensors: torch.Tensor) -> list[tuple[int, bytes]]:
    """Version counters and bytes of tensors, which are equal before and after a call that writes
    nothing."""
    marks = []
    for tensor in tensors:
        plain = tensor.detach().resolve_neg().resolve_conj().reshape(-1)
        copy = plain.clone(memory_format=torch.contiguous_format)
        marks.append((tensor._version, copy.view(torch.uint8).numpy().tobytes()))
    return marks


def state_fingerprint(state: Any) -> tuple[list[tuple[int, bytes]], dict[str, Any]]:
    """Everything an EMPState holds: its tensors down to the last bit, and its plain values."""
    values = dict(sorted(vars(state).items()))
    tensors = [x for x in values.values() if isinstance(x, torch.Tensor)]
    return fingerprint(*tensors), {
        name: x for name, x in values.items() if not isinstance(x, torch.Tensor)
    }


class StateModel:
    """What an EMPState holds, as plain Python lists updated row by row."""

    def __init__(self, num_samples: int) -> None:
        self.score = [np.inf] * num_samples
        self.loss = [0.0] * num_samples
        self.entropy = [0.0] * num_samples
        self.updates = [0] * num_samples
        self.selections = [0] * num_samples

    def update(self, ids: list[int], scores: Any, valid: np.ndarray) -> None:
        """One call: the last valid row of an id is kept, and counts one update."""
        score, loss, entropy = (to_float64(x) for x in scores[:3])
        written = set()
        for row, sample in enumerate(ids):
            if valid[row]:
                self.score[sample] = score[row]
                self.loss[sample] = loss[row]
                self.entropy[sample] = entropy[row]
                written.add(sample)
        for sample in written:
            self.updates[sample] += 1

    def draw(self, ids: list[int]) -> None:
        for sample in ids:
            self.selections[sample] += 1

    def assert_equal(self, state: Any) -> None:
        for name in ("score", "loss", "entropy", "updates", "selections"):
            np.testing.assert_array_equal(
                to_float64(getattr(state, name)), np.array(getattr(self, name)), err_msg=name
            )


def adjusted(
    logits: torch.Tensor, temperature: float | torch.Tensor = 1.0, softcap: float | None = None
) -> torch.Tensor:
    """softcap * tanh(z / softcap) / temperature in float64; temperature of the rows' shape."""
    z = logits.double()
    if isinstance(temperature, torch.Tensor):
        temperature = temperature.double()[..., None]
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    return z / temperature


def entropy_gradient(logits: torch.Tensor) -> np.ndarray:
    """-p_j (log p_j + H) of float64 logits (N, C), with nothing that cancels but the truth: with
    d_j = z_j - max z, log p_j + H is d_j - sum p d."""
    z = to_float64(logits)
    d = z - z.max(1, keepdims=True)
    e = np.exp(d)
    p = e / e.sum(1, keepdims=True)
    seen = np.where(p > 0, d, 0.0)
    return -p * (seen - (p * seen).sum(1, keepdims=True))
