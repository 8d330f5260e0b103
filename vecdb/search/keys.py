"""Keys, of which the larger is the better one, as the scores that users see: the metric's own values. Plain functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ..schema import Field

if TYPE_CHECKING:
    from .executor import Found


def score_of(key: float, declared: Field) -> float:
    if declared.metric == "l2":  # as a float32, which the scores of batches are
        return float(np.float32(max(0.0, -key) ** 0.5))
    # Rounding may leave a cosine a last bit outside its range.
    return max(-1.0, min(1.0, key)) if declared.metric == "cosine" else key


def scores_of(keys: npt.NDArray[np.float32], declared: Field) -> npt.NDArray[np.float32]:
    """`score_of` of many."""
    if declared.metric == "l2":
        distances: npt.NDArray[np.float32] = np.sqrt(np.maximum(-keys, 0).astype(np.float64)).astype(np.float32)
        return distances
    return np.clip(keys, -1, 1) if declared.metric == "cosine" else keys


def within(found: list[Found], declared: Field, threshold: float) -> list[Found]:
    if declared.metric == "l2":
        return [hit for hit in found if score_of(hit.key, declared) <= threshold]
    return [hit for hit in found if hit.key >= threshold]
