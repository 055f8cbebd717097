"""Mixes weights of several trainings that began with the same ones.

    python3 models/train/mix.py OUT SHARE:FILE SHARE:FILE [...]

Each FILE is a BF16 safetensors file with the same tensors; OUT gets the sum of SHARE times its tensors, in BF16, and
config.json. Shares must add up to 1. Trainings that go on from each other stay close enough for their mean to be a model,
often a better one than each of them (model soups, Wortsman et al. 2022, section 2).
"""

import os
import sys

import torch

from model import read, write


def mix(parts):
    """The tensors of [(share, tensors)], added up in float64."""
    first = parts[0][1]
    for _, tensors in parts[1:]:
        if {n: t.shape for n, t in tensors.items()} != {n: t.shape for n, t in first.items()}:
            raise ValueError("Cannot mix weights as all files must hold the same tensors")
    return {
        name: sum(share * tensors[name].double() for share, tensors in parts).bfloat16() for name in first
    }


def main(args):
    if len(args) < 3:
        sys.exit(__doc__)
    out, parts = args[0], []
    for arg in args[1:]:
        share, _, path = arg.partition(":")
        parts.append((float(share), read(path)))
    if abs(sum(share for share, _ in parts) - 1) > 1e-6:
        sys.exit(f"Cannot mix weights as their shares must add up to 1: {sum(share for share, _ in parts):g}")
    os.makedirs(out, exist_ok=True)
    with torch.no_grad():
        write(mix(parts), out)


if __name__ == "__main__":
    main(sys.argv[1:])
