"""Write the README's result tables anew from the committed rows: python bench/readme_tables.py

A table stands between ``<!-- table NAME FILE -->`` and ``<!-- end -->``: NAME is one of `TABLES`,
FILE the rows (JSON lines) under the repository. tests/test_readme.py fails where README and rows
disagree.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from emp_kernels.cli import summary

ROOT = Path(__file__).resolve().parents[1]
TABLES: dict[str, Callable[[list[dict[str, Any]]], str]] = {"demo": summary.markdown}
BLOCK = re.compile(r"(<!-- table (\S+) (\S+) -->\n).*?(<!-- end -->)", re.S)


def rewritten(text: str) -> str:
    """`text` with the inside of every table block made from its rows."""

    def fill(block: re.Match[str]) -> str:
        start, name, file, end = block.groups()
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        return f"{start}{TABLES[name]([json.loads(line) for line in lines])}\n{end}"

    return BLOCK.sub(fill, text)


if __name__ == "__main__":
    readme = ROOT / "README.md"
    readme.write_text(rewritten(readme.read_text(encoding="utf-8")), encoding="utf-8")
