"""Trainings that are killed at random moments and go on from their last checkpoint.

    python -m kills          # in tests/: 200 kills and a table; `make kill-test`

`task` is what is trained, `loops` are the loops that train it, `life` is one process of a training
from its start to its death, `killing` starts and kills, `compare` reads what was trained.
"""
