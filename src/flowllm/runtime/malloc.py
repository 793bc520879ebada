"""Setting of the C library's malloc for long numerical loops on the CPU."""

import ctypes

# Parameters of glibc's mallopt, from its malloc.h.
_M_TRIM_THRESHOLD = -1
_M_TOP_PAD = -2
_M_MMAP_MAX = -4


def keep_freed_memory() -> None:
    """Let this process keep freed memory for its next tensors.

    glibc maps each block above 32 MiB separately and unmaps it when it is freed, so that the kernel
    zeroes the pages of all activations again in each training step. Measured: 14 % to 33 % of the
    CPU time of fine-tuning a small model. Without mallopt (macOS, musl) nothing changes.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return
    mallopt(_M_MMAP_MAX, 0)
    mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)
    mallopt(_M_TOP_PAD, 2**28)
