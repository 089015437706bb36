"""Exponentials and logarithms in float32 that keep their relative accuracy near zero.

Every sum of exponentials is scaled by 2^48, because a GPU's exp2 flushes subnormals: scaled, exp(d)
is normal down to d = -120, and what is lost below adds up to less than half the smallest subnormal
even for 2^18 classes. Squares and products of such sums stay below 2^127.
"""

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LOG2_SCALE = tl.constexpr(48.0)
SCALE = tl.constexpr(2.0**48)
UNSCALE = tl.constexpr(2.0**-48)
FLOOR = tl.constexpr(-144.0)  # replaces -inf: exp_scaled(FLOOR) and 0 * FLOOR are 0
LARGEST = tl.constexpr(3.4028234663852886e38)
INF = tl.constexpr(float("inf"))


@triton.jit
def exp_scaled(d, COMPENSATED: tl.constexpr):
    """2^48 exp(d) for d in [-144, 0]; 2^48 at 0 and 0 at -144.

    y = d log2(e) + 48 has a rounding error of up to 2e-6, which is d - (y - 48) ln 2. COMPENSATED
    multiplies by 1 + that. Without it, three operations are saved and a term's error is up to
    1.4e-6 near d = 0 and below 8e-6 down to -120.
    """
    y = tl.fma(d, LOG2E, LOG2_SCALE)
    e = tl.exp2(y)
    if COMPENSATED:
        e = tl.fma(e, tl.fma(y - LOG2_SCALE, -LN2, d), e)
    return e


@triton.jit
def log1p(u):
    """log(1 + u) for finite u >= 0, within 2 ulp, down to the smallest u.

    1 + u = 2^k f with f in [sqrt(1/2), sqrt(2)); log f = 2 atanh(v / (2 + v)) with v = f - 1,
    and v is u itself where k = 0.
    """
    bits = (1.0 + u).to(tl.int32, bitcast=True)
    k = (bits - 0x3F3504F3) >> 23
    f = (bits - (k << 23)).to(tl.float32, bitcast=True)
    v = tl.where(k == 0, u, f - 1.0)
    w = tl.div_rn(2.0, 2.0 + v)
    s = 0.5 * v * w
    ss = s * s
    series = tl.fma(ss, tl.fma(ss, tl.fma(ss, tl.fma(ss, 1 / 9, 1 / 7), 1 / 5), 1 / 3), 1.0)
    return tl.fma(k.to(tl.float32), LN2, v * (w * series))


# Whether kernels are NVIDIA's machine code, and may say in its assembly how a register's two 16-bit
# values are worked on: the interpreter runs none, and AMD's GPUs another one.
NVIDIA = tl.constexpr(
    isinstance(exp_scaled, triton.runtime.jit.JITFunction) and torch.version.hip is None
)
