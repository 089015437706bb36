"""Command line, ``python -m emp_kernels`` or ``emp-kernels``: demo, doctor and rank.

The outermost layer: nothing else in the package imports it, and each command's modules are imported
when it runs.
"""

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from .. import __version__
from ..keep import Keep, check_keep
from ..ranking import MEASURES
from ..terminal.requirements import CommandError, UsageError
from ..validation import check_beta

T = TypeVar("T")


def _listed(convert: Callable[[str], T]) -> Callable[[str], list[T]]:
    """argparse type for ``a b c`` and ``a,b,c`` alike; the values arrive as a list of lists."""

    def parse(text: str) -> list[T]:
        return [convert(part) for part in text.split(",") if part]

    return parse


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a number, got {text!r}") from None


def _share(text: str) -> float:
    try:
        return float(check_keep("keep", _number(text)))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be a share in (0, 1], got {text}") from None


def _kept(text: str) -> Keep:
    """A share in (0, 1], or a number of rows from 2 on."""
    value = _number(text)
    if value >= 2 and value.is_integer():
        return int(text) if text.isdecimal() else int(value)
    if not 0.0 < value <= 1.0:
        raise argparse.ArgumentTypeError(
            f"must be a share in (0, 1] or a number of rows from 2 on, got {text}"
        )
    return value


def _beta(text: str) -> float:
    try:
        return check_beta("beta", _number(text))
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be finite, got {text}") from None


def _label(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 2**63
    if not -(2**63) <= value < 2**63:
        raise argparse.ArgumentTypeError(f"must be an integer, got {text!r}")
    return value


def _integer(least: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if not least <= value < 2**31:
            raise argparse.ArgumentTypeError(f"must be an integer from {least}, got {text!r}")
        return value

    return parse


class _Parser(argparse.ArgumentParser):
    """Its errors read like those of the commands, in one line without the usage."""

    def error(self, message: str) -> NoReturn:
        name = re.sub(r"^(python -m emp_kernels|emp-kernels)", "emp_kernels", self.prog)
        message = re.sub(r"^argument (\S+): (?=must )", r"\1 ", message)
        self.exit(2, f"{name}: {message}; see --help\n")


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names the defaults that are values: neither None nor that a switch is off."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="emp-kernels" if Path(sys.argv[0]).stem == "emp-kernels" else "python -m emp_kernels",
        description="EMP data pruning: score samples, keep the top k, train on those.",
    )
    parser.add_argument("--version", action="version", version=f"emp_kernels {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="command")

    demo = commands.add_parser(
        "demo",
        help="train a small CNN on real images with EMP, loss-only and random selection",
        description="Trains a small CNN on real images with EMP, loss-only (LFL) and random "
        "selection, the same number of steps for each at every keep, and writes a table, plots "
        "and one JSON row for each run.",
        formatter_class=_HelpFormatter,
    )
    demo.add_argument(
        "--data",
        choices=("digits", "cifar100"),
        default="digits",
        help="digits is part of the package; cifar100 is read from --data-dir",
    )
    demo.add_argument(
        "--data-dir",
        type=Path,
        help="where CIFAR-100 is: the folder cifar-100-python, cifar-100-python.tar.gz, the "
        "folder that holds either, or a folder with train.jpg, test.jpg and labels.npz",
    )
    demo.add_argument(
        "--keep",
        type=_listed(_share),
        nargs="+",
        default=[1.0, 0.5, 0.3, 0.1],
        metavar="SHARE",
        help="shares of the training set that an epoch trains on",
    )
    demo.add_argument("--beta", type=_beta, default=1.0, help="weight of EMP's memory term")
    demo.add_argument(
        "--seeds",
        type=_listed(_integer(0)),
        nargs="+",
        default=[0, 1, 2],
        metavar="SEED",
        help="seeds; each runs every method at every keep",
    )
    demo.add_argument(
        "--epochs", type=_integer(1), default=15, help="epochs a run, the warm-up one included"
    )
    demo.add_argument(
        "--out",
        type=Path,
        default=Path("out/demo"),
        help="folder for the rows and the plots; numbered where it has an earlier demo's",
    )

    rank = commands.add_parser(
        "rank",
        help="which rows of logits on disk are worth training on",
        description="Ranks the rows of logits (N, C) in files by their labels (N,) and writes the "
        "ids of those to keep, ascending, and a picture. Files end in .npy, .npz, "
        ".pt, .safetensors or .parquet and are read a block at a time; a run that was stopped goes "
        "on where it was. Alone, LOGITS names .parquet files of ids and scores.",
        formatter_class=_HelpFormatter,
    )
    for name, shape in (("logits", "(N, C)"), ("labels", "(N,)")):
        rank.add_argument(
            name,
            nargs="?" if name == "labels" else None,
            metavar=name.upper(),
            help=f"{shape}: a file, a quoted pattern, or a folder of files in the order of names",
        )
    rank.add_argument(
        "--keep", type=_kept, default=0.3, metavar="K", help="a share, or a number from 2 on"
    )
    rank.add_argument(
        "--by", choices=MEASURES, default="emp", help="the highest are kept, of margin the smallest"
    )
    rank.add_argument("--beta", type=_beta, default=1.0, help="weight of emp's memory term")
    rank.add_argument("--per-class", action="store_true", help="keep the share of each class")
    rank.add_argument(
        "--ignore-index",
        type=_label,
        metavar="LABEL",
        help="rows that are neither counted nor kept",
    )
    rank.add_argument(
        "--out",
        type=Path,
        default=Path("ids.npy"),
        help="file for the ids: .npy, .csv (column id), .parquet (column id) or .json (key ids)",
    )

    commands.add_parser(
        "doctor",
        help="versions, devices, and which backend each operation would take and why",
        description="Prints versions, devices, SIMD level, threads, and for every operation and "
        "device the backend that would serve it and why each other one would not.",
    )
    return parser


def _unknown(arguments: list[str], command: str) -> UsageError:
    """The error for arguments that the `command` does not have."""
    listed = " ".join(arguments[:3] + ["..."] * (len(arguments) > 3))
    hint = "see --help"
    if command == "rank" and not arguments[0].startswith("-"):
        hint = "put a pattern of files in quotes, so that the shell does not expand it"
    return UsageError(f"unrecognized arguments: {listed}; {hint}")


def _distinct(values: list[Any]) -> list[Any]:
    """The parsed list of lists, flattened, in order and without duplicates."""
    flat = [x for value in values for x in (value if isinstance(value, list) else [value])]
    return list(dict.fromkeys(flat))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (argparse exits with 2 by itself)."""
    parser = _parser()
    options, unknown = parser.parse_known_args(arguments)
    try:
        if unknown:
            raise _unknown(unknown, options.command)
        if options.command == "doctor":
            from . import doctor

            print(doctor.report())
            return 0
        if options.command == "rank":
            from .ranking import rank_files

            rank_files(options)
            return 0
        options.keep, options.seeds = _distinct(options.keep), _distinct(options.seeds)
        for name in ("keep", "seeds"):
            if not getattr(options, name):
                raise UsageError(f"--{name} must name at least one value")
        from . import demo

        demo.run_demo(options)
        return 0
    except CommandError as error:
        print(f"emp_kernels {options.command}: {error}", file=sys.stderr)
        return error.status
    except KeyboardInterrupt:
        print(f"emp_kernels {options.command}: interrupted", file=sys.stderr)
        return 130
