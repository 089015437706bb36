"""The changes of docs/howto/vocab_parallel.md against the released stacks: if a stack is installed,
the lines around a change must match, and Megatron's loss runs with it on two ranks."""

import inspect
import re
import textwrap
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from ranks import on_ranks

import emp_kernels as emp

PAGE = Path(__file__).resolve().parents[1] / "docs/howto/vocab_parallel.md"
DIFFS = re.findall(r"^```diff\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.M | re.S)
RELEASES = {  # package: distribution, version, file, its change
    "megatron": (
        *("megatron-core", "0.16.1"),
        *("core/models/common/language_module/language_module.py", DIFFS[0]),
    ),
    "torchtitan": ("torchtitan", "0.3.0", "components/loss.py", DIFFS[1]),
    "verl": ("verl", "0.9.1", "workers/engine/megatron/transformer_impl.py", DIFFS[2]),
}


def lines(diff, marks):
    return "".join(line[1:] + "\n" for line in diff.splitlines() if line[0] in marks)


@pytest.mark.parametrize("package", RELEASES)
def test_the_lines_around_a_change_are_the_releases_own(package):
    distribution, release, file, diff = RELEASES[package]
    found = find_spec(package)
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"{distribution} is not installed")
    assert version(distribution) == release, "say so on the page"
    source = Path(next(iter(found.submodule_search_locations)), file).read_text(encoding="utf-8")
    assert source.count(lines(diff, " -")) == 1
    assert f"{distribution} {release}" in PAGE.read_text(encoding="utf-8")


def megatron_losses(rank, world):
    """Losses and gradients of Megatron's method and of the changed one, which keeps everything."""
    from megatron.core import parallel_state
    from megatron.core.models.common.language_module import language_module

    parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    stock = language_module.LanguageModule.compute_language_model_loss
    source, diff = inspect.getsource(stock), DIFFS[0]
    changed = source.replace(lines(diff, " -"), lines(diff, " +").replace("0.6", "KEEP"))
    assert changed != source
    names = {**vars(language_module), "emp": emp}
    exec(textwrap.dedent(changed), names)
    torch.manual_seed(0)
    whole, labels = torch.randn(16, 3, 64 * world), torch.randint(64 * world, (3, 16))
    columns = whole[..., 64 * rank : 64 * (rank + 1)]
    tp = parallel_state.get_tensor_model_parallel_group()
    found = {}
    for fused in (False, True):
        config = SimpleNamespace(
            cross_entropy_loss_fusion=fused, cross_entropy_fusion_impl="native"
        )
        model = SimpleNamespace(config=config, pg_collection=SimpleNamespace(tp=tp))
        for name, method in (("stock", stock), ("ours", names["compute_language_model_loss"])):
            names["KEEP"] = 1.0
            leaf = columns.clone().requires_grad_()
            loss = method(model, labels, leaf.clone())  # theirs changes float32 logits in place
            loss.sum().backward()
            found[fused, name] = (loss.detach(), leaf.grad)
        names["KEEP"] = 0.6
        found[fused, "kept"] = names["compute_language_model_loss"](model, labels, columns)
    return found


@pytest.mark.skipif(find_spec("megatron") is None, reason="megatron-core is not installed")
def test_megatrons_loss_is_ours_where_everything_is_kept():
    for found in on_ranks(2, megatron_losses):
        for fused in (False, True):
            (want, gradient), (loss, own) = found[fused, "stock"], found[fused, "ours"]
            torch.testing.assert_close(loss, want)
            # The fused loss rounds its gradient to bfloat16.
            torch.testing.assert_close(own, gradient, atol=4e-3 if fused else 1e-6, rtol=0)
            kept = found[fused, "kept"]
            assert int((kept > 0).sum()) == round(0.6 * kept.numel())
            torch.testing.assert_close(kept[kept > 0], want[kept > 0])
