"""Layout of a call's work memory (int32, zero at the start): what programs count and hand on."""

import triton.language as tl

from . import plan

INVALID = tl.constexpr(0)  # rows whose score is NaN
TICKET = tl.constexpr(1)  # programs of the scoring kernel that have finished
# then one of the two: a call on many rows counts digits, a call on few may share rows
HISTOGRAM = tl.constexpr(plan.WORK_SIZE)  # first count of the leading digits
BINS = tl.constexpr(plan.BINS)
ROW_TICKETS = tl.constexpr(plan.WORK_SIZE)  # first count of a row's parts that have finished
