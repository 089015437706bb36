"""Student's t for paired differences, and Holm's correction, in closed form."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

LEVEL = 0.95


class Difference(NamedTuple):
    """Mean of paired differences, half its 95 % t interval, the two-sided p of no difference."""

    mean: float
    half: float
    p: float
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:+.2f} ± {self.half:.2f}"


def paired(differences: Sequence[float]) -> Difference:
    """Of two differences or more."""
    n = len(differences)
    mean, deviation = statistics.fmean(differences), statistics.stdev(differences)
    error = deviation / math.sqrt(n)
    p = two_sided(abs(mean) / error, n - 1) if error > 0 else float(mean == 0)
    return Difference(mean, quantile(LEVEL, n - 1) * error, p, n)


def two_sided(t: float, degrees: int) -> float:
    """P(|T| > t) of Student's t with `degrees` of freedom (Abramowitz and Stegun, 26.7.3 and 4)."""
    angle = math.atan2(t, math.sqrt(degrees))
    cosine, total = math.cos(angle), 0.0
    term, odd = 1.0, degrees % 2
    for k in range(degrees // 2):
        total += term
        term *= cosine**2 * (2 * k + 1 + odd) / (2 * k + 2 + odd)
    if odd:
        inside = 2 / math.pi * (angle + math.sin(angle) * cosine * total)
    else:
        inside = math.sin(angle) * total
    return max(0.0, 1.0 - inside)


def quantile(level: float, degrees: int) -> float:
    """The t within which `level` of the distribution lies, by bisection."""
    low, high = 0.0, 1e4
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided(middle, degrees) > 1 - level else (low, middle)
    return high


def holm(values: Sequence[float], family: int) -> list[float]:
    """The p `values` corrected by Holm's method, as the smallest of a `family` of so many: missing
    ones count as the largest."""
    if len(values) > family:
        raise ValueError(f"holm: family must be at least {len(values)}, got {family}")
    corrected, highest = [0.0] * len(values), 0.0
    for rank, i in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (family - rank) * values[i]))
        corrected[i] = highest
    return corrected
