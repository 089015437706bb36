"""What EMPTrainerMixin requires of a Trainer, and the Trainer options that it refuses."""

from __future__ import annotations

import inspect
from typing import Any

import transformers

# Private methods of transformers.Trainer that the mixin overrides, with the parameters that it
# reads or replaces. No public method marks the beginning and the end of an epoch.
PRIVATE = {
    "_init_training_state": ("resume_from_checkpoint",),
    "_run_epoch": (
        *("epoch", "train_dataloader", "steps_in_epoch", "num_update_steps_per_epoch"),
        *("epochs_trained", "steps_trained_in_current_epoch"),
    ),
}
INITIAL_VALUES = 7  # values returned by Trainer.set_initial_training_values
TESTED = "5.23.0"

_STRATEGIES = ("random", "sequential")


def check_trainer(trainer: Any, mixin: type) -> None:
    """Raise unless the methods of PRIVATE exist, below `mixin`, with their parameters."""
    bases = type(trainer).__mro__
    below = bases[bases.index(mixin) + 1 :]
    for name, parameters in PRIVATE.items():
        method = next((vars(base)[name] for base in below if name in vars(base)), None)
        known = inspect.signature(method).parameters if method is not None else {}
        if not all(parameter in known for parameter in parameters):
            raise _of_another_version(f"{name}({', '.join(parameters)})")


def check_initial_values(values: tuple[Any, ...]) -> None:
    if len(values) != INITIAL_VALUES:
        raise _of_another_version(f"set_initial_training_values of {INITIAL_VALUES} values")


def _of_another_version(lacks: str) -> RuntimeError:
    return RuntimeError(
        f"EMPTrainerMixin: the Trainer must have {lacks}, and that of transformers "
        f"{transformers.__version__} has not; pip install transformers=={TESTED}"
    )


def check_options(
    trainer: Any, keep_tokens: float | None, materialise_logits: bool, sampler_options: Any
) -> None:
    """Raise if an option is set that the mixin would ignore."""
    arguments = trainer.args
    strategy = getattr(arguments, "train_sampling_strategy", "random")
    if strategy not in _STRATEGIES:
        _refuse("train_sampling_strategy", " or ".join(_STRATEGIES), strategy)
    if arguments.n_gpu > 1:
        _refuse("n_gpu", "1 (start one process a GPU, with torchrun)", arguments.n_gpu)
    loss = getattr(arguments, "loss_type", "nll")  # TRL's
    if loss != "nll":
        _refuse("loss_type", "'nll'", repr(loss))
    if sampler_options.get("sampling") == "importance":  # its weights would belong in the loss
        _refuse("sampling", "one without weights", "'importance'")
    anneals = sampler_options.get("anneal_epochs") and sampler_options.get("epochs") is None
    if arguments.max_steps > 0 and anneals:
        _refuse(
            "max_steps",
            "-1 with anneal_epochs (or give epochs in sampler_options)",
            arguments.max_steps,
        )
    if trainer.compute_loss_func is not None and keep_tokens is not None:
        _refuse("keep_tokens", "None with a compute_loss_func", keep_tokens)
    if materialise_logits:
        return
    for option, given in (
        ("compute_loss_func", trainer.compute_loss_func is not None),
        ("torch_compile", arguments.torch_compile),
        ("fsdp", trainer.is_fsdp_enabled),
        ("deepspeed", trainer.is_deepspeed_enabled),
    ):
        if given:
            _refuse("materialise_logits", f"True with {option}", False)


def check_tokens(labels: Any, keep_tokens: float | None, materialise_logits: bool) -> None:
    """Raise if an option for the labels (B, T) of tokens is set and a sample has one label."""
    if getattr(labels, "ndim", 2) > 1:
        return
    if keep_tokens is not None:
        _refuse("keep_tokens", "None where each sample has one label, not tokens", keep_tokens)
    if not materialise_logits:
        _refuse("materialise_logits", "True where each sample has one label, not tokens", False)


def _refuse(option: str, rule: str, value: Any) -> None:
    raise ValueError(f"EMPTrainerMixin: {option} must be {rule}, got {value}")
