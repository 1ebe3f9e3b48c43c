"""Even cuts and runs of layers, for the oracle; what a device needs and spends on them."""

from __future__ import annotations

import itertools

import numpy as np

from cost_models.chain import Chain
from cost_models.pipeline import in_flight


def even_cuts(layers: int, pp: int, virtual: int) -> list[list[int]]:
    """Cuts into equal virtual stages, embedding, head, both or neither counted as a layer."""
    found = []
    for first, last in itertools.product((0, 1), repeat=2):
        size, rest = divmod(layers + first + last, pp * virtual)
        if rest == 0 and size > max(first, last):
            sizes = [size] * (pp * virtual)
            sizes[0] -= first
            sizes[-1] -= last
            found.append([0, *itertools.accumulate(sizes)])
    return found


def runs_of(i: int, j: int, full: int, selective: int) -> list[tuple[str, int, int]]:
    a = min(i + full, j)
    b = min(a + selective, j)
    return [(kind, x, y) for kind, x, y in (("full", i, a), ("selective", a, b), ("none", b, j)) if y > x]


def device_need(chain: Chain, spans: list, runs: list, device: int) -> int:
    kept = [sum(int(chain.saved(kind, x, y)) for kind, x, y in here) for here in runs]
    kept = [k + int(chain.saved_ends(i, j)) for k, (i, j) in zip(kept, spans, strict=True)]
    states = sum(int(chain.state_bytes(i, j)) + int(chain.logit_bytes(i, j)) for i, j in spans)
    moments = in_flight(chain.pp, chain.virtual, chain.micro_batches, device)
    return states + chain.fixed_bytes + max(sum(f * k for f, k in zip(m, kept, strict=True)) for m in moments)


def joules_of(chain: Chain, runs: list) -> np.ndarray:
    total = np.zeros(chain.pp)
    for c, here in enumerate(runs):
        i, j = here[0][1], here[-1][2]
        again = sum(float(chain.total(chain.prices.joules_extra[kind], x, y, ends=False)) for kind, x, y in here)
        total[c % chain.pp] += chain.micro_batches * (float(chain.total(chain.prices.joules_pass, i, j)) + again)
        total[c % chain.pp] += float(chain.total(chain.prices.joules_step, i, j))
    return total
