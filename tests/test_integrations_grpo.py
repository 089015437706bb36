"""TRL's GRPOTrainer with the head of examples/grpo.py: it trains as with TRL's own, whose names
stand in that file alone."""

import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

trl = pytest.importorskip("trl", reason="TRL is not installed: pip install trl")

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def grpo(monkeypatch):
    monkeypatch.setenv("CI", "1")  # TRL tells nobody of what it trains in tests
    monkeypatch.syspath_prepend(str(EXAMPLES))
    monkeypatch.delitem(sys.modules, "grpo", raising=False)
    import grpo

    return grpo


def test_the_release_is_the_one_that_the_page_names():
    page = EXAMPLES.parent / "docs/howto/policy.md"
    assert f"TRL {version('trl').rsplit('.', 1)[0]}" in page.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "options",
    [
        {"entropy_coef": 0.05, "top_entropy_quantile": 0.6},
        {"num_iterations": 2, "loss_type": "grpo", "scale_rewards": "none"},
    ],
    ids=["entropy bonus, most uncertain tokens", "several updates"],
)
def test_it_trains_as_with_trls_own_head(grpo, monkeypatch, options):
    options |= {"max_steps": 4}
    theirs, want, _ = grpo.train(ours=False, **options)
    calls = []
    head = grpo.emp.linear_log_prob_and_entropy
    monkeypatch.setattr(
        *(grpo.emp, "linear_log_prob_and_entropy"),
        lambda *given, **named: calls.append(named["temperature"]) or head(*given, **named),
    )
    ours, found, _ = grpo.train(ours=True, **options)
    assert set(calls) == {0.9}
    assert len(calls) >= len(ours) == 4
    assert ours == pytest.approx(theirs, rel=1e-4, abs=1e-5)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_one_call_gives_what_trls_own_head_gives(grpo):
    """Values and gradients, with another weight for each token's; prompts and padding are zero."""
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2}
    model = grpo.Qwen2ForCausalLM(grpo.Qwen2Config(vocab_size=50, **shape, **heads))
    tokens = torch.randint(50, (3, 9))
    labels = tokens.clone()
    labels[0, :4] = labels[1, 7:] = labels[2] = -100
    up = torch.randn(2, 3, 8)
    found = []
    for replace in (False, True):
        trl.trainer.utils.add_fused_lm_head(model, 0.7, outputs=("log_probs", "entropy"))
        if replace:
            grpo.use_emp_head(model, 0.7)
        out = model(tokens, labels=labels, fused_lm_head=True)
        loss = out.loss + (up[0] * out.log_probs + up[1] * out.entropy).sum()
        gradients = torch.autograd.grad(loss, list(model.parameters()))
        found.append((out.loss, out.log_probs, out.entropy, *gradients))
        assert torch.equal(out.label_mask, labels[:, 1:] != -100)
        assert model(tokens).logits.shape == (3, 9, 50)
    for ours, theirs in zip(*found[::-1], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
