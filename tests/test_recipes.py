"""The recipes of docs: each recipe runs as written and equals the described loss in float64."""

import re
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import emp_kernels as emp

PAGE = (Path(__file__).resolve().parents[1] / "docs/howto/recipes.md").read_text(encoding="utf-8")
RECIPES = dict(re.findall(r"^## ([^\n]+)\n.*?^```python\n(.*?)^```$", PAGE, re.M | re.S))


def given():
    """What the page says is there."""
    generator = torch.Generator().manual_seed(1)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    head = torch.nn.Linear(5, 13, bias=False)
    head.weight.data = normal(13, 5)
    hidden = 2 * normal(4, 6, 5)
    tokens = torch.randint(13, (4, 6), generator=generator)
    tokens[:, -2:] = -100
    return {
        "emp": emp,
        "torch": torch,
        "hidden": hidden,
        "head": head,
        "logits": hidden @ head.weight.detach().t(),
        "tokens": tokens,
        "logit_scale": 0.0625,
        "images": normal(8, 3),
        "labels": torch.randint(3, (8,), generator=generator),
        "partner": torch.randperm(8, generator=generator),
        "share": 0.3,
        "state": emp.EMPState(8),
        "drawn_weight": torch.rand(8, generator=generator) + 0.5,
        "old_log_prob": -2 - torch.rand(4, 6, generator=generator),
        "advantage": normal(4, 6),
    }


def tokens_loss(g, z):
    return F.cross_entropy(z.double().view(-1, 13), g["tokens"].view(-1))


def selected(g):
    capped = (30 * torch.tanh(g["logits"].double() / 30))[g["tokens"] >= 0]  # 16 of them
    log_p, labels = capped.log_softmax(1), g["tokens"][g["tokens"] >= 0]
    losses = F.nll_loss(log_p, labels, reduction="none")
    scores = losses - (log_p.exp() * log_p).sum(1)
    return losses[scores.topk(5).indices].mean()


def z_loss(g):
    lse = g["logits"].double().logsumexp(2)[g["tokens"] >= 0]
    return tokens_loss(g, g["logits"]) + 1e-4 * lse.square().mean()


def mixup(g):
    onehot = F.one_hot(g["labels"], 3).double()
    mixed = 0.3 * onehot + 0.7 * onehot[g["partner"]]
    return F.cross_entropy(g["images"].double(), mixed, label_smoothing=0.1)


def log_probs(g, temperature=1.0):
    log_p = (g["logits"].double() / temperature).log_softmax(2)
    return log_p, log_p.gather(2, g["tokens"].clamp(min=0)[..., None])[..., 0]


def policy(g):
    log_p, chosen = log_probs(g, 0.7)
    entropy = -(log_p.exp() * log_p).sum(2)
    ratio = (chosen - g["old_log_prob"]).exp()
    surrogate = torch.minimum(ratio * g["advantage"], ratio.clamp(0.8, 1.2) * g["advantage"])
    return -(surrogate + 0.01 * entropy)[g["tokens"] >= 0].mean()


def rare(g):
    counts = torch.bincount(g["labels"], minlength=3).clamp(min=1)
    weight = (8 / (3 * counts)).double()
    losses = F.cross_entropy(g["images"].double(), g["labels"], weight, reduction="none")
    return (losses * g["drawn_weight"]).sum() / weight[g["labels"]].sum()


WANTED = {
    "Gemma: capped logits": lambda g: tokens_loss(g, 30 * torch.tanh(g["logits"].double() / 30)),
    "Gemma: selected tokens": selected,
    "Cohere and Granite: scaled logits": lambda g: tokens_loss(g, 0.0625 * g["logits"]),
    "PaLM: z-loss": z_loss,
    "Label smoothing with mixup": mixup,
    "PPO and GRPO with an entropy bonus": policy,
    "GRPO: log-probabilities in micro-batches": lambda g: log_probs(g)[1] * (g["tokens"] >= 0),
    "Fine-tuning where classes are rare": rare,
}


def test_every_recipe_is_checked():
    assert list(RECIPES) == list(WANTED)


@pytest.mark.parametrize("name", WANTED)
def test_recipe(name):
    names = given()
    exec(RECIPES[name], names)
    found = names["log_prob"] if "log_prob" in names else names["loss"]
    torch.testing.assert_close(found.double(), WANTED[name](names).double(), rtol=1e-5, atol=1e-5)
    assert found.shape == WANTED[name](names).shape
    if "rare" in name:
        assert (names["state"].updates == 1).all()
