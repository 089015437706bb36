"""The summary of a ranking, as text and as a picture."""

import importlib.util
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from ...order_keys import values_of_keys
from ...ranked_rows import Chosen, RankedRows
from ...ranking import as_measured
from .outputs import written_beside

SHARES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 60
CLASSES = 20  # rows of the table, at most


class Summary:
    """Counts and quantiles of a ranking by the measure `by`; `noting` counts the kept rows."""

    def __init__(self, ranked: RankedRows, by: str, rows: int) -> None:
        self.ranked, self.by, self.rows = ranked, by, rows
        found = torch.tensor(ranked.quantiles, dtype=torch.float64)
        self.quantiles = as_measured(by, found).tolist()
        if by == "margin":
            self.quantiles.reverse()
        ends = [value for value in self.quantiles if math.isfinite(value)] or [0.0]
        self.low, self.high = min(ends), max(ends)
        if self.low == self.high:
            self.low, self.high = self.low - 0.5, self.high + 0.5
        self.bins = torch.zeros(2, BINS, dtype=torch.int64)  # all rows, kept rows

    def noting(self, chosen: Iterable[Chosen]) -> Iterator[torch.Tensor]:
        """Yield the ids kept, block by block, and count them."""
        for first, keys, kept in chosen:
            ids = kept.nonzero()[:, 0]
            for row, counted in enumerate((keys, keys[ids])):
                self.bins[row] += self._binned(as_measured(self.by, values_of_keys(counted)))
            yield ids + first

    def _binned(self, values: torch.Tensor) -> torch.Tensor:
        """Histogram (BINS,) int64 of `values`; those outside the range count in the outermost
        bins."""
        place = ((values - self.low) * (BINS / (self.high - self.low))).clamp_(0, BINS - 1)
        place = place.nan_to_num_(nan=BINS).to(torch.int32)
        return torch.bincount(place, minlength=BINS + 1)[:BINS]

    def text(self) -> str:
        """Lines of at most 40 columns, unless a number is longer."""
        ranked = self.ranked
        counted = int(ranked.rows_of_class.sum())
        invalid = counted - int(ranked.valid_of_class.sum())
        first = "lowest" if self.by == "margin" else "highest"
        lines = [
            f"kept {ranked.num_kept:,} of {counted:,} rows",
            f"with the {first} {self.by}{' of each class' if ranked.per_class else ''}",
        ]
        if self.rows > counted:
            lines.append(f"{self.rows - counted:,} more are ignored")
        if invalid:
            lines.append(f"{invalid:,} are invalid, never kept")
        thresholds = as_measured(self.by, ranked.threshold)
        reached = thresholds[~thresholds.isnan()]
        if len(reached) == 1:
            lines.append(f"threshold {float(reached):.6g}")
        elif len(reached):
            low, high = float(reached.min()), float(reached.max())
            lines.append(f"thresholds {low:.6g} to {high:.6g}")
        lines += ["", f"quantiles of {self.by}"]
        lines += [
            f"{share:>6.0%}  {value:.6g}"
            for share, value in zip(SHARES, self.quantiles, strict=True)
        ]
        if len(ranked.rows_of_class) > 1:
            lines += ["", f"{'class':>7} {'kept':>11} {'of':>11} {'share':>6}", *self._classes()]
        return "\n".join(lines)

    def _classes(self) -> Iterator[str]:
        """One line per class; if there are many, only the highest and lowest shares."""
        kept, rows = self.ranked.kept_of_class.tolist(), self.ranked.rows_of_class.tolist()
        classes = [c for c, n in enumerate(rows) if n]
        left_out = len(classes) - CLASSES
        if left_out > 0:
            classes.sort(key=lambda c: (-kept[c] / rows[c], c))
            classes = classes[: CLASSES // 2] + classes[-CLASSES // 2 :]
        for place, c in enumerate(classes):
            if left_out > 0 and place == CLASSES // 2:
                yield f"    ... {left_out:,} classes between"
            yield f"{c:>7} {kept[c]:>11,} {rows[c]:>11,} {kept[c] / rows[c]:>6.1%}"

    def draw(self, path: Path) -> bool:
        """Write the picture; False without matplotlib."""
        if importlib.util.find_spec("matplotlib") is None:
            return False
        from .picture import picture

        with written_beside(path) as beside:
            picture(self).savefig(beside, format="png")
        return True
