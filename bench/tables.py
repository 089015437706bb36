"""Markdown tables of the benchmarks' rows."""

from collections.abc import Sequence
from typing import Any

from bench import peers

Row = dict[str, Any]

BENCHMARKS = (
    *("pruning", "scoring", "tokens", "selection", "gathering", "training", "linear"),
    *("contrastive", "limits", "options"),
)
OPPONENTS = (
    *("torch.compile", "torch", "numpy"),
    *("TRL", "verl", "verl, chunked", "Liger cross-entropy", "QuACK cross-entropy"),
    *("topk + sort", "topk", "argpartition + sort", "CuPy argpartition + sort"),
    "index_select",
    *("InfoBatch", "Composer", "select", "RandomSampler"),
    *("matmul, score", "matmul", "torch linear_cross_entropy", "cut-cross-entropy"),
    *("torch dense", "torch dense, in place"),
)


def cases(rows: Sequence[Row]) -> str:
    """A line for each case: its time, its rate and each competitor's relative time."""
    names = _named(rows, OPPONENTS)
    headings = ["case", "median ms (p20 – p80)", "GB/s", "share of read", *_times(names)]
    table = markdown(headings, [[*_line(row), *_ratios(row, names)] for row in rows])
    return "\n\n".join([table, *_reasons(rows)])


def goals(rows: Sequence[Row]) -> str:
    """A line for each goal: required, stretch and measured values."""
    lines = []
    for row in rows:
        for name, goal in row["goals"].items():
            stretch = "–" if goal["stretch"] is None else _goal(name, goal["stretch"])
            required, measured = (_goal(name, goal[key]) for key in ("required", "measured"))
            lines.append([row["case"], _meaning(name), required, stretch, measured, _verdict(goal)])
    return markdown(["case", "against", "required", "stretch", "measured", "reaches"], lines)


def readme(rows: Sequence[Row], folder: str) -> str:
    """The page's block: the plots, one table per benchmark, and the origin of the numbers."""
    groups = (
        ("pruning", ("torch.compile", "torch", "numpy")),
        ("tokens", ("torch.compile", "torch", *peers.TOKENS)),
        ("selection", ("topk + sort", "topk", "argpartition + sort")),
        ("gathering", ("index_select", "numpy")),
        ("training", ("torch", "topk + sort", "InfoBatch", "Composer", "select", "RandomSampler")),
        ("linear", ("matmul, score", "matmul", "torch", *peers.LINEAR)),
        ("contrastive", ("torch dense", "torch dense, in place")),
    )
    parts = [
        f"![Time to select against n]({folder}/cpu-selection.png)\n"
        f"![How the cost grows]({folder}/cpu-growth.png)\n"
        f"![Roofline]({folder}/cpu-roofline.png)"
    ]
    for benchmark, names in groups:
        found = [row for row in rows if row["benchmark"] == benchmark and "growth" not in row]
        if not found:
            continue
        names = _named(found, names)
        headings = [benchmark, "ms", "GB/s", "share of read bandwidth", *_times(names)]
        lines = [
            [row["case"], _ms(row["seconds"]["median"]), *_rate(row), *_ratios(row, names)]
            for row in found
        ]
        parts += [markdown(headings, lines), *_reasons(found)]
        if benchmark == "tokens":
            parts.append(errors(found))
    parts += [memory(rows), origin(rows)]
    return "\n\n".join(parts)


def gpu(rows: Sequence[Row], folder: str) -> str:
    """The page's block for a GPU: one table per function, and the origin of the numbers."""
    parts = []
    for function in dict.fromkeys(_function(row) for row in rows):
        found = [row for row in rows if _function(row) == function]
        names = _named(found, OPPONENTS)
        headings = [function, "µs", "GB/s", "share of copy bandwidth", *_times(names)]
        lines = []
        for row in found:
            moves = "share" in row  # a call's own cost has no bytes
            rate = [f"{row['gb_per_s']:.0f}", f"{row['share']:.2f}"] if moves else ["–", "–"]
            time = _three(1e6 * row["seconds"]["median"])
            lines.append([row["case"], time, *rate, *_ratios(row, names)])
        parts += [markdown(headings, lines), *_reasons(found)]
    return "\n\n".join([*parts, gpu_origin(rows)])


_SHORT = {  # of the README: case, its name in the table, unit, and units per second
    "score_and_select 8192×32000 bfloat16": ("score and select 8192×32000", "ms", 1e3),
    "log-probability and entropy 2048×32000 bfloat16": ("log p and entropy 2048×32000", "ms", 1e3),
    "cross_entropy and gradient 8192×32000 bfloat16": ("loss and gradient 8192×32000", "ms", 1e3),
    "score_and_select C=128256 bfloat16": ("score and select 4186×128256", "µs", 1e6),
}
_SHORT_LINEAR = "score_linear 4096×1024×128256 bfloat16"
_SHORT_ERROR = "log-probability and entropy 2048×32000 bfloat16"
_SHORT_NAMES = ("torch.compile", "torch")


def short(rows: Sequence[Row], folder: str) -> str:
    """The README's lines for a CPU or a GPU: times and, if rows have them, the largest relative
    error of a loss near zero and the memory of a product's logits."""
    lines = []
    for row in rows:
        if row["case"] in _SHORT:
            name, unit, scale = _SHORT[row["case"]]
            ours = scale * row["seconds"]["median"]
            ratios = [row["opponents"].get(other, {}).get("ratio") for other in _SHORT_NAMES]
            times = ["–" if ratio is None else _three(ours * ratio) for ratio in ratios]
            lines.append([f"{name}, {unit}", _three(ours), *times])
    for row in rows:
        if row["case"] == _SHORT_ERROR:
            found = [row["errors"][name]["confident"][0] for name in ("emp_kernels", *_SHORT_NAMES)]
            lines.append(
                ["relative error of a loss near zero", *(f"{value:.0e}" for value in found)]
            )
        if row["case"] == _SHORT_LINEAR:
            peak, logits = (f"{row[key] / 2**20:.0f}" for key in ("peak_bytes", "logits_bytes"))
            lines.append(
                ["memory for 4096×128256 logits, MiB", peak, "–", f"{logits} (the logits)"]
            )
    device = rows[0].get("device") or f"{rows[0]['machine']['cpu']}, {rows[0]['threads']} threads"
    commit = rows[0]["commit"][:12]
    table = markdown([f"{device}, bfloat16", "emp_kernels", *_SHORT_NAMES], lines)
    return f"{table}\n\nCommit {commit}, torch {rows[0]['versions']['torch']}."


def memory(rows: Sequence[Row]) -> str:
    """A line for each case whose memory was measured: its peak, and the size of the logits or
    similarities that it does not materialise."""
    found = [row for row in rows if row.get("peak_bytes") is not None]
    lines = [
        [row["case"], *(f"{row[key] / 2**20:.0f}" for key in ("peak_bytes", "logits_bytes"))]
        for row in found
    ]
    return markdown(["memory", "peak, MiB", "what it does not hold, MiB"], lines)


def errors(rows: Sequence[Row]) -> str:
    """A line for each implementation of loss and entropy: largest relative errors by dtype."""
    found = [row for row in rows if "errors" in row]
    dtypes = list(dict.fromkeys(row["dtype"] for row in found))
    columns = [(dtype, kind) for dtype in dtypes for kind in ("plain", "confident")]
    shown = {"plain": "", "confident": ", confident rows"}
    headings = ["largest relative error of loss / entropy"]
    headings += [f"{dtype}{shown[kind]}" for dtype, kind in columns]
    lines = []
    for name in dict.fromkeys(name for row in found for name in row["errors"]):
        line = [name]
        for dtype, kind in columns:
            each = [r["errors"][name][kind] for r in found if r["dtype"] == dtype]
            line.append(" / ".join(f"{max(values):.0e}" for values in zip(*each, strict=True)))
        lines.append(line)
    return markdown(headings, lines)


def origin(rows: Sequence[Row]) -> str:
    """One line with machine, versions and commit, which all rows must share."""
    first = _agreed(rows, "machine", "versions", "commit", "threads", "simd")
    machine = first["machine"]
    reads = [row["read"]["gb_per_s"] for row in rows]
    return (
        f"{machine['cpu']}, {machine['cpus']} cores, {machine['memory_gib']} GiB, "
        f"{first['threads']} threads, {first['simd']}; read bandwidth {min(reads):.0f} to "
        f"{max(reads):.0f} GB/s during the run; {_software(rows)}."
    )


def gpu_origin(rows: Sequence[Row]) -> str:
    """One line with device, copy bandwidth, versions and commit, which all rows must share."""
    first = _agreed(rows, "device", "machine", "versions", "commit")
    copies = {f"copies at {row['copy_gb_per_s']:.0f} GB/s" for row in rows if "share" in row}
    return "; ".join([first["device"], *copies, f"{_software(rows)}."])


def _agreed(rows: Sequence[Row], *fields: str) -> Row:
    """The first row, after checking that all rows agree in `fields`."""
    for name in fields:
        if any(row[name] != rows[0][name] for row in rows):
            raise ValueError(f"origin: rows must come from one {name}, got several")
    return rows[0]


def _software(rows: Sequence[Row]) -> str:
    """Versions, including those of competitors, and the commit."""
    versions = {name: value for name, value in rows[0]["versions"].items() if value}
    for row in rows:
        versions |= row.get("peer_versions", {})
    commit, _, dirty = (rows[0]["commit"] or "unknown").partition("-")
    listed = ", ".join(f"{name} {value}" for name, value in versions.items())
    return f"{listed}; commit {commit[:12]}{' with uncommitted changes' if dirty else ''}"


def _function(row: Row) -> str:
    """The function that a GPU row measures: the first word of its case."""
    return row["case"].partition(" ")[0]


def _line(row: Row) -> list[str]:
    seconds = row["seconds"]
    time = f"{_ms(seconds['median'])} ({_ms(seconds['p20'])} – {_ms(seconds['p80'])})"
    return [row["case"], time, f"{row['gb_per_s']:.1f}", f"{row['share']:.2f}"]


def _rate(row: Row) -> list[str]:
    """GB/s and share of the read bandwidth; of training cases only for losses, which are
    memory-bound."""
    memory_bound = row["benchmark"] != "training" or row["case"].startswith("cross_entropy")
    return _line(row)[2:] if memory_bound else ["–", "–"]


def _ratios(row: Row, names: Sequence[str]) -> list[str]:
    """A cell per competitor: its ratio, or whether it could not be measured."""
    found, missing = row["opponents"], row.get("not_measured", {})
    absent = {name: "not measured" if name in missing else "–" for name in names}
    return [f"{found[n]['ratio']:.2f}×" if n in found else absent[n] for n in names]


def _named(rows: Sequence[Row], names: Sequence[str]) -> list[str]:
    """Those of `names` that some row has measured or tried to measure."""
    tried = {name for row in rows for name in (*row["opponents"], *row.get("not_measured", ()))}
    return [name for name in names if name in tried]


def _reasons(rows: Sequence[Row]) -> list[str]:
    """A paragraph that says why competitors were not measured; empty if all were."""
    reasons = {name: why for row in rows for name, why in row.get("not_measured", {}).items()}
    listed = "; ".join(f"{name}: {why}" for name, why in reasons.items())
    return [f"Not measured: {listed}."] if listed else []


def _times(names: Sequence[str]) -> list[str]:
    return [f"× {name}" for name in names]


def _ms(seconds: float) -> str:
    return _three(1e3 * seconds)


def _three(value: float) -> str:
    """Three significant digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:#.3g}"


def _goal(name: str, value: float) -> str:
    return f"{value:.2f}" if name == "share" else f"{value:.2f}×"


def _meaning(name: str) -> str:
    return {"share": "read bandwidth (share)", "floor": "the bytes' time (at most)"}.get(name, name)


def _verdict(goal: dict[str, float | None]) -> str:
    """Which of the two goals the measured value reaches. Lower is better if the stretch value is
    below the required one."""
    required, stretch, measured = (goal[key] for key in ("required", "stretch", "measured"))
    sign = -1 if stretch is not None and stretch < required else 1
    if stretch is not None and sign * measured >= sign * stretch:
        return "stretch"
    return "required" if sign * measured >= sign * required else "neither"


def markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """A table with right-aligned columns, except the first."""
    marks = ["---", *["---:"] * (len(headings) - 1)]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (headings, marks, *lines))
