"""Several images with their texts in one row, as interleaved documents have them.

images   [  0  ] [  1  ] [  2  ]         K of them
text     a b E   c d e E f E   . .       R tokens, E: end of text, then padding
segment  1 1 1   2 2 2 2 3 3   0 0       how many images stand before a token; 0: padding
weight   1 1 1   1 1 1 1 1 1   0 0       in the caption loss

The row's first image stands before its first token, the second one before the second text, and so
on.
"""

from __future__ import annotations

import numpy as np

LEAST = 3  # tokens that a text of a full row keeps at least, or all of a shorter one


def pack(texts: np.ndarray, length: int, *, eos_id: int, pad_id: int) -> dict[str, np.ndarray]:
    """Puts the texts of each row one behind the other.

    A text for which there is no room is cut and keeps its end-of-text token; those that follow it
    are left `LEAST` tokens each. What is in a row depends on that row's texts only.

    Args:
      texts: int [B, K, T], each ended by EOS, then padding.
      length: R.

    Returns:
      text, segment: int32 [B, R]; lengths: int32 [B, K], tokens of each text; weight: float32 [B,
        R].

    Raises:
      ValueError: R has no room for `LEAST` tokens of each text.
    """
    b, k, t = texts.shape
    if length < min(LEAST, t) * k:
        raise ValueError(
            f"length {length} has no room for {k} texts; must be >= {min(LEAST, t) * k}"
        )
    ends = texts == eos_id  # the first one, where padding is EOS too
    whole = np.where(ends.any(2), ends.argmax(2) + 1, t)
    least = np.minimum(whole, LEAST)
    lengths = np.zeros((b, k), np.int32)
    left = np.full(b, length) - least.sum(1)
    for i in range(k):
        lengths[:, i] = np.minimum(whole[:, i], left + least[:, i])
        left -= lengths[:, i] - least[:, i]
    out = np.full((b, length), pad_id, np.int32)
    segment = np.zeros((b, length), np.int32)
    for row in range(b):
        at = 0
        for i, n in enumerate(lengths[row].tolist()):
            out[row, at : at + n] = texts[row, i, :n]
            out[row, at + n - 1] = eos_id
            segment[row, at : at + n] = i + 1
            at += n
    return {
        "text": out,
        "segment": segment,
        "lengths": lengths,
        "weight": (segment > 0).astype(np.float32),
    }
