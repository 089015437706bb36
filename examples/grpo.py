"""TRL's GRPOTrainer with EMP's log-probabilities in the place of its own output head.

    pip install trl
    python examples/grpo.py

The policy's log-probabilities and entropies, with gradients, come from the last hidden states and
the head's weight by `emp.linear_log_prob_and_entropy`: no logits are made, as with TRL's own head.
A tiny model, made here, learns to write the letter a.
"""

from __future__ import annotations

import functools
import tempfile
import warnings

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM
from trl import GRPOConfig, GRPOTrainer
from trl.trainer.utils import FusedCausalLMOutput

import emp_kernels as emp

LETTERS = ["<pad>", "<end>", "<unk>", *"abcdefghijklmnopqrstuvwxyz "]


def use_emp_head(model: torch.nn.Module, temperature: float) -> None:
    """What TRL asks of a model, ``model(..., labels=labels, fused_lm_head=True)``, from EMP."""
    theirs = model.forward

    @functools.wraps(theirs)  # generate() looks at the names of its arguments
    def forward(*args, fused_lm_head=False, labels=None, **inputs):
        if not fused_lm_head:
            return theirs(*args, labels=labels, **inputs)
        inputs["use_cache"] = False
        hidden = model.base_model(*args, **inputs).last_hidden_state[:, :-1]
        head, labels = model.get_output_embeddings(), labels[:, 1:]
        found = emp.linear_log_prob_and_entropy(
            hidden,
            head.weight,
            labels,
            bias=head.bias,
            temperature=temperature,
            ignore_index=-100,
        )
        mask = labels != -100
        return FusedCausalLMOutput(
            loss=-found.log_prob.sum() / mask.sum().clamp(min=1),
            log_probs=found.log_prob,
            entropy=found.entropy,
            label_mask=mask,
        )

    model.forward = forward


def tokenizer() -> PreTrainedTokenizerFast:
    """A token a letter."""
    words = {letter: i for i, letter in enumerate(LETTERS)}
    plain = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    return PreTrainedTokenizerFast(
        tokenizer_object=plain,
        pad_token="<pad>",
        eos_token="<end>",
        unk_token="<unk>",
        padding_side="left",
    )


def reward(completions: list[str], **_: object) -> list[float]:
    return [float(text.count("a")) for text in completions]


def train(ours: bool, **options: object) -> tuple[list[float], torch.Tensor, list[float]]:
    """The losses of the steps, the weights behind the last one, and the mean rewards."""
    torch.manual_seed(0)
    shape = Qwen2Config(
        vocab_size=len(LETTERS),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    with tempfile.TemporaryDirectory() as folder:
        settings = {
            "per_device_train_batch_size": 16,
            "num_generations": 8,
            "max_completion_length": 8,
            "max_steps": 15,
            "learning_rate": 1e-2,
            "temperature": 0.9,
            "logging_steps": 1,
            "save_strategy": "no",
            "report_to": [],
            "use_cpu": True,
            "bf16": False,
            "gradient_checkpointing": False,
            "disable_tqdm": True,
            "seed": 3,
        }
        trainer = GRPOTrainer(
            model=Qwen2ForCausalLM(shape),
            reward_funcs=reward,
            args=GRPOConfig(folder, **settings | options),
            train_dataset=Dataset.from_dict({"prompt": ["abc ", "dogs ", "xyz ", "to "] * 8}),
            processing_class=tokenizer(),
        )
        if ours:
            use_emp_head(trainer.model, trainer.temperature)  # new
        trainer.train()
    steps = [row for row in trainer.state.log_history if "loss" in row]
    weights = torch.cat([p.detach().flatten() for p in trainer.model.parameters()])
    rewards = [row["reward"] for row in steps if "reward" in row]  # of new completions
    return [row["loss"] for row in steps], weights, rewards


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    _, theirs, _ = train(ours=False)
    _, ours, rewards = train(ours=True)
    same = torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
    first, last = sum(rewards[:3]) / 3, sum(rewards[-3:]) / 3
    print(f"letters a: {first:.1f} before, {last:.1f} after {len(rewards)} steps")
    print(f"the weights are those of TRL's own head: {same}")
