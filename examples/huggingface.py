"""EMP pruning in the Hugging Face Trainer: put the mixin before Trainer.

    python examples/huggingface.py

The first epoch trains all samples, to score them, the next three the 30 % with the highest scores.
The last trains all again (`anneal_epochs`): only hard samples to the end would leave a model
trained on another distribution than the data's.

Checkpoints hold the scores and the epoch's order: trainer.train(resume_from_checkpoint=True)
resumes in mid-epoch.
"""

import tempfile

import torch
import transformers

from emp_kernels.integrations.transformers import EMPTrainerMixin


class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
    pass


def sentences(n: int = 240) -> list[dict]:
    """Token ids (8,), and which of the first two tokens is larger."""
    tokens = torch.randint(1, 40, (n, 8), generator=torch.Generator().manual_seed(0))
    return [{"input_ids": row, "labels": (row[0] > row[1]).long()} for row in tokens]


def main() -> None:
    transformers.set_seed(0)
    model = transformers.BertForSequenceClassification(
        transformers.BertConfig(
            vocab_size=40,
            hidden_size=32,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
        )
    )
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            folder,
            num_train_epochs=5,
            per_device_train_batch_size=16,
            learning_rate=5e-3,
            save_strategy="epoch",
            logging_strategy="epoch",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = PruningTrainer(
            model,
            arguments,
            train_dataset=sentences(),
            keep=0.3,
            sampler_options={"anneal_epochs": 1},  # the last epoch trains all samples
        )
        trainer.train()
    found = trainer.emp_state.diagnostics()
    print(f"{trainer.state.global_step} steps; shares {found.windows[:, 0].tolist()}")


if __name__ == "__main__":
    main()
