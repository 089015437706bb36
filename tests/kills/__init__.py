"""Trainings that are killed at random moments and resume from their last checkpoint.

    python -m kills          # in tests/: 200 kills and a table; `make kill-test`

`task` is the model and data, `loops` are the training loops, `life` is one process of a training
until its end or kill, `killing` starts and kills processes, `compare` evaluates what was trained.
"""
