"""The loss of a training batch in the Hugging Face Trainer, and the scores from the same logits.

It replaces the Trainer's `compute_loss_func` while a batch is trained, so that everything else
around the loss is done by the Trainer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..keep import kept_count
from ..loss import cross_entropy
from ..results import Scores, Selection
from ..selection import select
from ..state import EMPState
from ..tokens import sequence_means
from .trainer_logits import IGNORED, Logits, OutputHead, Product
from .trainer_model import balance_of, logits_of, shifts_labels


def shifted(labels: torch.Tensor) -> torch.Tensor:
    """The label that each position predicts: (B, T), with the last position ignored."""
    end = torch.full_like(labels[..., :1], IGNORED)
    return torch.cat([labels[..., 1:], end], -1)


class BatchLoss:
    """A `compute_loss_func`, called once with a batch's outputs and labels.

    The loss is the mean cross-entropy over the labels other than -100, as in the stock loss; or the
    sum divided by `num_items_in_batch`, the number of labels in all accumulated batches, if the
    stock loss does so. With `keep_tokens` it is the mean over that share of the batch's tokens with
    the highest scores; under accumulation these means are weighted by the batches' numbers of
    counted tokens.

    The state stores the score of each sample: for (B, T, C) logits, the mean over the tokens that
    count.

    Args:
        state: of the training set. ids: (B,) int64 of the batch.
        lengths: of the samples, if they are packed into one row (1, T).
        model: the transformers model, unwrapped.
        causal: whether position t predicts label t + 1; None asks the model.
        targets: labels (B, T) that are already shifted, or None.
        keep_tokens: share of the batch's tokens to train on, or None.
        smoothing: of the labels. own: the user's loss, used instead.
        head: entered around the model's forward pass if no logits are to be computed.

    Attributes:
        divides: whether the stock loss is divided by `num_items_in_batch`.
        called: whether it was called.
    """

    def __init__(
        self,
        state: EMPState,
        ids: torch.Tensor,
        lengths: list[int] | None,
        model: nn.Module,
        *,
        causal: bool | None,
        targets: torch.Tensor | None,
        keep_tokens: float | None,
        smoothing: float,
        own: Callable[..., torch.Tensor] | None,
        head: OutputHead | None,
    ) -> None:
        self.state, self.ids, self.lengths, self.model = state, ids, lengths, model
        self.causal, self.targets, self.head = causal, targets, head
        self.keep_tokens, self.smoothing, self.own = keep_tokens, smoothing, own
        self.divides = True
        self.called = False

    def __call__(
        self, outputs: Any, labels: torch.Tensor, num_items_in_batch: Any = None
    ) -> torch.Tensor:
        self.called = True
        found, wanted = self._found(outputs, labels)
        scores = found.score(wanted, self.state.beta)
        self._remember(scores)
        if self.own is not None:
            return self.own(outputs, labels, num_items_in_batch=num_items_in_batch)
        counted = (wanted != IGNORED).sum()
        rows = self._rows(scores)
        losses = found.losses(wanted, rows, self.smoothing)
        items = num_items_in_batch if self.divides and num_items_in_batch is not None else counted
        if isinstance(items, torch.Tensor):
            items = items.to(losses.device)
        loss = losses.sum() / items
        if self.keep_tokens is not None:  # each trained token represents counted / kept tokens
            loss = loss * (counted / max(len(rows.indices), 1))
        return loss + balance_of(outputs, self.model)

    def samples(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """The samples' scores (B,), written into the state, without a loss."""
        found, wanted = self._found(outputs, labels)
        return self._remember(found.score(wanted, self.state.beta)).score

    def _found(self, outputs: Any, labels: torch.Tensor) -> tuple[Logits | Product, torch.Tensor]:
        """The logits, or the factors of their product, and the label of each row."""
        logits = logits_of(outputs)
        _check_problem(logits, labels)
        wanted = self._targets(labels, logits.device)
        return (Logits(logits) if self.head is None else self.head.product(logits)), wanted

    def of_one_batch(self, outputs: Any, labels: torch.Tensor) -> torch.Tensor:
        """The stock loss of these outputs alone."""
        logits = logits_of(outputs)
        _check_problem(logits, labels)
        wanted = self._targets(labels, logits.device)
        return cross_entropy(logits, wanted, ignore_index=IGNORED) + balance_of(outputs, self.model)

    def _targets(self, labels: torch.Tensor, device: torch.device) -> torch.Tensor:
        """The label of each row of logits (B, C) or (B, T, C)."""
        if labels.dim() == 1:
            return labels.to(device)
        if self.targets is not None:
            return self.targets.to(device)
        causal = shifts_labels(self.model) if self.causal is None else self.causal
        if causal is None:
            raise ValueError(
                "EMPTrainerMixin: causal must be True or False for a model that is not of "
                f"transformers and has labels of shape {tuple(labels.shape)}, got None"
            )
        return (shifted(labels) if causal else labels).to(device)

    def _remember(self, scores: Scores) -> Scores:
        """Write the samples' scores (B,) into the state and return them."""
        if scores.score.dim() > 1:
            if self.lengths is not None:  # (1, T) to (B, longest)
                scores = Scores(*(self._apart(field, name) for name, field in _named(scores)))
            scores = sequence_means(scores)
        if self.state.device != scores.score.device:
            self.state.to(scores.score.device)
        self.state.update(self.ids, scores)
        return scores

    def _apart(self, field: torch.Tensor, name: str) -> torch.Tensor:
        assert self.lengths is not None
        samples = field[0, : sum(self.lengths)].split(self.lengths)
        padding = -torch.inf if name == "score" else 0.0
        return nn.utils.rnn.pad_sequence(list(samples), True, padding)

    def _rows(self, scores: Scores) -> Selection:
        """The rows to train on, with their losses already computed."""
        flat = scores.score.flatten()
        if self.keep_tokens is None:
            kept = torch.arange(len(flat), device=flat.device)
        else:
            number = int((flat > -torch.inf).sum())
            kept = select(flat, kept_count(self.keep_tokens, number)) if number else flat[:0].long()
        nothing = torch.zeros((), device=flat.device)
        return Selection(kept, scores, nothing, nothing.int())


def _named(scores: Scores) -> list[tuple[str, torch.Tensor]]:
    return list(zip(Scores._fields, scores, strict=True))


def _check_problem(logits: torch.Tensor, labels: torch.Tensor) -> None:
    """labels (B,) or (B, T) are classes of logits (..., C)."""
    if labels.is_floating_point() or logits.shape[-1] == 1:
        raise ValueError(
            "EMPTrainerMixin: labels must be classes, of which there are two or more (regression "
            f"and multi-label problems have no EMP score), got {labels.dtype} labels and logits of "
            f"shape {tuple(logits.shape)}"
        )
    if logits.dim() != labels.dim() + 1:
        raise ValueError(
            "EMPTrainerMixin: labels must have the leading shape of the logits "
            f"{tuple(logits.shape)}, got {tuple(labels.shape)}"
        )
