"""What others offer for the same work: each peer, made for one batch, or why it is not there.

Only what can be imported is run. Liger's and QuACK's cross-entropy compute less than ours: no
entropy and no selection.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from bench import harness

Call = Callable[[], Any]
Maker = Callable[[torch.Tensor, torch.Tensor, int], Call]


def torch_lines(logits, labels, count) -> Call:
    return lambda: harness.torch_lines(logits, labels, count)


def torch_compile(logits, labels, count) -> Call:
    compiled = harness.compiled(harness.torch_lines)
    return lambda: compiled(logits, labels, count)


def liger(logits, labels, count) -> Call:
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda: liger_cross_entropy(logits, labels)


def trl(logits, labels, count) -> Call:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    def both():
        loss, entropy = -selective_log_softmax(logits, labels), entropy_from_logits(logits)
        return harness.select_lines(loss + entropy, count)

    return both


def verl(logits, labels, count) -> Call:
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    def both():
        loss, entropy = -logprobs_from_logits(logits, labels), entropy_from_logits(logits)
        return harness.select_lines(loss + entropy, count)

    return both


def quack(logits, labels, count) -> Call:
    from quack.cross_entropy import cross_entropy

    return lambda: cross_entropy(logits, labels, reduction="none")


SCORING: dict[str, Maker] = {
    "torch": torch_lines,
    "torch.compile": torch_compile,
    "Liger cross-entropy": liger,
    "TRL": trl,
    "verl": verl,
    "QuACK cross-entropy": quack,
}


def made(
    names: list[str], logits: torch.Tensor, labels: torch.Tensor, count: int
) -> tuple[dict[str, Call], dict[str, str]]:
    """The peers that run on this batch, each called once, and why the others do not."""
    calls: dict[str, Call] = {}
    missing: dict[str, str] = {}
    for name in names:
        call, reason = _tried(SCORING[name], logits, labels, count)
        if call is None:
            missing[name] = reason
        else:
            calls[name] = call
    return calls, missing


def _tried(
    maker: Maker, logits: torch.Tensor, labels: torch.Tensor, count: int
) -> tuple[Call | None, str]:
    """The peer's call after it ran once, or why it does not. Its failure is its own."""
    try:
        call = maker(logits, labels, count)
        with torch.no_grad():
            call()
        torch.cuda.synchronize()
    except ImportError:
        return None, "not installed"
    except Exception as error:
        return None, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:80]}"
    return call, ""


def select_peers(scores: torch.Tensor, count: int) -> tuple[dict[str, Call], dict[str, str]]:
    """torch.topk with a sort, and CuPy's partition where it is installed."""
    calls: dict[str, Call] = {"torch.topk + sort": lambda: harness.select_lines(scores, count)}
    try:
        import cupy
    except ImportError:
        return calls, {"CuPy argpartition + sort": "not installed"}
    negated = cupy.from_dlpack(-scores)

    def partition():
        return cupy.sort(cupy.argpartition(negated, count - 1)[:count])

    calls["CuPy argpartition + sort"] = partition
    return calls, {}
