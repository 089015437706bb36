"""Contrastive scores: a self-supervised loss plus a memory term, without the similarity matrix."""

from __future__ import annotations

import math
import zlib
from typing import TYPE_CHECKING, Any

import torch

from . import backends
from .compiling import outside_compiler
from .results import Scores
from .similarities import BLOCKS, Problem, Views
from .validation import (
    FLOAT_DTYPES,
    check_beta,
    check_real,
    check_same_device,
    check_strided,
    describe,
)

if TYPE_CHECKING:
    import torch.distributed as dist

_FUNCTION = "score_contrastive"


@outside_compiler
def score_contrastive(
    z1: torch.Tensor,
    z2: torch.Tensor,
    *,
    form: str = "infonce",
    temperature: float = 0.1,
    hidden: tuple[torch.Tensor, torch.Tensor] | None = None,
    hidden_temperature: float | None = None,
    beta: float = 1.0,
    group: dist.ProcessGroup | None = None,
    backend: str | None = None,
) -> Scores:
    """EMP score of samples seen in two views: contrastive loss plus `beta` times an entropy.

    With rows scaled to unit length, s(a, b) = a @ b.T / temperature and M_i the row's entropy::

        loss_i = lse_i - s_ip,   lse_i = log sum_j exp(s_ij),   score_i = loss_i + beta * M_i

    in nats, where p is the positive. The forms differ in what a row is compared with:

    - ``"infonce"``: row i of s(z1, z2), positive i (van den Oord et al., arXiv 1807.03748).
    - ``"ntxent"``: SimCLR's. Each view of i against all 2 N views except itself, so 2 N - 2
      negatives; the mean over i's two views (Chen et al., arXiv 2002.05709).
    - ``"clip"``: the mean of row i of s(z1, z2) and row i of s(z2, z1) (arXiv 2103.00020).

    M_i is the entropy of the softmax over the same row of the hidden pair's similarities, at
    `hidden_temperature`; the mean of both rows in the forms that have two.

    The memory term, and building it from hidden layers of the base encoder in self-supervised
    learning, are the paper's ideas (EMP, arXiv 2408.16031). Its formula is not public: the entropy
    of the hidden similarities, its temperature, using the projections without `hidden`, and beta =
    1 are this package's choices.

    Similarities are computed one tile at a time and not stored, so memory grows with N, not N^2.
    Autocast has no effect. Under ``torch.compile`` the call is a graph break.

    Args:
        z1, z2: (N, D) projections of the two views, of one dtype: float32, float16 or bfloat16
            (float64 is served by the reference backend, which then answers in float64). They are
            normalised here, in float32; a zero vector stays zero, with similarity 0 to everything.
        form: "infonce", "ntxent" or "clip".
        temperature: of the projections, positive.
        hidden: (h1, h2), both (N, H) of one dtype: the views' features before the projection head
            (:class:`emp_kernels.HiddenFeatures` captures them). None takes the projections.
        hidden_temperature: of the hidden pair, positive; None takes `temperature`.
        beta: weight of the memory term, from -1e29 to 1e29.
        group: a process group whose ranks all call with their own samples; their numbers may
            differ. Negatives come from all ranks, as if one process had the concatenated samples.
            The embeddings are gathered, not the similarities. None: this process alone.
        backend: None for the fastest, or "reference", "cpu" or "triton".

    Returns:
        Scores(score, loss, entropy, lse), (N,) float32, without autograd; lse is that of the
        projections. A NaN or infinity in a row makes every row that is compared with it invalid
        (score NaN). N = 1 without a group has loss and entropy 0.

    Raises:
        TypeError: a wrong type or dtype.
        ValueError: a wrong shape or value, different devices, ranks that disagree.
        RuntimeError: the named backend is not available, or a group without torch.distributed.
    """
    pair = _pair("z1", z1, "z2", z2)
    if not isinstance(form, str):
        raise TypeError(f"{_FUNCTION}: form must be a str, got {type(form).__name__}")
    if form not in BLOCKS:
        raise ValueError(f"{_FUNCTION}: form must be one of {', '.join(BLOCKS)}, got {form!r}")
    temperature = _temperature("temperature", temperature)
    hidden_pair = _hidden(hidden, pair[0])
    if hidden_temperature is None:
        hidden_temperature = temperature
    elif hidden is None:
        raise ValueError(
            f"{_FUNCTION}: hidden_temperature must be None without hidden, got {hidden_temperature}"
        )
    hidden_temperature = _temperature("hidden_temperature", hidden_temperature)
    beta = check_beta(_FUNCTION, beta)
    chosen = backends.resolve(_FUNCTION, backend, z1)
    with torch.no_grad(), torch.autocast(z1.device.type, enabled=False):
        everyone = _Everyone(form, temperature, hidden_temperature, pair, hidden_pair, group)
        problem = Problem(
            form,
            everyone.views(pair),
            None if hidden_pair is None else everyone.views(hidden_pair),
            temperature,
            hidden_temperature,
            beta,
        )
        scores: Scores = chosen.score_contrastive(problem)
    return scores


class _Everyone:
    """The ranks of `group`, which agree on everything but their numbers of samples; or this process
    alone."""

    def __init__(
        self,
        form: str,
        temperature: float,
        hidden_temperature: float,
        pair: tuple[torch.Tensor, torch.Tensor],
        hidden_pair: tuple[torch.Tensor, torch.Tensor] | None,
        group: dist.ProcessGroup | None,
    ) -> None:
        self.group, self.counts, self.rank = group, [len(pair[0])], 0
        if group is None:
            return
        import torch.distributed as dist

        from .distributed.group import gather_equal, initialised

        if not initialised():
            raise RuntimeError(
                f"{_FUNCTION}: group needs torch.distributed; call "
                "torch.distributed.init_process_group first"
            )
        if not isinstance(group, dist.ProcessGroup):
            raise TypeError(
                f"{_FUNCTION}: group must be a ProcessGroup or None, got {type(group).__name__}"
            )
        shapes = {"z1": pair[0], "hidden": None if hidden_pair is None else hidden_pair[0]}
        facts: dict[str, Any] = {"form": form, "temperature": temperature}
        facts["hidden_temperature"] = hidden_temperature
        for name, tensor in shapes.items():
            facts[f"{name}'s width"] = 0 if tensor is None else tensor.shape[1]
            facts[f"{name}'s dtype"] = "none" if tensor is None else str(tensor.dtype)
        code = torch.tensor([len(pair[0]), *map(_code, facts.values())], device=pair[0].device)
        codes = [part.tolist() for part in gather_equal(_FUNCTION, code, group)]
        for i, (name, value) in enumerate(facts.items(), 1):
            if any(other[i] != codes[0][i] for other in codes):
                raise ValueError(
                    f"{_FUNCTION}: {name} must be the same on all ranks, got {value} on rank "
                    f"{dist.get_rank(group)}"
                )
        self.counts = [other[0] for other in codes]
        self.rank = dist.get_rank(group)

    def views(self, pair: tuple[torch.Tensor, torch.Tensor]) -> Views:
        """This rank's pair and the concatenation over ranks, whose numbers of samples may
        differ."""
        if self.group is None or len(self.counts) == 1:
            return Views(pair, pair, 0)
        from .distributed.group import gather_equal

        first, second = (
            torch.cat(
                [
                    part[:count]
                    for part, count in zip(
                        gather_equal(_FUNCTION, _padded(own, max(self.counts)), self.group),
                        self.counts,
                        strict=True,
                    )
                ]
            )
            for own in pair
        )
        return Views(pair, (first, second), sum(self.counts[: self.rank]))


def _padded(rows: torch.Tensor, count: int) -> torch.Tensor:
    """rows (n, D) padded with zeros to (count, D)."""
    return torch.nn.functional.pad(rows, (0, 0, 0, count - len(rows)))


def _code(fact: str | int | float) -> int:
    """A hash of `fact` as int64, to compare it between ranks."""
    return zlib.crc32(repr(fact).encode())


def _pair(name1: str, first: Any, name2: str, second: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Two views of the same rows, without autograd."""
    for name, tensor in ((name1, first), (name2, second)):
        if not isinstance(tensor, torch.Tensor) or tensor.dtype not in FLOAT_DTYPES:
            raise TypeError(
                f"{_FUNCTION}: {name} must be a float32, float16, bfloat16 or float64 tensor, "
                f"got {describe(tensor)}"
            )
        check_strided(_FUNCTION, name, tensor)
        if tensor.dim() != 2 or tensor.shape[1] == 0:
            raise ValueError(
                f"{_FUNCTION}: {name} must have shape (N, D) with D > 0, got {tuple(tensor.shape)}"
            )
    if second.dtype != first.dtype:
        raise TypeError(
            f"{_FUNCTION}: {name2} must have {name1}'s dtype {first.dtype}, got {second.dtype}"
        )
    if second.shape != first.shape:
        raise ValueError(
            f"{_FUNCTION}: {name2} must have {name1}'s shape {tuple(first.shape)}, "
            f"got {tuple(second.shape)}"
        )
    check_same_device(_FUNCTION, name2, second, name1, first)
    return first.detach(), second.detach()


def _hidden(hidden: Any, z1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor] | None:
    """The hidden pair: a row for each of z1's, float64 where z1 is."""
    if hidden is None:
        return None
    if not isinstance(hidden, tuple | list) or len(hidden) != 2:
        raise TypeError(
            f"{_FUNCTION}: hidden must be a pair of tensors (h1, h2), got {describe(hidden)}"
        )
    pair = _pair("hidden[0]", hidden[0], "hidden[1]", hidden[1])
    if len(pair[0]) != len(z1):
        raise ValueError(
            f"{_FUNCTION}: hidden[0] must have z1's {len(z1)} rows, got {len(pair[0])}"
        )
    if (pair[0].dtype == torch.float64) != (z1.dtype == torch.float64):
        raise TypeError(
            f"{_FUNCTION}: hidden[0] must be float64 if and only if z1 is, got "
            f"{pair[0].dtype} with {z1.dtype}"
        )
    check_same_device(_FUNCTION, "hidden[0]", pair[0], "z1", z1)
    return pair


def _temperature(name: str, value: float) -> float:
    """`value` as a positive finite float."""
    value = check_real(_FUNCTION, name, value)
    if not 0 < value < math.inf:
        raise ValueError(f"{_FUNCTION}: {name} must be positive and finite, got {value}")
    return value
