"""Each case relative to the machine's limits: memory bandwidth and arithmetic.

Work is counted in elements: a logit scored, a score compared, a number moved, an entry of a matrix
of similarities. Elements per byte are a case's intensity; times the read bandwidth they give the
memory limit, and `bench_limits.py` measures the arithmetic limit.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

from bench import tables

Row = dict[str, Any]
LEFT_OUT = ("growth", "train step")  # growth has its own plot; a step is not one operation


class Point(NamedTuple):
    """One case: elements per byte, and in 10^9 elements per second its rate, the memory limit and
    the arithmetic limit (None if not measured)."""

    row: Row
    intensity: float
    rate: float
    memory: float
    arithmetic: float | None

    @property
    def roof(self) -> float:
        return self.memory if self.arithmetic is None else min(self.memory, self.arithmetic)

    @property
    def bound(self) -> str:
        """Which of the two limits is the lower one."""
        return "memory" if self.roof == self.memory else "arithmetic"


def points(rows: Sequence[Row]) -> list[Point]:
    """The points of all cases except `LEFT_OUT` and the limits themselves."""
    scoring, product = scoring_limits(rows), product_limits(rows)
    found = []
    for row in rows:
        if row["benchmark"] == "limits" or row["case"].startswith(LEFT_OUT):
            continue
        count = elements(row)
        intensity, rate = count / row["bytes"], count / row["seconds"]["median"] / 1e9
        arithmetic = None
        if "d" in row and row["dtype"] in product:
            arithmetic = product[row["dtype"]] / row["d"] / row.get("products", 1)
        elif row["benchmark"] in ("pruning", "scoring", "tokens"):
            arithmetic = scoring.get(row["dtype"])
        memory = intensity * row["read"]["gb_per_s"]
        found.append(Point(row, intensity, rate, memory, arithmetic))
    return found


def table(rows: Sequence[Row]) -> str:
    """A line for each point of the roofline plot, and its share of the lower limit."""
    headings = ["roofline", "elements / B", "10⁹ / s", "limit", "bound by", "share of it"]
    lines = [
        [
            *(p.row["case"], f"{p.intensity:.3g}", f"{p.rate:.3g}", f"{p.roof:.3g}"),
            *(p.bound, f"{p.rate / p.roof:.2f}"),
        ]
        for p in points(rows)
    ]
    return tables.markdown(headings, lines)


def elements(row: Row) -> int:
    """Number of elements that a call of the case processes."""
    if "elements" in row:
        return row["elements"]
    if "row_bytes" in row:  # 30 % of the rows
        return round(0.3 * row["n"]) * sum(row["row_bytes"]) // 4
    return row["n"] * row.get("c", 1)


def scoring_limits(rows: Sequence[Row]) -> dict[str, float]:
    """10^9 logits per second for each dtype, on data in the L2 cache."""
    return _limits(rows, lambda row: "d" not in row, lambda row: row["n"] * row["c"])


def product_limits(rows: Sequence[Row]) -> dict[str, float]:
    """10^9 multiply-adds per second for each dtype, on data in the last-level cache."""
    return _limits(rows, lambda row: "d" in row, lambda row: row["n"] * row["c"] * row["d"])


def _limits(rows: Sequence[Row], applies: Any, count: Any) -> dict[str, float]:
    return {
        row["dtype"]: count(row) / row["seconds"]["median"] / 1e9
        for row in rows
        if row["benchmark"] == "limits" and applies(row)
    }
