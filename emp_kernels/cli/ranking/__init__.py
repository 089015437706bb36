"""``python -m emp_kernels rank``: which rows of logits on disk are worth training on."""

from .command import rank_files

__all__ = ["rank_files"]
