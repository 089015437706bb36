"""Other packages' functions for the same work, each imported on first use.

`make peers` installs them, in the versions of bench/peers.txt. Packages that do not run on this
machine are not measured; rows give the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from emp_kernels.experiments import provenance

Call = Callable[[], Any]
Maker = Callable[..., Call]  # takes a case's tensors


def trl(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    """TRL's single function for both, which on CUDA reads the logits once and returns float32."""
    from trl.trainer.utils import selective_log_softmax_and_entropy

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        log_prob, entropy = selective_log_softmax_and_entropy(logits, labels)
        return -log_prob, entropy

    return both


def verl(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    from verl.utils.torch_functional import entropy_from_logits, logprobs_from_logits

    return lambda: (-logprobs_from_logits(logits, labels), entropy_from_logits(logits))


def verl_chunked(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    """verl's memory-saving variants: row by row, and entropies in float32 chunks."""
    from verl.utils.torch_functional import (
        entropy_from_logits_with_chunking,
        logprobs_from_logits_v2,
    )

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        return -logprobs_from_logits_v2(logits, labels), entropy_from_logits_with_chunking(logits)

    return both


def liger(logits: torch.Tensor, labels: torch.Tensor) -> Call:
    """Computes less than ours: losses only."""
    from liger_kernel.transformers.functional import liger_cross_entropy

    return lambda: (liger_cross_entropy(logits, labels, reduction="none"),)


def cut_cross_entropy(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Computes less than ours: the mean loss only. Its implementation that needs no GPU."""
    from cut_cross_entropy import linear_cross_entropy

    return lambda: linear_cross_entropy(hidden, weight, labels, impl="torch_compile")


def torch_linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Computes less than ours: the mean loss only, in its memory-saving mode (chunks)."""
    from torch.nn import LinearCrossEntropyOptions

    options = LinearCrossEntropyOptions()
    linear = torch.nn.functional.linear_cross_entropy
    return lambda: linear(hidden, weight, labels, options=options)


def liger_linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Computes less than ours: the mean loss only."""
    from liger_kernel.transformers.functional import liger_fused_linear_cross_entropy

    return lambda: liger_fused_linear_cross_entropy(hidden, weight, labels)


def trl_linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Log-probabilities and entropies of every token, in chunks."""
    from trl.kernels import ChunkedLogProbFunction
    from trl.trainer.utils import _CHUNKED_LOGPROB_CHUNK_SIZE as chunk

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        options = 1.0, chunk, None, 1.0, ("entropy",)
        log_prob, entropy, *_ = ChunkedLogProbFunction.apply(hidden, weight, None, labels, *options)
        return -log_prob, entropy

    return both


def liger_scaled(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Losses and entropies of every token; on a CPU computed in chunks by torch operations."""
    from liger_kernel.ops.fused_linear_scaled_cross_entropy import (
        LigerFusedLinearScaledCrossEntropyFunction as Function,
    )

    return lambda: Function.apply(hidden, weight, labels, 1.0, -100, 1, True)[:2]


def verl_linear(hidden: torch.Tensor, weight: torch.Tensor, labels: torch.Tensor) -> Call:
    """Log-probabilities and entropies of every token; needs Triton."""
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    def both() -> tuple[torch.Tensor, torch.Tensor]:
        log_prob, entropy = linear_cross_entropy(hidden, weight, labels, 1.0, "none")
        return -log_prob, entropy

    return both


# Of logits (N, C) and labels (N,): losses and entropies (N,).
TOKENS: dict[str, Maker] = {
    "TRL": trl,
    "verl": verl,
    "verl, chunked": verl_chunked,
    "Liger cross-entropy": liger,
}
# Of hidden (N, D), weight (C, D) and labels (N,): the mean loss.
LINEAR: dict[str, Maker] = {
    "torch linear_cross_entropy": torch_linear,
    "cut-cross-entropy": cut_cross_entropy,
    "Liger cross-entropy": liger_linear,
}
# The same: losses and entropies (N,).
LINEAR_TOKENS: dict[str, Maker] = {
    "TRL": trl_linear,
    "verl": verl_linear,
    "Liger cross-entropy": liger_scaled,
}
PACKAGES = ("trl", "verl", "liger-kernel", "cut-cross-entropy")


def made(makers: Mapping[str, Maker], *inputs: Any) -> tuple[dict[str, Call], dict[str, str]]:
    """Calls of the peers that run on these inputs, each run once; and why the others do not run."""
    tried = {name: _tried(maker, *inputs) for name, maker in makers.items()}
    calls = {name: call for name, (call, _) in tried.items() if call is not None}
    return calls, {name: reason for name, (call, reason) in tried.items() if call is None}


def versions(packages: Iterable[str] = PACKAGES) -> dict[str, str]:
    """Versions of the peers that are installed."""
    found = {name: provenance.package_version(name) for name in packages}
    return {name: version for name, version in found.items() if version}


def _tried(maker: Maker, *inputs: Any) -> tuple[Call | None, str]:
    """The peer's call, run once, or None and the reason why it fails."""
    try:
        call = maker(*inputs)
        with torch.no_grad():
            call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    except Exception as error:
        line = (str(error).splitlines() or [""])[0].partition(" (")[0][:80]  # no file names
        if isinstance(error, ImportError):
            return None, line or "not installed"
        return None, f"{type(error).__name__}: {line}"
    return call, ""
