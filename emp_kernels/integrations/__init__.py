"""Integrations with training frameworks: each module imports its framework and is imported only on
demand. Plain PyTorch needs none of them (examples/plain.py)."""
