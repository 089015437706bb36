"""Triton kernels, their launch configurations (plan) and launches (launch).

Loaded only by backends/triton/runtime.py, after checking that Triton is available.
"""
