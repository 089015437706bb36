"""Triton kernels, how shapes are cut for them (plan), and their launches (launch).

Loaded only by backends/triton/runtime.py, which first makes sure that Triton is there.
"""
