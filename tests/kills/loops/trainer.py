"""Hugging Face's Trainer with EMPTrainerMixin; a checkpoint after each step."""

import logging
import os
import warnings
from typing import Any

import torch
import transformers
from transformers import TrainerCallback, TrainingArguments

from emp_kernels.integrations.transformers import EMPTrainerMixin

from .. import task
from ..life import Life

transformers.utils.logging.set_verbosity_error()


class Model(task.Net):
    def forward(self, features: torch.Tensor, labels: Any = None) -> dict[str, torch.Tensor]:
        return {"logits": super().forward(features)}


class Trainer(EMPTrainerMixin, transformers.Trainer):
    life: Life

    def compute_loss(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        self.life.now("in a batch")
        self.life.epoch = int(self.state.epoch or 0)
        ids = inputs["sample_ids"]
        loss = super().compute_loss(model, inputs, *arguments, **options)
        self.life.trained(self.accelerator.unwrap_model(model), ids, loss)
        return loss


class Saving(TrainerCallback):
    """Trainer writes `checkpoint-N`, and the mixin into it: both are done as this is called."""

    def __init__(self, life: Life) -> None:
        self.life = life

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.life.begin(getattr(model, "module", model))

    def on_epoch_begin(self, *_: Any, **__: Any) -> None:
        self.life.now("between epochs")

    def on_epoch_end(self, *_: Any, **__: Any) -> None:
        self.life.now("between epochs")

    def on_substep_end(self, *_: Any, **__: Any) -> None:
        self.life.now("before a batch")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.life.now("saving")

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        with self.life.saving() as beside:
            if self.life.rank == 0:
                os.rename(f"{args.output_dir}/checkpoint-{state.global_step}", beside / "trainer")


def train(life: Life) -> None:
    warnings.simplefilter("ignore")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    torch.manual_seed(0)
    model = Model()
    data = [{"features": x, "labels": y} for x, y in task.points()]
    arguments = TrainingArguments(
        output_dir=str(life.folder / "trainer"),
        use_cpu=True,
        num_train_epochs=task.EPOCHS,
        per_device_train_batch_size=task.BATCH_SIZE,
        gradient_accumulation_steps=life.accumulate,
        dataloader_num_workers=life.workers,
        save_strategy="steps",
        save_steps=1,
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        learning_rate=0.3,
        seed=0,
    )
    optimizer = torch.optim.SGD(model.parameters(), 0.3, 0.9)
    trainer = Trainer(
        model,
        arguments,
        train_dataset=data,
        keep=task.KEEP,
        optimizers=(optimizer, None),
        callbacks=[],
    )
    trainer.life = life
    trainer.add_callback(Saving(life))
    folder = life.checkpoint()
    if folder is not None:
        life.now("resuming")
    path = None if folder is None else str(folder / "trainer")
    trainer.train(resume_from_checkpoint=path)
    life.finish(model, trainer.emp_state)
