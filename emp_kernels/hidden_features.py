"""Features of an encoder's hidden layer, captured in the forward pass: the input of the memory
term."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any

import torch
from torch import nn

from .validation import describe

_CLASS = "HiddenFeatures"


class HiddenFeatures:
    """Captures the pooled output of a named submodule on each forward pass of a model.

    A forward hook: the model's class, parameters, state_dict and output do not change, and leaving
    the context removes the hook. Use it as a context manager, or keep it as long as the model and
    call :meth:`close`::

        with HiddenFeatures(encoder, "layer3") as features:
            z1, z2 = head(encoder(x1)), head(encoder(x2))
            h1, h2 = features.take()
        scores = emp.score_contrastive(z1, z2, hidden=(h1, h2))

    Images (B, C, height, width) and volumes (B, C, depth, height, width), channels first, are
    averaged over their positions, and sequences (B, T, C), channels last, over T; (B, C) is used as
    it is. Of a tuple, list or mapping the first entry is used. Features have the output's dtype and
    are detached copies: scores need no gradient, no graph is kept alive, and later layers may work
    in place. A submodule that runs twice in a forward pass gives two features; recomputation under
    activation checkpointing is not captured.

    Under DistributedDataParallel use the submodule's name in the wrapped model; each rank captures
    its own samples, which ``score_contrastive(..., group=group)`` gathers. Under torch.compile the
    hook is a graph break, which is an error with ``fullgraph=True``. Attach before the model's
    first call: code compiled without the hook does not run it.

    A copy or pickle of the model captures nothing. A HiddenFeatures copied or pickled together with
    its model captures from the copied model.

    Args:
        model: any module, DistributedDataParallel and compiled ones included.
        name: the submodule's name in `model.named_modules()`; "" is the model itself. A submodule
            with several names may be given by any of them; all its calls are captured.
        pool: computes features (B, C) from the submodule's output, for shapes other than those
            above.

    Raises:
        TypeError: `model` is not a module, `name` not a string or `pool` not callable.
        ValueError: the model has no such submodule; and, from the model's forward pass, an output
            of an unsupported shape, or a `pool` that does not return (B, C).
    """

    def __init__(
        self,
        model: nn.Module,
        name: str,
        *,
        pool: Callable[[Any], torch.Tensor] | None = None,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(
                f"{_CLASS}: model must be a torch.nn.Module, got {type(model).__name__}"
            )
        if not isinstance(name, str):
            raise TypeError(f"{_CLASS}: name must be a str, got {type(name).__name__}")
        if pool is not None and not callable(pool):
            raise TypeError(f"{_CLASS}: pool must be callable or None, got {type(pool).__name__}")
        self.name, self._pool = name, pool
        self._captured: list[torch.Tensor] = []
        self._attach(_submodule(model, name))

    def _attach(self, module: nn.Module | None) -> None:
        self._module, self._handle = module, None
        if module is not None:
            self._handle = module.register_forward_hook(_Hook(self._capture))

    def _capture(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if torch._C._current_graph_task_id() != -1:
            return  # recomputation of a checkpointed layer, captured before
        if self._pool is None:
            features = pooled(output, self.name)
        else:
            features = self._pool(output)
            if not isinstance(features, torch.Tensor) or features.dim() != 2:
                raise ValueError(
                    f"{_CLASS}: pool must return a tensor (B, C), got {describe(features)}"
                )
            features = features.detach().clone()
        self._captured.append(features)

    def take(self) -> tuple[torch.Tensor, ...]:
        """Return and clear the features (B, C) of every call of the submodule since the last
        `take`, oldest first, including forward passes that failed in a later layer."""
        captured = tuple(self._captured)
        self._captured.clear()
        return captured

    @property
    def last(self) -> torch.Tensor:
        """The features (B, C) of the last forward pass.

        Raises:
            RuntimeError: the submodule has not run since they were taken.
        """
        if not self._captured:
            raise RuntimeError(
                f"{_CLASS}: {self.name!r} has captured nothing; run the model first (a compiled "
                "model has to be captured before its first call)"
            )
        return self._captured[-1]

    def close(self) -> None:
        """Remove the hook; captured features remain."""
        if self._handle is not None:
            self._handle.remove()
        self._attach(None)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_handle"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy or a file: capture from the submodule that was copied with it."""
        vars(self).update(state)
        self._captured = list(self._captured)  # of a shallow copy
        self._attach(self._module)

    def __enter__(self) -> HiddenFeatures:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class _Hook:
    """The forward hook. Its copy, in a copy of the model (such as an averaged model), does
    nothing."""

    def __init__(self, capture: Callable[..., None] | None = None) -> None:
        # If traced, the number of captured passes would become a guard and each pass a
        # recompilation.
        self.capture = None if capture is None else torch.compiler.disable(capture)

    def __call__(self, module: nn.Module, arguments: Any, output: Any) -> None:
        if self.capture is not None:
            self.capture(module, arguments, output)

    def __reduce__(self) -> tuple[type[_Hook], tuple[()]]:
        return _Hook, ()


def pooled(output: Any, name: str = "") -> torch.Tensor:
    """One feature vector per sample, (B, C) and detached, from a submodule's output."""
    while not isinstance(output, torch.Tensor):
        if isinstance(output, Mapping):
            output = tuple(output.values())
        if not isinstance(output, tuple | list) or len(output) == 0:
            raise ValueError(
                f"{_CLASS}: the output of {name!r} must hold a tensor, got {type(output).__name__}"
            )
        output = output[0]
    if output.dim() not in (2, 3, 4, 5):
        raise ValueError(
            f"{_CLASS}: the output of {name!r} must have 2 to 5 dimensions, "
            f"got shape {tuple(output.shape)}"
        )
    output = output.detach()
    if output.dim() == 2:
        return output.clone()  # a later layer may work in place
    return output.mean(1) if output.dim() == 3 else output.flatten(2).mean(2)


def _submodule(model: nn.Module, name: str) -> nn.Module:
    """The submodule `name` of a possibly wrapped model."""
    modules = _names(model)
    wrapped: Any = model
    while name not in modules:
        wrapped = _inside(wrapped)
        if wrapped is None:
            known = ", ".join(repr(x) for x in list(modules)[1:6])
            raise ValueError(
                f"{_CLASS}: name must be of a submodule, got {name!r}; "
                f"the model has {known or 'none'}{', ...' if len(modules) > 6 else ''}"
            )
        modules = _names(wrapped)
    return modules[name]


def _names(model: nn.Module) -> dict[str, nn.Module]:
    """The submodules by name, including every name of a shared one."""
    return dict(model.named_modules(remove_duplicate=False))


def _inside(model: nn.Module) -> nn.Module | None:
    """The wrapped module: DistributedDataParallel's `module`, torch.compile's `_orig_mod`."""
    for attribute in ("module", "_orig_mod"):
        inner = getattr(model, attribute, None)
        if isinstance(inner, nn.Module):
            return inner
    return None
