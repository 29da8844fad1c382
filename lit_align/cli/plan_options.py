"""The options of ``plan`` beside the keys of ``fit``; nothing is imported for them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

GIB = 2**30
HARDWARE = {
    "v100-32gb": (32 * GIB, 125e12, 15.7e12),
    "a10-24gb": (24 * GIB, 125e12, 31.2e12),
    "rtx3090-24gb": (24 * GIB, 71e12, 35.6e12),
    "rtx4090-24gb": (24 * GIB, 165e12, 82.6e12),
    "l40s-48gb": (48 * GIB, 362e12, 91.6e12),
    "a100-40gb": (40 * GIB, 312e12, 19.5e12),
    "a100-80gb": (80 * GIB, 312e12, 19.5e12),
    "h100-80gb": (80 * GIB, 989e12, 67e12),
    "h200-141gb": (141 * 10**9, 989e12, 67e12),
}
"""GPU → bytes, and peak operations per second, dense, in bfloat16 and in float32 with TensorFloat-32 off.

From the makers' data sheets. The V100 has no bfloat16; its peak is that of float16.
"""
UTILIZATION = 0.4
"""Share of the peak that a training step reaches by default; 0.3 to 0.5 are usual."""
CPU_UTILIZATION = 0.75
"""The same, of the rate of matrix products that is measured on a CPU: their part in a step of a real model."""


def option_parser() -> argparse.ArgumentParser:
    """Return the parser of the options; it leaves the keys of ``fit`` to others."""
    parser = argparse.ArgumentParser(
        prog="python -m lit_align plan",
        usage="%(prog)s --config FILE [--key value ...] [options]",
        description="Estimate memory, operations and time of a run. The keys are those of fit.",
        allow_abbrev=False,
    )
    above_zero = _number(sys.float_info.max, "a number above 0")
    add = parser.add_argument
    add("--hardware", choices=HARDWARE, metavar="NAME", help=f"GPU: {', '.join(HARDWARE)}")
    add("--memory", type=above_zero, metavar="GIB", help="memory of each GPU, instead of the named one's")
    add("--flops", type=above_zero, help="peak operations per second, instead of the GPU's or the CPU's measured rate")
    add(
        "--utilization",
        type=_number(1, "a share above 0 and at most 1"),
        metavar="SHARE",
        help=f"share of the peak that is reached (default: {UTILIZATION}; {CPU_UTILIZATION} of a CPU's measured rate)",
    )
    add("--lengths", type=_lengths, metavar="PROMPT,RESPONSE", help="tokens of each, instead of the data's")
    add("--architecture", type=Path, metavar="FILE", help="a config.json, instead of those of the named models")
    return parser


def _number(most: float, expected: str) -> Callable[[str], float]:
    """Return a parser of numbers above 0."""

    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = 0.0
        if not 0 < value <= most:
            raise argparse.ArgumentTypeError(f"{text}: expected {expected}")
        return value

    return parse


def _lengths(text: str) -> tuple[int, int]:
    parts = [int(part) for part in text.split(",")] if text.replace(",", "").isdigit() else []
    if len(parts) != 2 or min(parts) < 1:
        raise argparse.ArgumentTypeError(f"{text}: expected two numbers of tokens, such as 256,256")
    return parts[0], parts[1]
