"""Result types of the public functions, shared by every backend."""

from typing import Any, NamedTuple

import torch


def in_brief(result: Any, among: Any, **fields: Any) -> str:
    """A result's repr without the elements of its tensors. The first field is of the rows chosen,
    `among` how many. Fields may also be anything that tree_map has put there."""
    found = []
    for i, (name, value) in enumerate(fields.items()):
        shown = repr(value)
        if isinstance(value, torch.Tensor) and value.dim():
            shape: Any = tuple(value.shape)
            if i == 0 and isinstance(among, torch.Tensor):
                rows = len(among) if among.dim() == 1 else tuple(among.shape)
                shape = f"{len(value)} of {rows}"
            shown = f"<{shape}, {str(value.dtype).removeprefix('torch.')}, {value.device}>"
        found.append(f"{name}={shown}")
    return f"{type(result).__name__}({', '.join(found)})"


class Scores(NamedTuple):
    """Per-row result of :func:`emp_kernels.score`.

    Values are float32 nats (float64 if the reference backend scored float64 logits); each
    field has the shape of the labels.

    Attributes:
        score: ``loss + beta * entropy``; NaN for an invalid row, -inf for an ignored one.
        loss: cross-entropy ``lse - z_y`` (>= 0).
        entropy: entropy of ``softmax(z)``, in [0, log C].
        lse: ``log(sum(exp(z)))``.
    """

    score: torch.Tensor
    loss: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor


class LogProbs(NamedTuple):
    """Per-row result of :func:`emp_kernels.log_prob_and_entropy`, float32 nats.

    Attributes:
        log_prob: log-probability of the label (<= 0).
        entropy: entropy of the row's distribution.
        lse: ``log(sum(exp(logits)))`` of the adjusted logits.
    """

    log_prob: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor


class SampleStatistics(NamedTuple):
    """Per-row result of :func:`emp_kernels.sample_statistics`; each field has the labels' shape.

    Attributes:
        loss: cross-entropy in nats.
        entropy: predictive entropy in nats.
        lse: ``log(sum(exp(z)))``.
        confidence: probability of the label, ``p_y``.
        el2n: ``||softmax(z) - onehot(y)||_2`` (Paul et al., arXiv 2107.07075).
        margin: ``z_y - max of the others``, +inf when C = 1 (Pleiss et al., arXiv 2001.10528).
        correct: bool, True where the label is the lowest index of the maximum.
        prediction: int64, the lowest index of the maximum; 0 for an ignored row, and for one
            without a softmax (NaN or +inf among its logits, or no finite one).
    """

    loss: torch.Tensor
    entropy: torch.Tensor
    lse: torch.Tensor
    confidence: torch.Tensor
    el2n: torch.Tensor
    margin: torch.Tensor
    correct: torch.Tensor
    prediction: torch.Tensor


class Selection(NamedTuple):
    """Result of :func:`emp_kernels.score_and_select`.

    Attributes:
        indices: (K,) int64 positions of the kept rows, ascending.
        scores: the :class:`Scores` of all N rows.
        threshold: () the K-th highest score, +inf if nothing is selected.
        num_invalid: () int32 count of invalid rows.
    """

    indices: torch.Tensor
    scores: Scores
    threshold: torch.Tensor
    num_invalid: torch.Tensor

    def __repr__(self) -> str:
        fields = self._asdict()
        if isinstance(self.scores, Scores):
            fields["scores"] = self.scores.score
        return in_brief(self, fields["scores"], **fields)


# Allows torch.load to read them with its default weights_only=True.
torch.serialization.add_safe_globals([Scores, SampleStatistics, Selection])
