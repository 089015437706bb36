"""A loop a module, with one function `train(life)`; LOOPS names them as the table does."""

from importlib import import_module

LOOPS = {
    "plain": "plain",
    "StatefulDataLoader": "stateful",
    "Trainer": "trainer",
    "Lightning": "lightning_trainer",
    "Accelerate": "accelerated",
}
NEEDS = {  # besides torch
    "StatefulDataLoader": "torchdata",
    "Trainer": "transformers",
    "Lightning": "lightning",
    "Accelerate": "accelerate",
}


def load(loop: str):
    return import_module(f"{__name__}.{LOOPS[loop]}")
