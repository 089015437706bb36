"""The baselines on a GPU: the peers of bench/peers.py, peers that need a GPU, and torch.

Only installed packages are run. Liger's and QuACK's cross-entropy compute less than ours: neither
entropy nor selection.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from bench import harness, peers
from bench.peers import Call, Maker


def torch_lines(logits, labels, count) -> Call:
    return lambda: harness.torch_lines(logits, labels, count)


def torch_compile(logits, labels, count) -> Call:
    compiled = harness.compiled(harness.torch_lines)
    return lambda: compiled(logits, labels, count)


def liger(logits, labels, count) -> Call:
    return peers.liger(logits, labels)


def selecting(scoring: Maker) -> Maker:
    """A peer's scoring followed by torch's selection."""

    def maker(logits, labels, count) -> Call:
        scored = scoring(logits, labels)

        def both():
            loss, entropy = scored()
            return harness.select_lines(loss + entropy, count)

        return both

    return maker


def quack(logits, labels, count) -> Call:
    from quack.cross_entropy import cross_entropy

    return lambda: cross_entropy(logits, labels, reduction="none")


SCORING: dict[str, Maker] = {
    "torch": torch_lines,
    "torch.compile": torch_compile,
    "Liger cross-entropy": liger,
    "TRL": selecting(peers.trl),
    "verl": selecting(peers.verl),
    "QuACK cross-entropy": quack,
}
AT_ONCE = ("torch",)  # runs without importing or compiling anything
PACKAGES = (*peers.PACKAGES, "quack-kernels")


def made(
    names: Sequence[str], logits: torch.Tensor, labels: torch.Tensor, count: int
) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls of the peers that run on this batch, each run once; and why the others do not run."""
    return peers.made({name: SCORING[name] for name in names}, logits, labels, count)


def versions() -> dict[str, str]:
    """Versions of the peers that are installed."""
    return peers.versions(PACKAGES)


def select_peers(scores: torch.Tensor, count: int) -> tuple[dict[str, Call], dict[str, str]]:
    """torch.topk with a sort of its indices, and CuPy's argpartition if CuPy is installed."""
    calls: dict[str, Call] = {"topk + sort": lambda: harness.select_lines(scores, count)}
    try:
        import cupy
    except ImportError:
        return calls, {"CuPy argpartition + sort": "not installed"}
    negated = cupy.from_dlpack(-scores)

    def partition():
        return cupy.sort(cupy.argpartition(negated, count - 1)[:count])

    calls["CuPy argpartition + sort"] = partition
    return calls, {}
