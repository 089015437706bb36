"""Glue to training frameworks: each module imports its framework, and is imported by whom it
serves. Plain PyTorch needs none of it (examples/plain.py)."""
