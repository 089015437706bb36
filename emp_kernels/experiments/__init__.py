"""Small training runs that compare pruning methods: the harness of the demo, of `bench/methods` and
of examples. Not part of the public API."""
