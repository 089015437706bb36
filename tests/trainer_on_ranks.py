"""Run by torchrun on two ranks: a training of a causal model, resumed from its middle."""

import sys

import torch
import transformers
from trainers import causal_model, texts, trainer_of

from emp_kernels.integrations.transformers import EMPTrainerMixin


class PruningTrainer(EMPTrainerMixin, transformers.Trainer):
    pass


def made(folder):
    arguments = {
        "num_train_epochs": 3,
        "save_strategy": "steps",
        "save_steps": 2,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": 2,
    }
    options = {"keep": 0.5, "keep_tokens": 0.5}
    return trainer_of(
        *(PruningTrainer, folder, causal_model(), texts()), arguments=arguments, **options
    )


def main(folder):
    whole, want = made(f"{folder}/whole")
    whole.train()
    resumed, after = made(f"{folder}/resumed")
    resumed.train(resume_from_checkpoint=f"{folder}/whole/checkpoint-6")
    assert after.losses == want.losses[6:] or whole.args.process_index
    one, other = resumed.emp_state.state_dict(), whole.emp_state.state_dict()
    for name in one:
        assert torch.equal(torch.as_tensor(one[name]), torch.as_tensor(other[name])), name
    steps, state = whole.state.global_step, whole.emp_state
    print(f"rank {whole.args.process_index}: {steps} steps, {int(state.updates.sum())} updates")


if __name__ == "__main__":
    main(sys.argv[1])
    torch.distributed.destroy_process_group()  # its threads may abort a process that ends with them
