"""Forked processes can call every CPU function after the parent used its threads."""

import os
import pathlib
import subprocess
import sys

import pytest

SCRIPT = pathlib.Path(__file__).with_name("forked_workers.py")
ROOT = SCRIPT.parent.parent


def run(mode, backend):
    """Exit the script within its time, or fail with what it printed."""
    path = os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(ROOT)]))
    try:
        done = subprocess.run(
            [sys.executable, str(SCRIPT), mode, backend],
            env=os.environ | {"PYTHONPATH": path},
            capture_output=True,
            text=True,
            timeout=400,
        )
    except subprocess.TimeoutExpired as error:
        pytest.fail(f"{mode} {backend} hangs: {error.stdout!r} {error.stderr!r}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("forked and done\n")


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
def test_data_loader_workers(backend):
    run("loader", backend)


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@pytest.mark.parametrize("mode", ["process", "first"])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_a_bare_fork(mode, backend):
    """Also if the child is the first to call the library, after torch used its threads. With the
    reference backend torch's own operators would hang on OpenMP there."""
    run(mode, backend)
