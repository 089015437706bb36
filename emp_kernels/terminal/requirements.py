"""What a command needs from its user's machine, and the one line that says what is missing."""

import importlib.util

PIP_NAMES = {"PIL": "pillow"}


class CommandError(Exception):
    """A command cannot go on; the message is one line for its user, `status` what it exits with."""

    status = 1


def require_packages(purpose: str, *modules: str) -> None:
    """Raise a :class:`CommandError` naming the pip command, unless all `modules` can be found."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        packages = " ".join(PIP_NAMES.get(name, name) for name in missing)
        raise CommandError(f"{purpose} needs {packages}; install with: pip install {packages}")
