"""Tiny transformers models and Trainers, made from configurations without downloads."""

import logging

import torch
import transformers
from transformers import TrainerCallback

transformers.logging.set_verbosity(logging.ERROR)

ARGUMENTS = {
    "per_device_train_batch_size": 8,
    "num_train_epochs": 4,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": [],
    "use_cpu": True,
    "disable_tqdm": True,
    "learning_rate": 1e-3,
    "dataloader_pin_memory": False,
}


class Recorder(TrainerCallback):
    """Every training loss with its step, and the learning rates."""

    def __init__(self):
        self.losses, self.rates = [], []

    def on_log(self, args, state, control, logs=None, **options):
        if "loss" in logs:
            self.losses.append((state.global_step, logs["loss"]))
            self.rates.append(logs["learning_rate"])


def classifier(**config):
    torch.manual_seed(1)
    return transformers.BertForSequenceClassification(
        transformers.BertConfig(
            **{
                "vocab_size": 30,
                "hidden_size": 16,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "intermediate_size": 16,
                "num_labels": 3,
            }
            | config
        )
    )


def sentences(n=50, key="labels", **columns):
    """Token ids (6,), and their sum modulo 3 under `key`; the same `columns` in each."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(1, 30, (n, 6), generator=generator)
    return [{"input_ids": row, key: row.sum() % 3} | columns for row in tokens]


def causal_model(kind="Llama", **config):
    torch.manual_seed(1)
    small = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 16}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 2}
    if kind == "GPT2":
        small = {"vocab_size": 40, "n_embd": 16, "n_inner": 16, "n_positions": 64}
        layers = {"n_layer": 1, "n_head": 2}
    ends = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    made = getattr(transformers, f"{kind}Config")(**(small | layers | ends | config))
    head = "GPT2LMHeadModel" if kind == "GPT2" else f"{kind}ForCausalLM"
    return getattr(transformers, head)(made)


def texts(n=40, longest=12):
    """Sequences of random lengths, padded; the padding's and the first three tokens' labels (a
    prompt's) are -100."""
    generator = torch.Generator().manual_seed(0)
    found = []
    for _ in range(n):
        length = int(torch.randint(5, longest + 1, (), generator=generator))
        tokens = torch.randint(3, 40, (length,), generator=generator)
        row = {"input_ids": torch.zeros(longest, dtype=torch.int64)}
        row["input_ids"][:length] = tokens
        row["attention_mask"] = (torch.arange(longest) < length).long()
        row["labels"] = torch.full((longest,), -100)
        row["labels"][3:length] = tokens[3:]
        found.append(row)
    return found


def trainer_of(cls, folder, model, data, *, arguments=None, callbacks=(), **options):
    """A trainer of `cls`, with its Recorder."""
    recorder = Recorder()
    made = transformers.TrainingArguments(str(folder), **(ARGUMENTS | (arguments or {})))
    trainer = cls(
        model=model,
        args=made,
        train_dataset=data,
        callbacks=[recorder, *callbacks],
        **options,
    )
    return trainer, recorder
