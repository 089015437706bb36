"""Run the missing runs of the comparison: python -m bench.methods --data digits mnist1d

A finished run is one line in FOLDER/methods-DATA.jsonl and is not repeated: stop at any time and
start again.
"""

import argparse
import json
import multiprocessing
import sys
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path
from typing import Any

from rich.console import Console

from bench import harness
from bench.methods import worker
from bench.methods.choosing import PER_BATCH
from bench.methods.plan import KEY, STUDIES, Trial, timed_trials, trials
from emp_kernels.experiments import provenance
from emp_kernels.terminal.progress_bars import progress_bars
from emp_kernels.terminal.requirements import CommandError


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parser().parse_args(arguments)
    keeps = (0.3,) if options.quick else (0.3, 0.5, 0.1)
    plan = []
    for data in options.data:
        wanted = [
            found
            for found in (timed_trials(data) if options.alone else trials(data, keeps))
            if (not options.quick or (found.seed < 3 and STUDIES[data].methods is None))
            and (not options.methods or found.method.name in options.methods)
        ]
        done = [_key(row) for row in rows_of(rows_file(options, data))]
        plan += [found for found in wanted if found.key not in done]
    if not options.alone:
        plan.sort(key=_turn)
    if not plan:
        print("every run is there already")
        return
    spawn = multiprocessing.get_context("spawn")  # forked processes have no OpenMP threads
    steps, stop = spawn.Value("q", 0), spawn.Event()
    origin = harness.origin() | {
        "commit": provenance.commit("bench/methods"),
        "alone": options.alone,
        "workers": options.workers,
    }
    pool = ProcessPoolExecutor(options.workers, spawn, worker.begin, (steps, stop))
    tasks = {pool.submit(worker.measure, found, options.data_dir): found for found in plan}
    unwritten = set(tasks)
    try:
        _collect(tasks, unwritten, steps, options, origin)
    except KeyboardInterrupt:
        stop.set()
        pool.shutdown(wait=True, cancel_futures=True)
        for future in [found for found in unwritten if _finished(found)]:
            _write(future, unwritten, options, origin)
        raise CommandError(
            f"stopped: {len(tasks) - len(unwritten)} of {len(tasks)} runs are finished and in "
            f"{options.rows}; the same command goes on from there"
        ) from None
    finally:
        stop.set()  # runs end after their current step
        pool.shutdown(wait=True, cancel_futures=True)


def rows_file(options: argparse.Namespace, data: str) -> Path:
    """Timed runs have a separate file."""
    return options.rows / f"methods-{data}{'-alone' if options.alone else ''}.jsonl"


def rows_of(file: Path) -> list[dict[str, Any]]:
    return harness.read_rows(file) if file.exists() else []


def _key(row: dict[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in KEY}


def _finished(future: Future[dict[str, Any]]) -> bool:
    return future.done() and not future.cancelled() and future.exception() is None


def _write(
    future: Future[dict[str, Any]],
    unwritten: set[Future[dict[str, Any]]],
    options: argparse.Namespace,
    origin: dict[str, Any],
) -> dict[str, Any]:
    """Append the row of a finished run, and return it."""
    row = origin | future.result()
    unwritten.discard(future)
    file = rows_file(options, row["data"])
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as rows:
        rows.write(json.dumps(row) + "\n")
    return row


def _collect(
    tasks: dict[Future[dict[str, Any]], Trial],
    unwritten: set[Future[dict[str, Any]]],
    steps: Any,
    options: argparse.Namespace,
    origin: dict[str, Any],
) -> None:
    """Append each row when its run ends, with a progress bar over all steps."""
    console = Console()
    bar = progress_bars(console, seconds_averaged=600)
    total, start, pending = sum(map(_steps, tasks.values())), time.monotonic(), set(tasks)
    with bar:
        task = bar.add_task(f"{len(tasks)} runs", total=total)
        while pending:
            ended, pending = wait(pending, timeout=0.5, return_when=FIRST_COMPLETED)
            bar.update(task, completed=steps.value)
            for future in ended:
                row = _write(future, unwritten, options, origin)
                left = (time.monotonic() - start) * (total / max(1, steps.value) - 1)
                bar.update(task, description=f"{len(pending)} of {len(tasks)} runs to go")
                console.print(
                    f"{row['data']}, {row['method']} β={row['beta']} {row['protocol'] or ''}, "
                    f"keep {row['keep']:g}, noise {row['noise']:g}, seed {row['seed']}: "
                    f"{row['accuracy']:.2f} % in {row['seconds']:.1f} s; {len(pending)} to go, "
                    f"about {left / 60:.0f} min",
                    highlight=False,
                    soft_wrap=True,
                )


def _turn(found: Trial) -> tuple[bool, bool, int]:
    """First the cell that the pages show first, then whole seeds over all data sets, and last the
    full-data runs that take hours."""
    head = (found.keep, found.noise) == (0.3, 0.0) and found.protocol != PER_BATCH
    return STUDIES[found.data].methods is not None and found.keep == 1.0, not head, found.seed


def _steps(found: Trial) -> int:
    study = STUDIES[found.data]
    return study.recipe.steps(study.samples, found.keep)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.methods", description=__doc__)
    everywhere = [name for name in STUDIES if name != "cifar100"]
    parser.add_argument("--data", nargs="+", choices=STUDIES, default=everywhere)
    parser.add_argument("--data-dir", type=Path, help="the folder that holds CIFAR-100")
    parser.add_argument("--rows", type=Path, default=harness.results_folder(), metavar="FOLDER")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time")
    parser.add_argument("--methods", nargs="+", help="only those of these names")
    parser.add_argument("--quick", action="store_true", help="keep 0.3 and three seeds")
    parser.add_argument(
        "--alone",
        action="store_true",
        help="the runs whose times count, on a machine that does nothing else",
    )
    return parser


if __name__ == "__main__":
    try:
        main()
    except CommandError as error:
        sys.exit(f"python -m bench.methods: {error}")
