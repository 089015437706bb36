"""Runs cases for a given time in watched processes, because a case may end its process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from . import races, rows, samples, selections
from .cases import Case

# Kinds by name, and each one's share of the time.
KINDS = {
    "selection": (selections.selection, 5),
    "selection_beside_updates": (selections.selection_beside_updates, 2),
    "scoring": (rows.scoring, 2),
    "tokens": (rows.tokens, 2),
    "gather": (samples.gather, 1),
    "state": (samples.state, 1),
    "overwritten": (races.overwritten, 1),
    "snapshot": (races.snapshot, 1),
}
MAX_FAILURES = 10  # after which a kind is skipped
HANGS = 120  # seconds that a process may exceed its time


def again(level: str, seed: int, kind: str, number: int) -> str:
    """The command that reproduces the case."""
    return f"EMP_SIMD={level} python -m tests.fuzz --seed {seed} --kind {kind} --case {number}"


def run_case(seed: int, kind: str, number: int) -> Counter[str]:
    """Run the case and return its counts; failures are raised."""
    case = Case(seed, kind, number)
    KINDS[kind][0](case)
    case.count(f"cases of {kind}")
    return case.counts


def work(level: str, seconds: float, seed: int, kinds: list[str], notes: Path) -> int:
    """Cases of `kinds` for `seconds`, each kind with its share of the time. `notes` holds the case
    that runs, and at the end what all of them counted."""
    counts: Counter[str] = Counter()
    spent = dict.fromkeys(kinds, 0.0)
    cases, failures = Counter[str](), Counter[str]()
    begin = time.monotonic()
    end = begin + seconds
    with notes.open("w") as file:
        while begin < end:
            awake = [kind for kind in kinds if failures[kind] < MAX_FAILURES]
            if not awake:
                break
            kind = min(awake, key=lambda name: spent[name] / KINDS[name][1])
            command = again(level, seed, kind, cases[kind])
            file.seek(0)
            file.write(f"{command}\n")
            file.flush()
            try:
                counts += run_case(seed, kind, cases[kind])
            except Exception as error:
                failures[kind] += 1
                place = traceback.extract_tb(error.__traceback__)[-1]
                where = f"{Path(place.filename).name}:{place.lineno}"
                print(f"FAILED {kind}: {type(error).__name__}: {error} ({where})", flush=True)
                print(f"  again: {command}", flush=True)
            cases[kind] += 1
            now = time.monotonic()
            spent[kind] += now - begin
            begin = now
    notes.write_text(json.dumps(counts))
    return 1 if failures else 0


def _ends(command: list[str], level: str, seconds: float, **options) -> tuple[int | None, str]:
    """The exit status of a process given `seconds`, None if it hangs, and its output if `options`
    captures it."""
    environment = os.environ | {"OMP_WAIT_POLICY": "passive", "EMP_SIMD": level}
    try:
        done = subprocess.run(command, env=environment, timeout=seconds + HANGS, **options)
    except subprocess.TimeoutExpired as hanging:
        return None, (hanging.stdout or b"").decode()
    return done.returncode, (done.stdout or b"").decode()


def _end(code: int | None) -> str:
    return "hangs" if code is None else f"ended with {code}"


def watch(level: str, seconds: float, seed: int, kinds: list[str]) -> tuple[Counter[str], bool]:
    """`work` at one SIMD level in a separate process: its counts, and whether nothing failed."""
    command = [sys.executable, "-m", "tests.fuzz", "--seconds", str(seconds), "--seed", str(seed)]
    command += [word for kind in kinds for word in ("--kind", kind)]
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes"
        notes.touch()
        code, _ = _ends([*command, "--notes", str(notes)], level, seconds)
        told = notes.read_text()
    if code in (0, 1) and told.startswith("{"):
        return Counter(json.loads(told)), code == 0
    print(f"FAILED: the process {_end(code)}")
    print(f"  again: {told.partition(chr(10))[0] or command}", flush=True)
    return Counter(), False


def watch_native(program: Path, level: str, seconds: float, seed: int) -> tuple[Counter[str], bool]:
    """The same for tests/native/fuzz.cpp, whose last lines are its counts."""
    command = [str(program), str(seconds), str(seed)]
    code, told = _ends(command, level, seconds, stdout=subprocess.PIPE)
    if code == 0:
        lines = (line.partition(" ") for line in told.splitlines())
        return Counter({what: int(many) for many, _, what in lines}), True
    print(f"FAILED: {program} {_end(code)}\n{told}", flush=True)
    return Counter(), False
