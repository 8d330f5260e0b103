"""The arrays of an index of bits, as they are stored.

    codes     u8 (blocks, D / 8, 32)    the bits of 32 rows side by side; D is the dimensions rounded up to 64
    factors   f32 (blocks, 2, 32)       scale and add of each row
    of        u32 (2,)                  the number of the encoder that made them, and of rows

and what they were made with, which is kept apart where a field has one for all its segments:

    encoder   u32 (2,)                  the rotation, and a number by which this encoder is known
    unit      f64 (1,)                  what lengths are relative to
    centre    f32 (d,)
    signs     bool (4, D)               of the rotation "hadamard", else empty
    matrix    f32 (D, d)                of "dense", "pca" and "itq", else empty
    trial     f32 (3, 5)                what share of the ten nearest was in a short list of 10, 20, 50, 100, 200 under
                                        "none", "hadamard" and "itq"; -1 where one was not tried; empty where none was
    gate      f64 (3, 3)                of a fourth, a half and all of a sample: its rows, and how long short lists had to be
                                        for 0.95 and for 0.99 of the ten nearest; empty where there were too few rows

`codec.bits` says what they mean, and `gate` what follows from the last.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ..codec.bits import BLOCK, Encoder, width_of
from ..contract import Arrays, Damaged, Rows
from ..kernels.distances import read_only
from .gate import PARTS, UNMEASURED
from .scan import Bits

TRIED = ("none", "hadamard", "itq")  # the cheapest first
LISTS = (10, 20, 50, 100, 200)  # lengths of short lists in a trial


def opened(arrays: Arrays, trained: Arrays, rows: Rows) -> tuple[Encoder, Bits]:
    """Raises Damaged where a kernel would run outside, or codes are of another encoder."""
    encoder = Encoder.opened(arrays if "encoder" in arrays else trained, rows)
    codes, factors, of = arrays["codes"], arrays["factors"], arrays["of"]
    n, d = rows.vectors.shape
    blocks = -(-n // BLOCK)
    if of.shape != (2,) or of.dtype != np.uint32 or int(of[1]) != n:
        raise Damaged(f"the codes are of other rows than the {n:,} of the segment")
    if int(of[0]) != encoder.check:
        raise Damaged("the codes were made by another encoder")
    if codes.dtype != np.uint8 or codes.shape != (blocks, width_of(d) // 8, BLOCK) or not codes.flags.c_contiguous:
        raise Damaged(f"the codes are {codes.shape}, of {n:,} rows of {d} numbers")
    if factors.dtype != np.float32 or factors.shape != (blocks, 2, BLOCK) or not factors.flags.c_contiguous:
        raise Damaged(f"the factors are {factors.shape}, of {n:,} rows")
    if not np.isfinite(factors).all() or np.abs(factors).max(initial=0) > 1e31:
        raise Damaged("the factors of a row are no numbers that rows have")
    return encoder, Bits(read_only(codes), read_only(factors), n)


def measured_in(arrays: Arrays, trained: Arrays) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float64]]:
    """What is kept of trials: `trial` and `gate`. Raises Damaged."""
    trial, gate = ((arrays if name in arrays else trained)[name] for name in ("trial", "gate"))
    shapes = [(len(TRIED), len(LISTS)), (0, len(LISTS))]
    if trial.dtype != np.float32 or trial.shape not in shapes or not np.isfinite(trial).all():
        raise Damaged("the trial of rotations is no table of them")
    shapes = [(len(PARTS), UNMEASURED.shape[1]), UNMEASURED.shape]
    if gate.dtype != np.float64 or gate.shape not in shapes or not (np.isfinite(gate) & (gate >= 1)).all():
        raise Damaged("the lengths of short lists are no such lengths")
    if len(gate) and not (np.diff(gate[:, 0]) > 0).all():
        raise Damaged("the lengths of short lists are of samples that do not grow")
    return trial, gate
