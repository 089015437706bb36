"""The shuffle of an epoch's ids."""

import torch


def shuffle(ids: torch.Tensor, seed: int) -> torch.Tensor:
    """The ids (K,) int64 in an order that depends on K and `seed` (64 bits) alone; csrc/cpu/
    shuffle.h says how."""
    n = ids.shape[0]
    bits = min(16, (n // 2048).bit_length() - 1) if n >= 2**19 else 0
    lane = 8 if bits <= 8 else 16
    words = _draws(seed, -(-n * lane // 64))[:, None] >> torch.arange(0, 64, lane, device="cpu")
    bucket = (words & (2**lane - 1)).reshape(-1)[:n] >> (lane - bits)
    words = _draws(seed + 1, -(-n // 2))[:, None] >> torch.tensor([0, 32], device="cpu")
    random = (words & (2**32 - 1)).reshape(-1)[:n].tolist()

    order = bucket.argsort(stable=True).tolist()
    end = 0
    for size in torch.bincount(bucket, minlength=1 << bits).tolist():
        start, end = end, end + size
        for place in range(start, end):
            other = start + (random[place] * (place - start + 1) >> 32)
            order[place], order[other] = order[other], order[place]
    return ids[torch.tensor(order, dtype=torch.int64, device="cpu")]


def _draws(seed: int, count: int) -> torch.Tensor:
    """The first `count` elements of the splitmix64 stream `seed`, as int64 bits."""

    def signed(x: int) -> int:
        return (x + 2**63) % 2**64 - 2**63

    def mixed(z: torch.Tensor, shift: int) -> torch.Tensor:
        return z ^ ((z >> shift) & (2 ** (64 - shift) - 1))

    z = torch.arange(1, count + 1, device="cpu") * signed(0x9E3779B97F4A7C15) + signed(seed)
    z = mixed(z, 30) * signed(0xBF58476D1CE4E5B9)
    z = mixed(z, 27) * signed(0x94D049BB133111EB)
    return mixed(z, 31)
