"""A fuzzer of the public functions: `python -m tests.fuzz --seconds 60 --seed 7`, or `make fuzz`.

A case is named by its seed, its kind and its number, and makes everything from these three, so that
the command printed with a failure makes the same case again. Kinds are functions of a Case; a fault
is any exception that they raise, and a process that dies.
"""
