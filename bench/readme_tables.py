"""Regenerate the pages' result tables from the committed rows: python -m bench.readme_tables

A table is between ``<!-- table NAME FILE -->`` and ``<!-- end -->``: NAME is one of `TABLES`, FILE
the path of the rows (JSON lines) in the repository, or a pattern of several. Tests fail if a page
and its rows disagree. With a folder as argument, tables whose rows exist there are first pointed at
it.
"""

import functools
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench import distributed_model, tables
from bench.methods import report, time_to_accuracy
from bench.methods.fair import plan, saving, timing
from bench.methods.fair import report as fair
from bench.methods.gpu import report as evidence_gpu
from emp_kernels.experiments import summary

ROOT = Path(__file__).resolve().parents[1]
TABLES: dict[str, Callable[[list[dict[str, Any]], str], str]] = {
    "distributed": distributed_model.table,
    "demo": lambda rows, folder: summary.markdown(rows),
    "cpu": tables.readme,
    "gpu": tables.gpu,
    "short": tables.short,
    "methods": report.accuracy,
    "methods-full": report.against_full,
    "methods-gains": report.clear_gains,
    "methods-why": report.why,
    "methods-regimes": report.regimes,
    "fair": fair.table,
    "fair-short": fair.short,
    "fair-images": functools.partial(fair.table, family=plan.IMAGES),
    "fair-unbiased": functools.partial(fair.table, family=plan.UNBIASED),
    "fair-parts": functools.partial(fair.table, family=plan.PARTS),
    "fair-proxy": functools.partial(fair.table, family=plan.PROXY),
    "fair-time": timing.table,
    "fair-saving": saving.table,
    "evidence-gpu": evidence_gpu.table,
    "methods-time": time_to_accuracy.table,
}
PAGES = ("README.md", "docs/benchmarks.md", "docs/findings.md", "docs/findings_details.md")
BLOCK = re.compile(r"(<!-- table (\S+) (\S+) -->\n).*?(<!-- end -->)", re.S)
MISSING = "Not measured."


def rewritten(text: str) -> str:
    """`text` with every table block regenerated from its rows, or `MISSING` without rows."""

    def fill(block: re.Match[str]) -> str:
        start, name, file, end = block.groups()
        rows = [
            json.loads(line)
            for found in sorted(ROOT.glob(file))
            for line in found.read_text(encoding="utf-8").splitlines()
        ]
        if not rows:
            return f"{start}{MISSING}\n{end}"
        folder = file.rpartition("/")[0]
        return f"{start}{TABLES[name](rows, f'../{folder}')}\n{end}"  # pictures are shown in docs/

    return BLOCK.sub(fill, text)


def pointed(text: str, folder: str) -> str:
    """`text` with each path of a result file changed to `folder`, if the file exists there."""

    def lead(path: re.Match[str]) -> str:
        return f"{folder}/{path[1]}" if any((ROOT / folder).glob(path[1])) else path[0]

    return re.sub(r"bench/results/[\w.-]+/([\w.*-]+\w)", lead, text)


if __name__ == "__main__":
    for page in PAGES:
        content = (ROOT / page).read_text(encoding="utf-8")
        for argument in sys.argv[1:]:
            content = pointed(content, argument.rstrip("/"))
        (ROOT / page).write_text(rewritten(content), encoding="utf-8")
