"""The rank command: scores logits one block at a time, then chooses ids by their scores."""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from ... import __version__, ranking
from ...keep import Keep, check_keep_of
from ...ranked_rows import RankedRows, Rows, classes_of, counted_classes
from . import scored
from .file_arrays import InputError
from .inputs import files_of, open_shards, out_of_order
from .outputs import check_out, write_ids
from .partial import Partial
from .progress import Progress
from .summary import SHARES, Summary

PADDING = -100  # the label that torch's losses ignore by default


def rank_files(options: argparse.Namespace) -> None:
    """Write the ids to keep to `options.out` and a picture next to it; print a summary.

    Raises:
        InputError: an input is missing or not of the required form.
        CommandError: a package is missing, or the output cannot be written.
    """
    check_out(options.out)
    names = [name for name in ("logits", "labels") if getattr(options, name) is not None]
    files = {name: files_of(name.upper(), getattr(options, name)) for name in names}
    _check_apart(options, files)
    alone = options.labels is None
    run = scored.Run(options, files["logits"]) if alone else _Run(options, files)
    for paths in files.values():
        turned = out_of_order(paths)
        if turned is not None:
            first, second = turned
            print(f"in the order of names: {first.name} before {second.name}", file=sys.stderr)
    keep = _keep(options, run.rows)
    new_folder = not options.out.parent.exists()
    with Progress() as progress:
        summary = run.write(keep, progress)
    print(summary.text())
    if new_folder:
        print(f"made the folder {options.out.parent}")
    print(f"wrote {options.out}")
    drawing = options.out.with_suffix(".png")
    if summary.draw(drawing):
        print(f"wrote {drawing}")
    else:
        print("no picture without matplotlib; install with: pip install matplotlib")


def _keep(options: argparse.Namespace, rows: int) -> Keep:
    """--keep, checked against the number of rows."""
    try:
        keep = check_keep_of("--keep", options.keep, rows)
        return ranking.check_keep_of_classes("--keep", keep, options.per_class)
    except ValueError as error:
        raise InputError(str(error).replace(": keep", "", 1)) from None


def _check_apart(options: argparse.Namespace, files: dict[str, list[Path]]) -> None:
    """The output must not be an input, of this call or of the next one."""
    out = options.out.resolve()
    folders = [Path(getattr(options, name)).resolve() for name in files]
    if any(out == path.resolve() for paths in files.values() for path in paths):
        raise InputError(f"--out must be none of the files that are read, got {options.out}")
    if out.parent in folders:
        raise InputError(f"--out must be outside of the folders that are read, got {options.out}")


class _Run:
    """One ranking of files of logits and labels.

    Attributes:
        rows: how many they have.
    """

    def __init__(self, options: argparse.Namespace, files: dict[str, list[Path]]) -> None:
        self.options, self.files = options, files
        logits, labels = (open_shards(name, paths) for name, paths in files.items())
        if logits.rows != labels.rows:
            raise InputError(
                f"LABELS must have as many rows as LOGITS ({logits.rows:,}), got {labels.rows:,}"
            )
        self.logits, self.labels, self.rows = logits, labels, logits.rows
        self.num_classes = logits.arrays[0].shape[1]
        samples = [array.read(0, min(1, array.shape[0])) for array in logits.arrays]
        self.size = min(map(ranking.rows_at_once, samples))
        wide = any(sample.dtype == torch.float64 for sample in samples)
        self.dtype = torch.int64 if wide else torch.int32  # of keys

    def write(self, keep: Keep, progress: Progress) -> Summary:
        """Score the remaining rows, choose, and write the ids."""
        self.progress = progress
        counts = torch.zeros(self.num_classes, dtype=torch.int64)
        for first, stop in self._spans("labels"):  # find invalid ones before anything is written
            counts += counted_classes(self._classes(first, stop), self.num_classes)
        options, rows = self.options, self.rows
        options.out.parent.mkdir(parents=True, exist_ok=True)
        beside = options.out.with_name(options.out.name + ".partial")
        partial = Partial(beside, self._identity(), self.dtype)
        finished = False
        try:
            self._score(partial)

            def blocks() -> Iterator[Rows]:
                for first, stop in self._spans("choosing"):
                    yield Rows(first, partial.read(first, stop))

            ranked = RankedRows(
                blocks,
                self._classes,
                counts,
                self.dtype,
                keep,
                per_class=options.per_class,
                shares=SHARES,
            )
            summary = Summary(ranked, options.by, rows)
            write_ids(options.out, summary.noting(ranked.chosen()), ranked.num_kept)
            finished = True
        except InputError:
            finished = True  # nothing to resume
            raise
        except KeyboardInterrupt:
            print(
                f"{partial.rows:,} of {rows:,} rows are scored; the same command goes on from "
                "there",
                file=sys.stderr,
            )
            raise
        finally:
            partial.close(finished=finished)
        return summary

    def _score(self, partial: Partial) -> None:
        options, begin = self.options, partial.rows
        if begin:
            print(f"{begin:,} rows were scored before", file=sys.stderr)
        spans = self.logits.spans(self.size, begin)
        for first, stop in self.progress.follow("scoring", spans, self.logits.rows, begin):
            block = self.logits.read(first, stop)
            if self.dtype == torch.int64:
                block = block.double()
            keys = ranking.keys_of(
                block,
                self.labels.read(first, stop),
                options.by,
                options.beta,
                options.ignore_index,
            )
            partial.append(keys)

    def _spans(self, name: str) -> Iterator[tuple[int, int]]:
        rows = self.rows
        return self.progress.follow(name, ranking.spans(rows, ranking.BLOCK_ROWS), rows)

    def _classes(self, first: int, stop: int) -> torch.Tensor:
        labels = self.labels.read(first, stop)
        try:
            return classes_of("LABELS", labels, self.num_classes, self.options.ignore_index, first)
        except ValueError as error:
            message = str(error).replace(": labels", "", 1)
            if f"got {PADDING} in row" in message:
                message += f"; --ignore-index {PADDING} leaves such rows out"
            raise InputError(message) from None

    def _identity(self) -> dict[str, Any]:
        """Everything that the scores depend on."""
        options = self.options
        return {
            "version": __version__,
            "by": options.by,
            "beta": options.beta,
            "ignore_index": options.ignore_index,
            "logits": _stamps(self.files["logits"]),
            "labels": _stamps(self.files["labels"]),
        }


def _stamps(files: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Names, sizes and modification times of files, to detect changes."""
    found = [(file.resolve(), file.stat()) for file in files]
    return [(str(path), about.st_size, about.st_mtime_ns) for path, about in found]
