"""A fuzzer of the public functions: `python -m tests.fuzz --seconds 60 --seed 7`, or `make fuzz`.

A case is generated from its seed, kind and number alone, so that the command printed with a failure
reproduces it. Kinds are functions of a Case; a failure is any exception that they raise, or a
process that dies.
"""
