"""What the validation loss is measured against: two compressors that need no training run.

Both are computed on the same held-out documents, in bits per UTF-8 byte. They are no baseline
models; they say what is easy.
"""

import gzip
import math
from collections import Counter

from data.tokenizer import Tokenizer


def yardsticks(texts: list[str], tokenizer: Tokenizer) -> dict[str, float]:
    """{"unigram": ..., "gzip": ...} in bits per byte of all `texts`, which must not be empty.

    unigram: empirical entropy of the tokens, each document's <eos> included. gzip: `gzip -9`
    document by document, headers included.
    """
    size = sum(len(text.encode()) for text in texts)
    counts: Counter[int] = Counter()
    for text in texts:
        counts.update(tokenizer.encode(text))
        counts[tokenizer.eos_id] += 1
    total = counts.total()
    bits = -sum(count * math.log2(count / total) for count in counts.values())
    packed = sum(len(gzip.compress(text.encode(), 9, mtime=0)) for text in texts)
    return {"unigram": bits / size, "gzip": 8 * packed / size}


def compare(bits: float, texts: list[str], easy: dict[str, float]) -> list[str]:
    """How a model that needs `bits` per byte of `texts` stands to their `yardsticks`, as lines."""
    size = sum(len(text.encode()) for text in texts)
    many = "one document" if len(texts) == 1 else f"{len(texts):,} documents"
    lines = [
        f"\nHeld out: {many}, {size:,} bytes",
        f"  this model  {bits:.3f} bits per byte",
    ]
    for name, needed in easy.items():
        word = f"the model needs {abs(bits / needed - 1):.0%} {'less' if bits < needed else 'more'}"
        lines.append(f"  {name:<10}  {needed:.3f} bits per byte: {word}")
    return lines
