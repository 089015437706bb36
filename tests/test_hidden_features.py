"""HiddenFeatures: a named submodule's output, with any wrapper, without changing the model."""

import copy
import io
import pickle
from types import MappingProxyType

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import emp_kernels as emp


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.layer3 = nn.Sequential(nn.ReLU(), nn.Conv2d(8, 12, 3))
        self.head = nn.Linear(12, 5)

    def forward(self, x):
        return self.head(self.layer3(self.stem(x)).relu_().mean((2, 3)))


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    return Encoder()


def images(n=4, seed=0):
    return torch.randn(n, 1, 8, 8, generator=torch.Generator().manual_seed(seed))


def expected(encoder, x):
    return encoder.layer3(encoder.stem(x)).mean((2, 3)).detach()


def test_each_pass_is_captured_and_the_model_is_unchanged(encoder):
    x1, x2 = images(), images(3, 1)
    want, keys = encoder(x1), list(encoder.state_dict())
    with emp.HiddenFeatures(encoder, "layer3") as features:
        got = encoder(x1)
        encoder(x2)
        last, taken = features.last, features.take()
        assert len(taken) == 2
        assert last is taken[1]
        assert features.take() == ()
        got.sum().backward()
    torch.testing.assert_close(taken[0], expected(encoder, x1))
    torch.testing.assert_close(taken[1], expected(encoder, x2))
    assert torch.equal(got, want)
    assert not taken[0].requires_grad
    assert encoder.stem.weight.grad is not None
    assert list(encoder.state_dict()) == keys
    encoder(x1)
    assert features.take() == ()
    with pytest.raises(RuntimeError, match="HiddenFeatures: 'layer3' has captured nothing"):
        features.last  # noqa: B018


def test_the_hook_goes_when_the_body_raises(encoder):
    features = emp.HiddenFeatures(encoder, "stem")
    with pytest.raises(KeyError), features:
        raise KeyError
    encoder(images())
    assert features.take() == ()


class Checkpointed(nn.Module):
    """Its first layer runs twice per pass and, checkpointed, again in the backward pass."""

    def __init__(self, reentrant):
        super().__init__()
        self.layer, self.head, self.reentrant = nn.Linear(4, 4), nn.Linear(4, 1), reentrant

    def forward(self, x):
        for _ in range(2):
            x = checkpoint(lambda x: self.layer(x).relu(), x, use_reentrant=self.reentrant)
        return self.head(x)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_layer_that_runs_again_in_the_backward_pass(reentrant):
    model = Checkpointed(reentrant)
    x = torch.randn(3, 4, requires_grad=True)
    first = model.layer(x)
    second = model.layer(first.relu())
    with emp.HiddenFeatures(model, "layer") as features:
        for _ in range(2):
            model(x).sum().backward()
            for got, want in zip(features.take(), (first, second), strict=True):
                assert torch.equal(got, want)
    assert x.grad is not None


def test_features_of_a_pass_that_failed_stay_until_they_are_taken(encoder):
    class Broken(nn.Module):
        def forward(self, x):
            raise KeyError("broken")

    head, encoder.head = encoder.head, Broken()
    with emp.HiddenFeatures(encoder, "layer3") as features:
        with pytest.raises(KeyError, match="broken"):
            encoder(images())
        assert len(features.take()) == 1
        encoder.head = head
        encoder(images())
        assert len(features.take()) == 1
        encoder.layer3.insert(0, Broken())
        with pytest.raises(KeyError, match="broken"):
            encoder(images())
        assert features.take() == ()


@pytest.fixture
def compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield torch._dynamo.utils.counters
    torch._dynamo.reset()


def test_torch_compile(encoder, compiler):
    compiled = torch.compile(encoder, backend="aot_eager")
    x1, x2 = images(), images(seed=1)
    wants = [expected(encoder, x) for x in (x1, x2)]
    graphs = set()
    with emp.HiddenFeatures(compiled, "layer3") as features:
        for _ in range(4):
            compiled(x1), compiled(x2)
            for h, want in zip(features.take(), wants, strict=True):
                torch.testing.assert_close(h, want)
                assert not h.requires_grad
            graphs.add(compiler["stats"]["unique_graphs"])
    assert len(graphs) == 1  # nothing is compiled again
    assert graphs.pop() >= 2


def test_a_whole_graph_is_refused(encoder, compiler):
    compiled = torch.compile(encoder, backend="eager", fullgraph=True)
    with (
        emp.HiddenFeatures(compiled, "layer3"),
        pytest.raises(torch._dynamo.exc.Unsupported, match=r"torch\.compiler\.disable|Skip"),
    ):
        compiled(images())


def test_compiled_before_it_was_captured(encoder, compiler):
    compiled = torch.compile(encoder, backend="eager")
    compiled(images())
    with emp.HiddenFeatures(compiled, "layer3") as features:
        compiled(images())
        with pytest.raises(RuntimeError, match="captured before its first call"):
            features.last  # noqa: B018
        torch._dynamo.reset()
        compiled(images())
        assert features.last.shape == (4, 12)


def on_a_rank(rank, world):
    torch.manual_seed(0)
    encoder = Encoder()
    model = DistributedDataParallel(encoder)
    z = torch.randn(4, 3, generator=torch.Generator().manual_seed(rank))
    own = images(seed=rank)
    with emp.HiddenFeatures(model, "layer3") as features:
        for _ in range(2):
            model(own).sum().backward()
        h1, h2 = features.take()
    torch.testing.assert_close(h1, expected(encoder, own))
    assert torch.equal(h1, h2)
    named = emp.HiddenFeatures(model, "module.layer3")
    model(own)
    assert torch.equal(named.last, h1)
    scores = emp.score_contrastive(z, z, hidden=(h1, h2), group=dist.group.WORLD)
    return encoder.stem.weight.grad is not None, scores.entropy.isfinite().tolist()


def test_distributed_data_parallel():
    assert on_ranks(2, on_a_rank) == [(True, [True] * 4)] * 2


class Gives(nn.Module):
    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self):
        return self.output


def test_outputs_of_every_shape():
    def captured(output, **options):
        model = Gives(output)
        with emp.HiddenFeatures(model, "", **options) as features:
            model()
        return features.last

    x = torch.randn(2, 3, 4, 5, 6)
    assert torch.equal(captured(x), x.flatten(2).mean(2))
    assert torch.equal(captured(x[0]), x[0].flatten(2).mean(2))
    assert torch.equal(captured(x[0, 0]), x[0, 0].mean(1))
    flat = x[0, 0, 0]
    assert torch.equal(captured(flat), flat)
    assert captured(flat).data_ptr() != flat.data_ptr()
    assert torch.equal(captured((flat, x)), flat)
    assert torch.equal(captured({"last_hidden_state": x[0, 0], "other": 1}), x[0, 0].mean(1))
    assert torch.equal(captured(MappingProxyType({"first": flat, "second": x})), flat)
    assert captured(x.bfloat16()).dtype == torch.bfloat16
    assert torch.equal(captured(x[0, 0], pool=lambda h: h[:, 0]), x[0, 0, :, 0])
    assert captured(flat, pool=lambda h: h).data_ptr() != flat.data_ptr()
    for pool, text in (
        (lambda h: h.tolist(), "list"),
        (lambda h: None, "NoneType"),
        (lambda h: h[0], r"torch\.float32 of shape \(6,\)"),
    ):
        with pytest.raises(ValueError, match=rf"pool must return a tensor \(B, C\), got {text}"):
            captured(flat, pool=pool)
    for output, text in (
        (x[0, 0, 0, 0], r"2 to 5 dimensions, got shape \(6,\)"),
        (x[None], "2 to 5 dimensions"),
        ((), "hold a tensor, got tuple"),
        ("text", "hold a tensor, got str"),
        (None, "hold a tensor, got NoneType"),
    ):
        with pytest.raises(ValueError, match=f"HiddenFeatures: the output of '' must.*{text}"):
            captured(output)


def test_bad_arguments(encoder):
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got int"):
        emp.HiddenFeatures(3, "layer3")
    with pytest.raises(TypeError, match="name must be a str, got int"):
        emp.HiddenFeatures(encoder, 3)
    with pytest.raises(TypeError, match="pool must be callable or None, got str"):
        emp.HiddenFeatures(encoder, "layer3", pool="mean")
    with pytest.raises(ValueError, match=r"must be of a submodule, got 'layer4'; .* 'stem'"):
        emp.HiddenFeatures(encoder, "layer4")
    with pytest.raises(ValueError, match="got 'layer4'; the model has 'stem'"):
        emp.HiddenFeatures(DistributedDataParallelLike(encoder), "layer4")


class DistributedDataParallelLike(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, x):
        return 2 * self.module(x)


def test_the_model_itself(encoder, compiler):
    """The name "" is of what was given, not what an attribute of it happens to be called."""
    outer = DistributedDataParallelLike(encoder)
    for model, want in (
        (outer, 2 * encoder(images())),
        (torch.compile(encoder, backend="eager"), encoder(images())),
    ):
        with emp.HiddenFeatures(model, "") as features:
            assert model(images()).shape == want.shape
        assert torch.equal(features.last, want)


def test_a_copy_of_the_model_captures_nothing(encoder):
    x = images()
    with emp.HiddenFeatures(encoder, "layer3") as features:
        average = copy.deepcopy(encoder)
        saved = io.BytesIO()
        torch.save(encoder, saved)
        saved.seek(0)
        for other in (average, torch.load(saved, weights_only=False)):
            torch.testing.assert_close(other(x), encoder(x))
            torch.testing.assert_close(other(x), encoder(x))
        assert len(features.take()) == 4


@pytest.mark.parametrize("through", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_a_copy_with_its_model_captures_the_copy(through, encoder):
    want = expected(encoder, images(3, 1))
    features = emp.HiddenFeatures(encoder, "layer3")
    encoder(images())
    other, copied = through((encoder, features))
    assert torch.equal(copied.last, features.last)
    copied.take()
    other(images(3, 1))
    torch.testing.assert_close(copied.last, want)
    assert len(copied.take()) == len(features.take()) == 1
    copied.close()
    other(images())
    assert copied.take() == ()
    encoder(images())
    assert len(features.take()) == 1
    features.close()
    closed = through(features)
    encoder(images())
    assert closed.take() == ()


def test_a_submodule_of_several_names(encoder):
    encoder.tied = encoder.layer3
    x = images()
    with emp.HiddenFeatures(encoder, "tied") as features:
        encoder(x)
        encoder.tied(encoder.stem(x))
        first, second = features.take()
    torch.testing.assert_close(first, expected(encoder, x))
    assert torch.equal(first, second)
    assert emp.HiddenFeatures(encoder, "layer3").take() == ()
