"""Growth of a call's cost with each size, as fitted log-log slopes."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from bench import tables

# A panel's benchmark, title, axis label and series: the growing size, the size from which fixed
# costs are negligible, and its name ("": the growing size and the dtype).
PANELS = (
    ("scoring", "score_and_select, C = 1000", "logits N·C", (("N·C", 10**6, ""),)),
    ("scoring", "score_and_select, N = 256", "classes C", (("C", 10**4, ""),)),
    (
        *("selection", "select", "n or K"),
        (("n", 10**6, "n, of which 0.3 n are kept"), ("K", 10**3, "K, kept of 10⁸")),
    ),
    ("gathering", "gather rows of 512 B", "rows K", (("K", 10**5, "K of K / 0.3 rows"),)),
)


class Line(NamedTuple):
    """A series of the growth plot: its name, points (size, seconds), and the size `start` from
    which its slope is fitted."""

    name: str
    points: list[tuple[float, float]]
    start: int

    @property
    def slope(self) -> float:
        return slope([point for point in self.points if point[0] >= self.start])


def lines_of(
    rows: Sequence[tables.Row], benchmark: str, series: Sequence[tuple[str, int, str]]
) -> list[Line]:
    """The lines of a panel of the growth plot; one for each dtype."""
    found = []
    for grows, start, name in series:
        of_size = [r for r in rows if r["benchmark"] == benchmark and r.get("growth") == grows]
        for dtype in dict.fromkeys(row.get("dtype") for row in of_size):
            of_dtype = [row for row in of_size if row.get("dtype") == dtype]
            points = [(row["size"], row["seconds"]["median"]) for row in of_dtype]
            found.append(Line(name or f"{grows}, {dtype}", points, start))
    return found


def table(rows: Sequence[tables.Row]) -> str:
    """A line for each series of the growth plot; a slope of 1 is proportional growth."""
    lines = []
    for benchmark, title, _, series in PANELS:
        for line in lines_of(rows, benchmark, series):
            sizes = [size for size, _ in line.points]
            bounds = (f"{size:.1e}" for size in (min(sizes), max(sizes), line.start))
            lines.append([f"{title}: {line.name}", *bounds, f"{line.slope:.3f}"])
    headings = ["growth of", "from", "to", "fitted from", "log-log slope"]
    return tables.markdown(headings, lines)


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Exponent of the growth: least squares in logarithms."""
    logs = [(math.log(x), math.log(y)) for x, y in points]
    mean_x, mean_y = (sum(values) / len(logs) for values in zip(*logs, strict=True))
    over = sum((x - mean_x) * (y - mean_y) for x, y in logs)
    return over / sum((x - mean_x) ** 2 for x, _ in logs)
