"""How the Hugging Face Trainer's model uses labels."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn
from transformers import Trainer
from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES


def unwrapped(model: nn.Module) -> nn.Module:
    """The transformers model inside PEFT's, or the model itself."""
    inner = getattr(model, "get_base_model", None)
    return inner() if inner is not None else model


def shifts_labels(model: nn.Module) -> bool | None:
    """Whether position t of the model's logits predicts label t + 1, as causal language models do;
    None if unknown."""
    if not hasattr(model, "loss_type"):  # not a transformers model
        return None
    config = getattr(model, "config", None)
    named = type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    causal = named or LOSS_MAPPING.get(str(model.loss_type)) is ForCausalLMLoss
    return causal and not getattr(config, "is_encoder_decoder", False)


def takes(model: nn.Module, name: str) -> bool:
    """Whether the unwrapped model's forward has a parameter of this name."""
    return name in inspect.signature(model.forward).parameters


def logits_of(outputs: Any) -> torch.Tensor:
    """The logits (B, C) or (B, T, C) in a model's output."""
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif isinstance(outputs, tuple | list):  # a loss may come first
        found = next((x for x in outputs if isinstance(x, torch.Tensor) and x.dim() > 1), None)
    if not isinstance(found, torch.Tensor):
        raise ValueError(
            f"EMPTrainerMixin: the model must return logits, got {type(outputs).__name__} without"
        )
    return found


def balance_of(outputs: Any, model: nn.Module) -> torch.Tensor | float:
    """The auxiliary loss of a mixture of experts, if it returns one."""
    added = outputs.get("aux_loss") if isinstance(outputs, Mapping) else None
    if added is None:
        return 0.0
    config: Any = model.config
    config = config.get_text_config()
    return getattr(model, "router_aux_loss_coef", config.router_aux_loss_coef) * added


def divides_by_items(
    model: nn.Module,
    inputs: Mapping[str, Any],
    expected: Callable[[Any], torch.Tensor],
    trainer: Trainer,
) -> bool | None:
    """Whether the loss that `model` computes from labels in `inputs` is a sum divided by
    `num_items_in_batch`; None if all labels of this batch are ignored, which cannot tell. The
    Trainer passes that number to every model whose forward takes arbitrary keywords and assumes
    that the loss is divided by it; some models ignore it and return the batch mean.

    It takes two forward passes, without dropout.

    Raises:
        ValueError: the model's loss of one batch is not the `expected` one of the same outputs.
    """
    device = trainer.args.device
    devices = [device] if device.type == "cuda" else []
    with torch.no_grad(), torch.random.fork_rng(devices):
        model.eval()
        try:
            outputs = model(**inputs)
            own = _loss_of(outputs)
            if own is None:
                return True
            want = expected(outputs).to(own.device)
            if not torch.allclose(own.float(), want, rtol=2e-2, atol=2e-2, equal_nan=True):
                raise ValueError(
                    "EMPTrainerMixin: the model's loss must be the mean cross-entropy of its "
                    f"logits and labels, {float(want):.4f}, got {float(own):.4f}; for another, "
                    "pass it as compute_loss_func"
                )
            if not trainer.model_accepts_loss_kwargs:
                return True
            many = torch.full((), 1 << 40, device=device)
            items = _loss_of(model(**inputs, num_items_in_batch=many))
        finally:
            model.train()
    if not own > 0:
        return None
    return items is None or bool(own - items > 0.01 * own)


def _loss_of(outputs: Any) -> torch.Tensor | None:
    found = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    if isinstance(found, tuple | list):
        found = found[0]
    scalar = isinstance(found, torch.Tensor) and found.dim() == 0
    return found if scalar else None
