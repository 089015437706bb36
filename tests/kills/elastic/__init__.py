"""Trainings on several ranks under torchrun, whose ranks are killed, and which go on on fewer.

    python -m kills.elastic     # in tests/: 50 kills and a table; `make kill-test-ranks`

`training` is what a rank does from its start to its death, `launching` starts torchrun and kills
ranks and nodes, `compare` reads what was trained.
"""
