"""score_contrastive over the ranks of a group, compared with one process that has all samples."""

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks

import emp_kernels as emp

FORMS = ("infonce", "clip", "ntxent")
COUNTS = {"even": (40, 40), "uneven": (13, 70), "one without": (0, 21)}


def samples(total, dtype):
    generator = torch.Generator().manual_seed(total)
    z1, h1 = (torch.randn(total, width, generator=generator) for width in (24, 40))
    z2, h2 = (x + torch.randn(x.shape, generator=generator) for x in (z1, h1))
    return [x.to(dtype) for x in (z1, z2, h1, h2)]


def score_parts(rank, world, backends):
    """This rank's scores in each case; the group is not the default one."""
    group = dist.new_group(list(range(world)))
    found = {}
    for name, counts in COUNTS.items():
        start = sum(counts[:rank])
        for dtype in (torch.float32, torch.bfloat16):
            parts = [x[start : start + counts[rank]] for x in samples(sum(counts), dtype)]
            for form in FORMS:
                for backend in backends:
                    scores = emp.score_contrastive(
                        *parts[:2], form=form, hidden=tuple(parts[2:]), temperature=0.2,
                        hidden_temperature=0.3, beta=0.5, group=group, backend=backend,
                    )  # fmt: skip
                    found[name, dtype, form, backend] = [x.tolist() for x in scores]
    return found


def test_ranks_together_score_what_one_process_scores():
    backends = ("reference", "cpu")
    ranks = on_ranks(2, score_parts, backends)
    for (name, dtype, form, backend), first in ranks[0].items():
        z1, z2, *hidden = samples(sum(COUNTS[name]), dtype)
        want = emp.score_contrastive(
            z1, z2, form=form, hidden=tuple(hidden), temperature=0.2, hidden_temperature=0.3,
            beta=0.5, backend=backend,
        )  # fmt: skip
        second = ranks[1][name, dtype, form, backend]
        assert len(first[0]) == COUNTS[name][0]
        for a, b, expected in zip(first, second, want, strict=True):
            torch.testing.assert_close(torch.tensor(a + b), expected, rtol=2e-6, atol=2e-6)


def disagree(rank, world):
    """Every rank raises, so that none waits for the others."""
    z, messages = torch.randn(4, 3), []
    for change in ("width", "dtype", "form", "temperature", "hidden", "nothing"):
        own, hidden, options = z, None, {}
        if rank == 1:
            own = {"width": z[:, :2], "dtype": z.half()}.get(change, z)
            hidden = (z, z) if change == "hidden" else None
            options = {"form": {"form": "clip"}, "temperature": {"temperature": 0.2}}.get(
                change, {}
            )
        try:
            emp.score_contrastive(own, own, hidden=hidden, group=dist.group.WORLD, **options)
            messages.append("")
        except ValueError as error:
            messages.append(str(error))
    with pytest.raises(TypeError, match="group must be a ProcessGroup or None, got int"):
        emp.score_contrastive(z, z, group=3)
    return messages


def test_ranks_that_disagree_all_raise():
    names = ("z1's width", "z1's dtype", "form", "temperature", "hidden's width")
    for rank, messages in enumerate(on_ranks(2, disagree)):
        assert messages[-1] == ""
        for name, message in zip(names, messages, strict=False):
            assert message.startswith(f"score_contrastive: {name} must be the same on all ranks")
            assert message.endswith(f"on rank {rank}")


def alone(rank, world):
    z = torch.randn(9, 4)
    own = emp.score_contrastive(z, z + 1, form="ntxent", group=dist.group.WORLD)
    return torch.equal(own.score, emp.score_contrastive(z, z + 1, form="ntxent").score)


def test_a_group_of_one():
    assert on_ranks(1, alone) == [True]
