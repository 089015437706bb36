"""Options of a loss, checked once, in one place."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from .cautions import caution
from .terms import Adjustment, Targets
from .tracing import recording
from .validation import (
    BINARY,
    FLOAT_DTYPES,
    INTEGER_DTYPES,
    check_labels,
    check_real,
    check_same_device,
    check_strided,
    describe,
)


@dataclass(frozen=True)
class LossOptions:
    """The options of a cross-entropy besides logits and integer labels.

    Attributes:
        adjustment: of the logits.
        weight: (C,) float32 of the classes, or None.
        sample_weight: (N,) float32 of the rows, or None.
        label_smoothing, z_loss: floats.
        probabilities: (N, C) of unit inner stride, instead of integer labels, or None.
    """

    adjustment: Adjustment
    weight: torch.Tensor | None = None
    sample_weight: torch.Tensor | None = None
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    probabilities: torch.Tensor | None = None

    @property
    def reuses(self) -> bool:
        """Whether a row's loss and lse suffice to compute its loss with these options."""
        return self.probabilities is None and self.label_smoothing == 0.0

    def targets(self, classes: int) -> Targets | None:
        """The weights of the loss in addition to its label's log-probability, or instead of it."""
        smoothed = self.label_smoothing / max(1, classes)
        if self.probabilities is not None:
            return Targets(self.weight, self.probabilities, 1 - self.label_smoothing, smoothed)
        if self.label_smoothing == 0.0:
            return None
        return Targets(self.weight, None, 0.0, smoothed)


def all_defaults(
    temperature: float | torch.Tensor,
    softcap: float | None,
    weight: torch.Tensor | None = None,
    sample_weight: torch.Tensor | None = None,
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
) -> bool:
    """Whether all options have their default values: then none is checked, which would take a
    large part of a small batch's call."""
    return (
        softcap is None
        and weight is None
        and sample_weight is None
        and type(temperature) is float
        and temperature == 1.0
        and type(label_smoothing) is float
        and label_smoothing == 0.0
        and type(z_loss) is float
        and z_loss == 0.0
    )


def check_adjustment(
    function: str, temperature: float | torch.Tensor, softcap: float | None, labels: torch.Tensor
) -> Adjustment:
    """temperature: a positive number, or float32 of the shape of `labels` (...), flattened here."""
    if softcap is not None:
        softcap = _positive(function, "softcap", softcap)
    if not isinstance(temperature, torch.Tensor):
        return Adjustment(_positive(function, "temperature", temperature), softcap)
    if temperature.dtype is not torch.float32:
        raise TypeError(
            f"{function}: temperature must be a number or float32, got {temperature.dtype}"
        )
    _check_constant(function, "temperature", temperature, labels, "labels")
    if temperature.shape != labels.shape:
        raise ValueError(
            f"{function}: temperature must have the shape of labels {tuple(labels.shape)}, "
            f"got {tuple(temperature.shape)}"
        )
    if not recording():  # where operators check
        check_temperatures(function, temperature)
    temperature = temperature.detach().resolve_neg().reshape(-1).contiguous()
    return Adjustment(temperature, softcap)


def check_temperatures(function: str, temperature: float | torch.Tensor) -> None:
    """On the CPU per-row temperatures must be positive and finite; elsewhere the check would
    synchronise."""
    if isinstance(temperature, torch.Tensor) and temperature.is_cpu:
        bad = ~((temperature > 0) & (temperature < math.inf))
        if bad.any():
            value = float(temperature[bad][0])
            raise ValueError(f"{function}: temperature must be positive and finite, got {value}")


def check_options(
    function: str,
    labels: torch.Tensor,
    classes: int,
    *,
    adjustment: Adjustment,
    weight: torch.Tensor | None,
    sample_weight: torch.Tensor | None,
    label_smoothing: float,
    z_loss: float,
    probabilities: torch.Tensor | None = None,
    weight_name: str = "weight",
) -> LossOptions | None:
    """The options of a loss of rows with integer `labels` (...) and `classes` columns; None if all
    are defaults."""
    label_smoothing = check_real(function, "label_smoothing", label_smoothing)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(
            f"{function}: label_smoothing must be between 0 and 1, got {label_smoothing}"
        )
    z_loss = check_real(function, "z_loss", z_loss)
    if not 0.0 <= z_loss < math.inf:
        raise ValueError(f"{function}: z_loss must be finite and at least 0, got {z_loss}")
    given = weight is not None or sample_weight is not None or probabilities is not None
    if not given and label_smoothing == z_loss == 0.0 and adjustment.changes_nothing:
        return None
    if weight is not None:
        weight = _vector(function, weight_name, weight, classes, "(C,)", labels)
    if sample_weight is not None:
        if isinstance(sample_weight, torch.Tensor) and sample_weight.shape == labels.shape:
            sample_weight = sample_weight.reshape(-1)
        rows = labels.numel()
        sample_weight = _vector(function, "sample_weight", sample_weight, rows, "(N,)", labels)
    return LossOptions(adjustment, weight, sample_weight, label_smoothing, z_loss, probabilities)


def check_targets(
    function: str,
    labels: torch.Tensor,
    logits: torch.Tensor,
    ignore_index: int | None,
    *,
    all_columns: bool = True,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Integer labels (...) and None; for labels that are probabilities (..., C), zeros as integer
    labels and the probabilities (N, C). `all_columns`: whether no columns are on other ranks."""
    dtype = labels.dtype if isinstance(labels, torch.Tensor) else None
    if dtype not in FLOAT_DTYPES or labels.shape != logits.shape:
        if dtype is not None and dtype not in INTEGER_DTYPES:
            one = f" ({BINARY})" if logits.shape[-1] == 1 else ""
            raise TypeError(
                f"{function}: labels must have an integer dtype, or be probabilities of the shape "
                f"of logits {tuple(logits.shape)}{one}, got {describe(labels)}"
            )
        check_labels(function, labels, logits)
        return labels, None
    _check_constant(function, "labels", labels, logits, "logits")
    if ignore_index is not None:
        raise ValueError(
            f"{function}: ignore_index must be None where labels are probabilities, "
            f"got {ignore_index}"
        )
    classes = labels.shape[-1]
    if classes == 1 and all_columns:
        caution(
            f"{function}: the softmax of one column is 1, whatever it holds, and nothing is "
            f"trained: {BINARY}, and probabilities of both",
            check_targets,
            function,
        )
    rows = labels.detach().reshape(logits.shape[:-1].numel(), classes)
    if classes > 1 and rows.stride(1) != 1:
        rows = rows.contiguous()
    none = torch.zeros((), dtype=torch.int64, device=labels.device)
    return none.expand(logits.shape[:-1]), rows.resolve_neg()


def _positive(function: str, name: str, value: float) -> float:
    value = check_real(function, name, value)
    if not 0.0 < value < math.inf:
        raise ValueError(f"{function}: {name} must be positive and finite, got {value}")
    return value


def _check_constant(
    function: str, name: str, tensor: torch.Tensor, other: torch.Tensor, other_name: str
) -> None:
    """Raise unless the tensor is not differentiated and on the device of `other`."""
    check_strided(function, name, tensor)
    check_same_device(function, name, tensor, other_name, other)
    if tensor.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{function}: {name} must not require grad (gradients are those by the logits; pass "
            f"its detach()), got {describe(tensor)}"
        )


def _vector(
    function: str, name: str, vector: torch.Tensor, size: int, shape: str, like: torch.Tensor
) -> torch.Tensor:
    """`vector` (size,) of a floating dtype, as contiguous float32 (float64 stays)."""
    if not isinstance(vector, torch.Tensor):
        raise TypeError(f"{function}: {name} must be a torch.Tensor, got {type(vector).__name__}")
    if vector.dtype not in FLOAT_DTYPES:
        raise TypeError(f"{function}: {name} must have a floating dtype, got {vector.dtype}")
    if vector.shape != (size,):
        raise ValueError(
            f"{function}: {name} must have shape {shape} = ({size},), got {tuple(vector.shape)}"
        )
    _check_constant(function, name, vector, like, "labels")
    wide = torch.float64 if vector.dtype == torch.float64 else torch.float32
    return vector.detach().to(wide).resolve_neg().contiguous()
