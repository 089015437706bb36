"""Tensors that torch.save wrote."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .file_arrays import Array, InputError, named


class Saved(Array):
    """A tensor, mapped anew for each block; torch's old format is loaded into memory."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path, self.kind = path, kind
        self.held: torch.Tensor | None = None
        tensor = self._tensor()
        self.shape = tuple(tensor.shape)

    def read(self, start: int, stop: int) -> torch.Tensor:
        return self._tensor()[start:stop].detach()

    def _tensor(self) -> torch.Tensor:
        if self.held is not None:
            return self.held
        options: Any = {"map_location": "cpu", "weights_only": True}
        try:
            try:
                content = torch.load(self.path, mmap=True, **options)
            except RuntimeError:  # the old format cannot be mapped
                content = torch.load(self.path, **options)
                tensor = self.held = self._found(content)
                return tensor
        except (RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self.path} must be a file of tensors ({reason})") from None
        return self._found(content)

    def _found(self, content: Any) -> torch.Tensor:
        if isinstance(content, Mapping):
            tensors = {
                str(name): value
                for name, value in content.items()
                if isinstance(value, torch.Tensor)
            }
            content = tensors[named(self.path, self.kind, tensors)]
        if not isinstance(content, torch.Tensor):
            kind = type(content).__name__
            raise InputError(f"{self.path} must hold a tensor or a mapping of tensors, got {kind}")
        if content.layout is not torch.strided or content.dim() == 0:
            raise InputError(f"{self.path} must hold a dense tensor with rows")
        return content
