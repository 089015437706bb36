"""Scores that break selection code, and sizes at which the algorithm changes."""

from __future__ import annotations

import numpy as np

from .cases import Case

# Where selection changes its algorithm, and where vectors, blocks and chunks end.
EDGES = [1, 8, 16, 32, 64, 256, 1024, 2048, 8192]
LARGE_EDGES = [16384, 32768, 49152, 65536]
LARGEST = [2**22 - 1, 2**22, 2**22 + 1, 2**22 + 65536, 1_000_003]


def size(case: Case) -> int:
    """Mostly small: a second has thousands of these, and a large one takes a good part of it."""
    kind = case.random.random()
    if kind < 0.7:
        return 1 + case.below(300)
    if kind < 0.85:
        return case.one_of(EDGES) + case.below(3) - 1
    if kind < 0.98:
        return 300 + case.below(3000)
    if kind < 0.9997:
        return case.one_of(LARGE_EDGES) + case.below(3) - 1
    return case.one_of(LARGEST)


def _of_bits(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)


def normal(random, n):
    return random.standard_normal(n, dtype=np.float32)


def few_values(random, n):
    return random.integers(-2, 1 + int(random.integers(1, 5)), n).astype(np.float32)


def zeros(random, n):
    return _of_bits(random.integers(0, 2, n) << 31)


def denormals(random, n):
    """Of both signs; often so few of them that most are ties."""
    highest = int(random.choice([2, 100, 0x800000]))
    return _of_bits(random.integers(0, highest, n) | (random.integers(0, 2, n) << 31))


def around_denormals(random, n):
    """From the largest denormals to the smallest normal numbers, zeros among them."""
    bits = random.integers(0x7FFFFE, 0x800003, n)
    return np.where(random.random(n) < 0.3, np.float32(0), _of_bits(bits))


def any_bits(random, n):
    """Every exponent, NaN of every payload, both infinities."""
    return _of_bits(random.integers(0, 2**32, n))


def neighbours(random, n):
    """Numbers one or two units in the last place apart."""
    return _of_bits(int(random.integers(1, 0x7F7FFFF0)) + random.integers(0, 3, n))


def constant(random, n):
    values = [0.0, -0.0, 1.0, 1e-45, -1e-45, 3.4e38, np.inf, -np.inf, np.nan]
    return np.full(n, random.choice(values), dtype=np.float32)


def infinities(random, n):
    return random.choice(np.array([np.inf, -np.inf, 0.0, 1.0], dtype=np.float32), n)


def losses(random, n):
    """As of a trained network: most are nearly or exactly zero, a few are large."""
    return np.exp(random.normal(-20, 30, n)).astype(np.float32)


def mostly_nan(random, n):
    return np.where(random.random(n) < 0.9, np.float32(np.nan), normal(random, n))


DISTRIBUTIONS = (normal, few_values, zeros, denormals, around_denormals, any_bits, neighbours)
DISTRIBUTIONS += (constant, infinities, losses, mostly_nan)
SPECIAL = np.array([np.nan, -np.inf, np.inf, 0.0, -0.0, 1e-45, 1e-40], dtype=np.float32)


def scores(case: Case, n: int) -> np.ndarray:
    """(n,) float32: one distribution or two, sorted or not, with or without something special."""
    random = case.random
    with np.errstate(all="ignore"):
        values = case.one_of(DISTRIBUTIONS)(random, n)
        shape = case.below(8)
        if shape == 0:
            values = np.sort(values)
        elif shape == 1:
            values = np.sort(values)[::-1].copy()
        elif shape == 2 and n:  # two concatenated distributions mislead a sample
            cut = case.below(n)
            values[cut:] = case.one_of(DISTRIBUTIONS)(random, n - cut)
        elif shape == 3 and n:
            places = random.integers(0, n, 1 + case.below(5))
            values[places] = random.choice(SPECIAL, len(places))
    return values


def order(values: np.ndarray) -> np.ndarray:
    """Positions from the highest score to the lowest, ties by position, NaN last: by integers,
    independent of floating-point modes."""
    bits = values.view(np.uint32)
    magnitude = (bits & 0x7FFFFFFF).astype(np.int32)
    negative = (bits >> 31).astype(bool)
    falling = np.where(negative, magnitude, -magnitude)  # -0 and +0 are both 0
    falling = np.where(magnitude > 0x7F800000, np.int32(0x7FFFFFFF), falling)
    return np.argsort(falling, kind="stable")


def keep(case: Case, n: int) -> int | float:
    """A `keep` for n scores."""
    if case.below(2) or n == 0:
        return float(case.one_of([case.random.random(), 1e-9, 0.5, 0.3, 1.0])) or 1.0
    return case.one_of([1, n, 1 + case.below(n)])
