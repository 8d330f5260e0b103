"""The arrays of an index of bits, as they are stored.

    codes     u8 (blocks, D / 8, 32)    the bits of 32 rows side by side; D is m rounded up to 64
    factors   f32 (blocks, 2, 32)       scale and add of each row
    of        u32 (3,)                  the number of the encoder that made them, of rows, and of bits a dimension, B
    planes    u8 (n, B D / 8)           where B is above 1: all bits of a row after the other; see `codec.planes`
    scales    f32 (n,)                  likewise, of each row
    decline   f64 (12,)                 how far below the tenth best estimate, over |q'|, as many rows are on the mean as a list
                                        has; and how many it must have to go by that (`margin`); empty where there were too few
    likelihood  f64 (s, 3)              3, 5 or 10, one after the other, margins, ascending, and how likely a row that is so far
                                        above the best estimate of that place is one of as many nearest; empty where there were
                                        too few rows

and what they were made with, which is kept apart where a field has one for all its segments:

    encoder   u32 (3,)                  the rotation, a number by which this encoder is known, and d
    unit      f64 (1,)                  what lengths are relative to
    centre    f32 (m,)                  m: the numbers of a row that have bits, d if all have
    signs     bool (4, D)               of the rotation "hadamard", else empty
    matrix    f32 (D, m)                of "dense", "pca" and "itq", else empty
    entropy   f64 (2,)                  of a bit, mean, of the rows of which the encoder was learned; and how many these were
    trial     f32 (3, 5)                what share of the ten nearest was in a short list of 10, 20, 50, 100, 200 under
                                        "none", "hadamard" and "itq"; -1 where one was not tried; empty where none was
    bits      u32 (1,)                  a dimension, that were chosen for the field
    depths    u32 (t,)                  1, and other numbers of bits that were looked at; empty where there were too few rows
    gate      f64 (t, 3, 3)             for each of them, of a fourth, a half and all of a sample: its rows, and how long short
                                        lists had to be for 0.95 and for 0.99 of the ten nearest

`codec.bits` and `codec.planes` say what they mean, `scores` what a margin is, and `gate` what follows from the last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..codec.bits import BLOCK, Encoder
from ..codec.planes import DEPTHS
from ..contract import Arrays, Damaged, Rows
from ..kernels.distances import read_only
from .gate import PARTS, RECALLS, Gate
from .scan import Bits

TRIED = ("none", "hadamard", "itq")  # the cheapest first
LISTS = (10, 20, 50, 100, 200)  # lengths of short lists in a trial


def opened(arrays: Arrays, trained: Arrays, rows: Rows) -> tuple[Encoder, Bits]:
    """Raises Damaged where a kernel would run outside, or codes are of another encoder."""
    encoder = Encoder.opened(arrays if "encoder" in arrays else trained, rows)
    codes, factors, of = arrays["codes"], arrays["factors"], arrays["of"]
    n = len(rows)
    blocks = -(-n // BLOCK)
    if of.shape != (3,) or of.dtype != np.uint32 or int(of[1]) != n:
        raise Damaged(f"the codes are of other rows than the {n:,} of the segment")
    if int(of[0]) != encoder.check:
        raise Damaged("the codes were made by another encoder")
    if codes.dtype != np.uint8 or codes.shape != (blocks, encoder.width // 8, BLOCK) or not codes.flags.c_contiguous:
        raise Damaged(f"the codes are {codes.shape}, of {n:,} rows of {len(encoder.centre)} bits")
    if factors.dtype != np.float32 or factors.shape != (blocks, 2, BLOCK) or not factors.flags.c_contiguous:
        raise Damaged(f"the factors are {factors.shape}, of {n:,} rows")
    if not np.isfinite(factors).all() or np.abs(factors).max(initial=0) > 1e31:
        raise Damaged("the factors of a row are no numbers that rows have")
    return encoder, Bits(read_only(codes), read_only(factors), n)


def more_bits_in(arrays: Arrays, rows: Rows, encoder: Encoder) -> tuple[int, npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
    """(B, planes, scales); 1 and none, where there is one bit a dimension. Of arrays that `opened` has seen. Raises Damaged."""
    depth, n = int(arrays["of"][2]), len(rows)
    if depth == 1:
        return 1, read_only(np.zeros((0, 0), np.uint8)), read_only(np.zeros(0, np.float32))
    if depth not in DEPTHS:
        raise Damaged(f"the codes are of {depth} bits a dimension")
    planes, scales = arrays["planes"], arrays["scales"]
    if planes.dtype != np.uint8 or planes.shape != (n, depth * encoder.width // 8) or not planes.flags.c_contiguous:
        raise Damaged(f"the planes are {planes.shape}, of {n:,} rows of {len(encoder.centre)} numbers in {depth} bits")
    if scales.dtype != np.float32 or scales.shape != (n,) or not (np.isfinite(scales) & (np.abs(scales) <= 1e31)).all():
        raise Damaged("the scales of planes are no numbers that rows have")
    return depth, read_only(planes), read_only(scales)


def entropy_in(arrays: Arrays, trained: Arrays) -> tuple[float, float]:
    """Of a bit, of the rows of which the encoder was learned, and how many these were. Raises Damaged."""
    entropy = (arrays if "entropy" in arrays else trained)["entropy"]
    if entropy.dtype != np.float64 or entropy.shape != (2,) or not (0 <= entropy[0] <= 1.000001 and entropy[1] >= 0):
        raise Damaged("the entropy of bits is no such number")
    return float(entropy[0]), float(entropy[1])


def measured_in(arrays: Arrays, trained: Arrays) -> tuple[npt.NDArray[np.float32], Gate]:
    """What is kept of trials: `trial`, and `gate` by `depths`. Raises Damaged."""
    trial, depths, gate = ((arrays if name in arrays else trained)[name] for name in ("trial", "depths", "gate"))
    shapes = [(len(TRIED), len(LISTS)), (0, len(LISTS))]
    if trial.dtype != np.float32 or trial.shape not in shapes or not np.isfinite(trial).all():
        raise Damaged("the trial of rotations is no table of them")
    known = depths.tolist() if depths.dtype == np.uint32 and depths.ndim == 1 else [0]
    if known and (known[0] != 1 or len({*known, *DEPTHS}) != len(DEPTHS) + 1 or len(set(known)) != len(known)):
        raise Damaged("the lengths of short lists are of no numbers of bits")
    shape = (len(known), len(PARTS), 1 + len(RECALLS))
    if gate.dtype != np.float64 or gate.shape != shape or not (np.isfinite(gate) & (gate >= 1)).all():
        raise Damaged("the lengths of short lists are no such lengths")
    if not (np.diff(gate[:, :, 0]) > 0).all():
        raise Damaged("the lengths of short lists are of samples that do not grow")
    return trial, dict(zip(known, gate, strict=True))
