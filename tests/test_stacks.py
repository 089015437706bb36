"""The changes of docs/howto/vocab_parallel.md beside the stacks as released: where the stack is
installed, the lines around a change are its own, and Megatron's loss and verl's log-probabilities
run with it on two ranks. DeepSpeed trains with EMP's loss as it is.

What is private of a stack is named here and nowhere else."""

import importlib.abc
import importlib.util
import inspect
import os
import re
import sys
import textwrap
import types
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
import torch
from ranks import free_port, on_ranks
from torch.nn import functional as F

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


class Stubs(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Everything of verl, omegaconf and tensordict but the two files that are tried as released.

    verl's own __init__ imports ray, tensordict and a transformers that is older than 5.11; the
    method uses nothing of it but the functions of verl.utils.megatron.tensor_parallel, which are
    Megatron's and torch's."""

    RELEASED = (
        "verl.workers.engine.megatron.transformer_impl",
        "verl.utils.megatron.tensor_parallel",
    )

    def __init__(self, folder):
        self.folder = folder

    def find_spec(self, name, path, target=None):
        if name.split(".")[0] not in ("verl", "omegaconf", "tensordict"):
            return None
        if name in self.RELEASED:
            file = Path(self.folder, *name.split(".")[1:]).with_suffix(".py")
            return importlib.util.spec_from_file_location(name, file)
        return importlib.util.spec_from_loader(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__getattr__ = self.stub  # of a module: what it does not have
        return module

    def exec_module(self, module):
        pass

    @staticmethod
    def stub(name):
        if name.startswith("__"):
            raise AttributeError(name)
        if name == "EngineRegistry":
            return SimpleNamespace(register=lambda **options: lambda decorated: decorated)
        return type(name, (), {}) if name[0].isupper() else mock.MagicMock(name=name)


def verl_log_probs(rank, world, folder):
    """What verl's method and the changed one give, and their gradients, with a temperature for
    each token; the last tokens are padding, whose temperature is 0."""
    from megatron.core import parallel_state

    torch.compiler.set_stance("force_eager")  # verl compiles a product
    parallel_state.initialize_model_parallel(tensor_model_parallel_size=world)
    sys.meta_path.insert(0, Stubs(folder))
    engine = importlib.import_module(Stubs.RELEASED[0])
    stock = engine.MegatronEngineWithLMHead._lm_head_logits_processor
    source, diff = inspect.getsource(stock), DIFFS[2]
    changed = source.replace(lines(diff, " -"), lines(diff, " +"))
    assert changed != source
    names = {**vars(engine), "emp": emp}
    exec(textwrap.dedent(changed), names)
    torch.manual_seed(0)
    tokens, classes = 40, 64 * world
    whole, label = 3 * torch.randn(1, tokens, classes), torch.randint(classes, (1, tokens))
    temperature = 0.5 + torch.rand(1, tokens)
    temperature[:, -5:] = 0.0
    up = torch.randn(2, 1, tokens) * (temperature > 0)
    columns = whole[..., 64 * rank : 64 * (rank + 1)]
    config = SimpleNamespace(entropy_from_logits_with_chunking=False)
    asked = {"distillation_use_topk": False, "distillation_only": False, "batch": None}
    asked |= {"logits_processor_func": None, "data_format": "thd", "calculate_entropy": True}
    found = {}
    for name, method in (("stock", stock), ("ours", names["_lm_head_logits_processor"])):
        for squares in (False, True):  # which only verl's way counts
            leaf = columns.clone().requires_grad_()
            given = (
                SimpleNamespace(engine_config=config),
                leaf.clone(),
                label,
                temperature.clone(),
            )
            out = method(*given, calculate_sum_pi_squared=squares, **asked)
            (up[0] * out["log_probs"] + up[1] * out["entropy"]).sum().backward()
            out["gradient"] = leaf.grad[:, :-5]
            found[name, squares] = {key: value.detach()[:, :-5] for key, value in out.items()}
    with torch.no_grad():  # of the old policy: the same method
        given = (SimpleNamespace(engine_config=config), columns.clone(), label, temperature)
        out = names["_lm_head_logits_processor"](*given, calculate_sum_pi_squared=False, **asked)
    assert torch.equal(out["log_probs"][:, :-5], found["ours", False]["log_probs"])
    return found


@pytest.mark.skipif(
    find_spec("megatron") is None or find_spec("verl") is None,
    reason="megatron-core or verl is not installed",
)
def test_verls_log_probabilities_are_ours():
    folder = next(iter(find_spec("verl").submodule_search_locations))
    for found in on_ranks(2, verl_log_probs, folder):
        for squares in (False, True):
            want, own = found["stock", squares], found["ours", squares]
            assert want.keys() == own.keys()
            assert ("sum_pi_squared" in own) == squares
            for name, value in own.items():
                torch.testing.assert_close(value, want[name], rtol=1e-4, atol=2e-6)


def deepspeed_losses(rank, world, stage, folder):
    """Losses of torch's cross-entropy and of EMP's in DeepSpeed's engine, and of a training that
    is stopped and goes on from DeepSpeed's checkpoint."""
    local = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "MASTER_PORT": free_port()}
    os.environ |= {name: str(value) for name, value in local.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "DS_ACCELERATOR": "cpu"}
    import deepspeed

    # Of shared memory, compiled as the engine is made; gloo serves as well.
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    inputs = torch.randn(48, 8, generator=torch.Generator().manual_seed(0))
    labels = (inputs[:, 0] > 0).long()
    config = {
        "train_micro_batch_size_per_gpu": 4,
        "zero_optimization": {"stage": stage},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }

    def train(last, ours=True, keep=1.0, save=None, load=False):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
        optimizer = torch.optim.AdamW(model.parameters(), 0.01)
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
        state = emp.EMPState(48)
        sampler, losses, step = emp.EMPSampler(state, keep), [], 0
        data = emp.IndexedDataset(torch.utils.data.TensorDataset(inputs, labels))
        loader = torch.utils.data.DataLoader(data, batch_size=4, sampler=sampler)
        if load:
            _, saved = engine.load_checkpoint(folder)
            state.load_state_dict(saved["emp"])
            sampler.load_state_dict(saved["sampler"])
            step = saved["step"]
        while True:
            for ids, (x, y) in loader:
                logits = engine(x)
                if ours:
                    loss = emp.cross_entropy(logits, y, state, indices=ids)
                else:
                    loss = F.cross_entropy(logits, y)
                engine.backward(loss)
                engine.step()
                losses.append(loss.item())
                step += 1
                if step == save:
                    emp.distributed.sync(state)
                    saved = {"emp": state.state_dict(), "sampler": sampler.state_dict()}
                    engine.save_checkpoint(folder, client_state=saved | {"step": step})
                if step == last:
                    return losses

    return (
        train(10, ours=False),
        train(10),
        train(10, keep=0.5, save=8),
        train(10, keep=0.5, load=True),
    )


@pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed")
@pytest.mark.parametrize("stage", [1, 3])
def test_deepspeed_trains_with_our_loss_and_goes_on(stage, tmp_path):
    found = on_ranks(2, deepspeed_losses, stage, str(tmp_path))
    for stock, ours, whole, rest in found:
        assert ours == pytest.approx(stock, rel=1e-6)
        assert rest == whole[8:]
        assert whole[:6] == ours[:6]  # the first epoch draws everything
