"""The demo's output: on a terminal a table above two progress bars, elsewhere one line per run."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table

from ..terminal.progress_bars import progress_bars
from . import summary
from .images import Images
from .methods import Method, Recipe

TITLE = "Test accuracy in percent, mean ± standard deviation over seeds:"


class Display:
    """A context manager: announce runs with `start`, show results with `show`."""

    def __init__(
        self, data: Images, recipe: Recipe, plan: Sequence[tuple[Method, float, int]]
    ) -> None:
        self.console = Console()
        self.num_samples, self.recipe, self.runs = len(data.train_labels), recipe, len(plan)
        self.progress = progress_bars(self.console)
        total = sum(recipe.steps(self.num_samples, keep) for _, keep, _ in plan)
        self.all = self.progress.add_task(f"{len(plan)} runs, steps", total=total)
        self.current = self.progress.add_task("", total=None)
        self.titles = {m.name: summary.title(m.name, m.beta) for m, _, _ in plan}
        self.live = Live(self.progress, console=self.console, refresh_per_second=8)
        height, width = data.train_images.shape[2:]
        self.console.print(
            f"{data.name}: {self.num_samples:,} training and {len(data.test_labels):,} test "
            f"images of {height}x{width} pixels, {data.num_classes} classes.\n"
            f"{recipe.epochs} epochs a run: the first trains on everything, the others on the "
            "kept share, by each method.",
            highlight=False,
        )

    def __enter__(self) -> "Display":
        self.live.__enter__()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.live.__exit__(kind, error, trace)

    def start(self, method: Method, keep: float, seed: int) -> Callable[[], None]:
        """Announce a run; the returned function is to be called after each of its steps."""
        if not self.console.is_terminal:
            return lambda: None
        self.progress.reset(
            self.current,
            description=f"{method.name}, keep {keep:g}, seed {seed}",
            total=self.recipe.steps(self.num_samples, keep),
        )

        def step() -> None:
            self.progress.advance(self.current)
            self.progress.advance(self.all)

        return step

    def show(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Show the table of `rows`, without the progress bars after the last run. Without a
        terminal, print a line for the last run, and the table at the end."""
        done = len(rows) == self.runs
        if not self.console.is_terminal:
            self.console.print(summary.run(rows[-1], len(rows), self.runs), highlight=False)
        table = self._table(*summary.table(rows, self.titles))
        parts: list[RenderableType] = [TITLE, table] if done else [TITLE, table, self.progress]
        self.live.update(Group(*parts), refresh=done)

    def _table(self, headings: list[str], lines: list[list[str]]) -> RenderableType:
        """One line per keep, or one line per cell if that is too wide for the terminal."""
        table = Table()
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        for line in lines:
            table.add_row(*line)
        room = self.console.options.update(max_width=1000)
        needed = self.console.measure(table, options=room).maximum
        return table if needed <= self.console.width else summary.narrow(headings, lines)

    def close(self, rows: Sequence[Mapping[str, Any]], files: Sequence[Path]) -> None:
        """After the context: print where the numbers come from and which files were written."""
        if not self.console.is_terminal:
            self.console.line()  # Live ends with a newline only on terminals
        self.console.print(summary.origin(rows), highlight=False)
        for file in files:
            self.console.print(f"wrote {file}", highlight=False, soft_wrap=True)
