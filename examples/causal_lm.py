"""Fine-tuning a causal language model in the Hugging Face Trainer, on selected tokens.

    python examples/causal_lm.py

The first epoch trains all sequences, each later one the half with the highest mean score. The loss
of a batch is the mean over the 60 % of its tokens with the highest scores; the model reads the
others without training on them. Training on selected tokens is what Rho-1 (arXiv 2404.07965) does;
it ranks them by how far the loss exceeds a reference model's, and here there is no other model: the
score is loss + entropy. No logits are materialised: the loss and the scores come from the last
hidden states and the output head's weight. TRL's SFTTrainer works in place of the Trainer: `class
PruningTrainer(EMPTrainerMixin, trl.SFTTrainer)`.
"""

import tempfile

import torch
import transformers

from emp_kernels.integrations.transformers import EMPTrainerMixin


class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
    pass


def sequences(n: int = 200, length: int = 24) -> list[dict]:
    """A prompt of one token, which is not trained, followed by tokens that a fixed rule generates,
    with every eighth token replaced by noise."""
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 50, (n, length), generator=generator)
    for t in range(1, length):
        if t % 8:
            tokens[:, t] = (7 * tokens[:, t - 1] + 3) % 50
    return [
        {"input_ids": row, "labels": torch.cat([torch.tensor([-100]), row[1:]])} for row in tokens
    ]


def main() -> None:
    transformers.set_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=50,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=4,
            per_device_train_batch_size=10,
            gradient_accumulation_steps=2,
            learning_rate=3e-2,
            logging_strategy="epoch",
            save_strategy="epoch",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = PruningTrainer(
            model,
            arguments,
            train_dataset=sequences(),
            keep=0.5,  # of the sequences, from the second epoch on
            keep_tokens=0.6,  # of each batch's tokens
            materialise_logits=False,
        )
        trainer.train()
    found = trainer.emp_state.diagnostics()
    print(f"{trainer.state.global_step} steps; shares {found.windows[:, 0].tolist()}")


if __name__ == "__main__":
    main()
