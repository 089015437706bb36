"""Runs every kernel on small inputs, for compute-sanitizer: `python -m bench.gpu.sanitized`."""

import torch

import emp_kernels as emp
from emp_kernels import backends


def main() -> None:
    if not torch.cuda.is_available():
        print("bench.gpu.sanitized: no CUDA GPU here; nothing was run")
        return
    generator = torch.Generator(device="cuda").manual_seed(0)
    for n, classes in ((40, 10), (9, 1001), (3, 20000), (4500, 3)):
        logits = torch.randn(n, classes, device="cuda", generator=generator)
        labels = torch.randint(classes, (n,), device="cuda", generator=generator)
        labels[0], labels[1] = -5, classes  # out of range: must not be read
        state = emp.EMPState(n, device="cuda")
        ids = torch.randint(n, (n,), device="cuda", generator=generator)
        for kind in (torch.float32, torch.bfloat16):
            emp.sample_statistics(logits.to(kind), labels)
            emp.score_and_select(logits.to(kind), labels, state, 0.3, indices=ids)
        emp.score_and_select(logits, labels, state, 0.3, ignore_index=2)
        kept = emp.select(state.score, 0.5)
        emp.gather([logits, labels], kept)
    scores = torch.randn(10000, device="cuda", generator=generator)
    for name in ("triton", "cuda"):
        try:
            backends.load(name)
        except backends.Unavailable:
            continue
        emp.select(scores, 0.3, backend=name)
    torch.cuda.synchronize()


if __name__ == "__main__":
    main()
