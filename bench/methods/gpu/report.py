"""The table of the rows that `make evidence-gpu` wrote."""

import statistics
from collections.abc import Sequence
from typing import Any

from bench.methods.fair.report import ENDPOINTS, NOTHING
from bench.methods.fair.student import paired
from bench.methods.gpu import plan
from bench.tables import markdown


def table(rows: Sequence[dict[str, Any]], folder: str = "") -> str:
    """Of each study and way of choosing the test split's measures, and the mean difference to full
    data of the same seeds ± half of its 95 % t interval."""
    heads = ["study", "method", "seeds", "accuracy, %", "macro-F1, %", "s a run"]
    heads += ["accuracy − full", "macro-F1 − full"]
    lines = []
    for name, study in plan.STUDIES.items():
        runs = {
            choice: {
                row["seed"]: row
                for row in rows
                if (row["study"], row["method"], row["split"]) == (name, choice.name, "test")
            }
            for choice in study.choices
        }
        for choice, own in runs.items():
            if not own:
                continue
            line = [name, choice.name, str(len(own))]
            line += [_mean(own.values(), end, 1) for end in ENDPOINTS]
            line.append(_mean(own.values(), "seconds", 0))
            shared = sorted(set(own) & set(runs[plan.FULL]))
            for end in ENDPOINTS:
                gains = [own[seed][end] - runs[plan.FULL][seed][end] for seed in shared]
                known = choice != plan.FULL and len(gains) > 1
                line.append(str(paired(gains)) if known else NOTHING)
            lines.append(line)
    first = rows[0]
    commits = ", ".join(dict.fromkeys(row["commit"][:12] for row in rows))
    said = f"{first['device']}; torch {first['versions']['torch']}; commit {commits}."
    return f"{markdown(heads, lines)}\n\n{said}"


def _mean(rows: Any, name: str, digits: int) -> str:
    return f"{statistics.fmean(row[name] for row in rows):.{digits}f}"
