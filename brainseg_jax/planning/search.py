"""The largest batch that fits, found with few compilations: memory grows almost linearly with the batch."""

from collections.abc import Callable

MOST = 512  # crops per device, the end of the search


def largest(need: Callable[[int], float | int], limit: float) -> int:
    """The largest n up to MOST with need(n) ≤ limit, or 0. `need` is increasing and expensive, so it is called few times."""
    known = {1: need(1)}
    while True:
        low = max((n for n, bytes in known.items() if bytes <= limit), default=0)
        high = min((n for n, bytes in known.items() if bytes > limit), default=MOST + 1)
        if high - low == 1 or not low:
            return low
        guess = low + 1
        if len(known) > 1:
            a, b = sorted(known, key=lambda n: abs(known[n] - limit))[:2]
            slope = (known[b] - known[a]) / (b - a)
            guess = int(a + (limit - known[a]) / slope) if slope > 0 else guess
        guess = min(max(guess, low + 1), high - 1)
        known[guess] = need(guess)
