"""Markdown tables made from the rows of the CPU benchmarks, and from nothing else."""

from collections.abc import Sequence
from typing import Any

Row = dict[str, Any]

BENCHMARKS = (
    *("pruning", "scoring", "selection", "gathering", "training", "linear", "contrastive"),
)
OPPONENTS = (
    *("torch.compile", "torch", "numpy"),
    *("topk + sort", "argpartition + sort"),
    "index_select",
    *("InfoBatch", "select", "RandomSampler"),
    *("matmul, score", "matmul", "torch dense"),
)


def cases(rows: Sequence[Row]) -> str:
    """A line for each case: its time, its rate and how many times as long each opponent takes."""
    names = [name for name in OPPONENTS if any(name in row["opponents"] for row in rows)]
    headings = ["case", "median ms (p20 – p80)", "GB/s", "share of read", *_times(names)]
    return markdown(headings, [[*_line(row), *_ratios(row, names)] for row in rows])


def goals(rows: Sequence[Row]) -> str:
    """A line for each value aimed at: required, stretch and measured."""
    lines = []
    for row in rows:
        for name, goal in row["goals"].items():
            stretch = "–" if goal["stretch"] is None else _goal(name, goal["stretch"])
            required, measured = (_goal(name, goal[key]) for key in ("required", "measured"))
            lines.append([row["case"], _meaning(name), required, stretch, measured, _verdict(goal)])
    return markdown(["case", "against", "required", "stretch", "measured", "reaches"], lines)


def readme(rows: Sequence[Row], folder: str) -> str:
    """The README's block: four tables, the plots and where the numbers come from."""
    groups = (
        ("pruning", ("torch.compile", "torch", "numpy")),
        ("selection", ("topk + sort", "argpartition + sort")),
        ("gathering", ("index_select", "numpy")),
        ("training", ("torch", "topk + sort", "InfoBatch", "select", "RandomSampler")),
        ("linear", ("matmul, score", "matmul")),
    )
    parts = []
    for benchmark, names in groups:
        found = [row for row in rows if row["benchmark"] == benchmark]
        names = [name for name in names if any(name in row["opponents"] for row in found)]
        headings = [benchmark, "ms", "GB/s", "share of read bandwidth", *_times(names)]
        lines = [
            [row["case"], _ms(row["seconds"]["median"]), *_rate(row), *_ratios(row, names)]
            for row in found
        ]
        parts.append(markdown(headings, lines))
    parts.append(memory(rows))
    parts.append(
        f"![Time to select against n]({folder}/cpu-selection.png)\n"
        f"![Cost against N·C]({folder}/cpu-growth.png)"
    )
    parts.append(origin(rows))
    return "\n\n".join(parts)


def memory(rows: Sequence[Row]) -> str:
    """A line for each case whose memory was measured: what it takes, and what its logits would."""
    found = [row for row in rows if row.get("peak_bytes") is not None]
    lines = [
        [row["case"], *(f"{row[key] / 2**20:.0f}" for key in ("peak_bytes", "logits_bytes"))]
        for row in found
    ]
    return markdown(["memory", "peak, MiB", "its logits, MiB"], lines)


def origin(rows: Sequence[Row]) -> str:
    """One line: machine, versions and commit, on which all rows must agree."""
    first = rows[0]
    for name in ("machine", "versions", "commit", "threads", "simd"):
        if any(row[name] != first[name] for row in rows):
            raise ValueError(f"origin: rows must come from one {name}, got several")
    machine = first["machine"]
    known = ", ".join(f"{name} {value}" for name, value in first["versions"].items() if value)
    reads = [row["read"]["gb_per_s"] for row in rows]
    commit, _, dirty = (first["commit"] or "unknown").partition("-")
    return (
        f"{machine['cpu']}, {machine['cpus']} cores, {machine['memory_gib']} GiB, "
        f"{first['threads']} threads, {first['simd']}; read bandwidth {min(reads):.0f} to "
        f"{max(reads):.0f} GB/s during the run; {known}; "
        f"commit {commit[:12]}{' with uncommitted changes' if dirty else ''}."
    )


def _line(row: Row) -> list[str]:
    seconds = row["seconds"]
    time = f"{_ms(seconds['median'])} ({_ms(seconds['p20'])} – {_ms(seconds['p80'])})"
    return [row["case"], time, f"{row['gb_per_s']:.1f}", f"{row['share']:.2f}"]


def _rate(row: Row) -> list[str]:
    """The bytes bound a loss; a step, and what an epoch begins with, have other limits."""
    counts = row["benchmark"] != "training" or row["case"].startswith("cross_entropy")
    return _line(row)[2:] if counts else ["–", "–"]


def _ratios(row: Row, names: Sequence[str]) -> list[str]:
    found = row["opponents"]
    return [f"{found[name]['ratio']:.2f}×" if name in found else "–" for name in names]


def _times(names: Sequence[str]) -> list[str]:
    return [f"× {name}" for name in names]


def _ms(seconds: float) -> str:
    """Three digits that count."""
    ms = 1e3 * seconds
    return f"{ms:.0f}" if ms >= 100 else f"{ms:#.3g}"


def _goal(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "share" else f"{value:.2f}×"


def _meaning(name: str) -> str:
    return {"share": "read bandwidth (share)", "floor": "the bytes' time (at most)"}.get(name, name)


def _verdict(goal: dict[str, float | None]) -> str:
    """Which of the two values the measured one reaches; floors are reached from above."""
    required, stretch, measured = (goal[key] for key in ("required", "stretch", "measured"))
    sign = -1 if stretch is not None and stretch < required else 1
    if stretch is not None and sign * measured >= sign * stretch:
        return "stretch"
    return "required" if sign * measured >= sign * required else "neither"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table whose columns stand right, but for the first."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *lines))
