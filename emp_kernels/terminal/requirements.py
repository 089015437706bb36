"""Errors of commands, and checks for the optional packages that they need."""

import importlib.util

PIP_NAMES = {"PIL": "pillow"}


class CommandError(Exception):
    """A command fails; the message is one line for the user, `status` the exit status."""

    status = 1


class UsageError(CommandError):
    """The command line, or what it needs to run, is not as required; nothing has been written."""

    status = 2


def require_packages(purpose: str, *modules: str) -> None:
    """Raise a :class:`UsageError` naming the pip command, unless all `modules` can be found."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(PIP_NAMES.get(name, name) for name in missing)
        raise UsageError(f"{purpose} needs {packages}; install with: pip install {packages}")
