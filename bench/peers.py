"""What other packages offer for the same work, each imported when it is tried.

`make peers` installs them, in the versions of bench/peers.txt. What does not run on this machine is
not measured, and its rows say why.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from emp_kernels.cli import provenance

Call = Callable[[], Any]
Maker = Callable[..., Call]  # takes a case's tensors


def trl(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    from trl.trainer.utils import entropy_from_logits, selective_log_softmax

    return lambda: (-selective_log_softmax(logits, labels), entropy_from_logits(logits))


def verl(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    return lambda: (-logprobs_from_logits(logits, labels), entropy_from_logits(logits))


def verl_chunked(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    """What verl takes to save memory: row by row, and entropies of float32 chunks."""
    from verl.utils.torch_functional import (
        entropy_from_logits_with_chunking,
        logprobs_from_logits_v2,
    )

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        return -logprobs_from_logits_v2(logits, labels), entropy_from_logits_with_chunking(logits)

    return both


def liger(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    """Less than ours: the losses alone."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda: (liger_cross_entropy(logits, labels, reduction="none"),)


def cut_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Less than ours: the mean loss alone. Of its two implementations the one that needs no GPU."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda: linear_cross_entropy(hidden, weight, labels, impl="torch_compile")


def liger_linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Less than ours: the mean loss alone."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda: liger_fused_linear_cross_entropy(hidden, weight, labels)


# Of logits (N, C) and labels (N,): losses and entropies (N,).
TOKENS: dict[str, Maker] = {
    "TRL": trl,
    "verl": verl,
    "verl, chunked": verl_chunked,
    "Liger cross-entropy": liger,
}
# Of hidden (N, D), weight (C, D) and labels (N,): the mean loss.
LINEAR: dict[str, Maker] = {
    "cut-cross-entropy": cut_cross_entropy,
    "Liger cross-entropy": liger_linear,
}
PACKAGES = ("trl", "verl", "liger-kernel", "cut-cross-entropy")


def made(makers: Mapping[str, Maker], *inputs: Any) -> tuple[dict[str, Call], dict[str, str]]:
    """The peers that run on these inputs, each called once, and why the others do not."""
    tried = {name: _tried(maker, *inputs) for name, maker in makers.items()}
    calls = {name: call for name, (call, _) in tried.items() if call is not None}
    return calls, {name: reason for name, (call, reason) in tried.items() if call is None}


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Of the peers that are installed."""
    found = {name: provenance.package_version(name) for name in packages}
    return {name: version for name, version in found.items() if version}


def _tried(maker: Maker, *inputs: Any) -> tuple[Call | None, str]:
    """The peer's call after it ran once, or why it does not. Its failure is its own."""
    try:
        call = maker(*inputs)
        with torch.no_grad():
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:
        line = (str(error).splitlines() or [""])[0].partition(" (")[0][:80]  # no names of files
        if isinstance(error, ImportError):
            return None, line or "not installed"
        return None, f"{type(error).__name__}: {line}"
    return call, ""
