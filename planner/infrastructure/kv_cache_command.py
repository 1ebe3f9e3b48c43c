"""``meshwright kv-cache``: where a model's KV cache lies, and what one decoded token costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from planner.cli_options import AsJson, ClusterName, Headroom, Model
from planner.terminal import print_json, show

if TYPE_CHECKING:
    from rich.console import Group

    from planner.infrastructure.kv_cache import KvCache, Place

STORED = "bf16, fp16, fp32, fp8 or fp4"


def kv_cache(
    model: Model, cluster: ClusterName,
    context: Annotated[int, typer.Option("--context", help="Tokens of every sequence so far.")],
    batch: Annotated[int, typer.Option("--batch", help="Sequences that one copy of the model decodes.")] = 1,
    tp: Annotated[int | None, typer.Option("--tp", help="Devices that share every layer. Default: a host's.")] = None,
    pp: Annotated[int | None, typer.Option("--pp", help="Stages of layers. Default: the fewest that fit.")] = None,
    tiers: Annotated[
        str, typer.Option("--tiers", help="Where the cache may go: dram,nvme, cxl-pnm:8, or all that is there.")
    ] = "all",
    weights: Annotated[str, typer.Option("--weights", help=f"Type that weights are kept in: {STORED}.")] = "bf16",
    cache: Annotated[str, typer.Option("--cache", help=f"Type that the cache is kept in: {STORED}.")] = "bf16",
    headroom: Headroom = 0.05, as_json: AsJson = False,
) -> None:  # fmt: skip
    """Say where the KV cache of a model lies, and what one decoded token takes in time, joules and money."""
    from planner.infrastructure.kv_cache import kv_cache as found_for

    found = found_for(
        model, cluster, context=context, batch=batch, tp=tp, pp=pp, tiers=tiers, weights=weights, cache=cache,
        headroom=headroom,
    )  # fmt: skip
    print_json(found.as_json()) if as_json else show(kv_cache_view(found))


def kv_cache_view(it: KvCache) -> Group:
    """What is asked, the places, the seconds of a token by term, and what it costs."""
    from rich.console import Group
    from rich.text import Text

    from planner.explanations.explain_report import columns

    places = columns(
        ("KV cache in", "left"), ("room GB", "right"), ("holds GB", "right"), ("share", "right"),
        ("a token, if the spill lay here", "right"),
    )  # fmt: skip
    for place in it.places:
        places.add_row(*_place(place, it))
    terms = columns(("term", "left"), ("a token", "right"), ("share", "right"))
    for name, seconds in it.terms.items():
        if seconds:
            terms.add_row(name, _ms(seconds), f"{seconds / it.token_s:.1%}")
    return Group(Text(_asked(it), style="bold"), places, terms, *(Text(line) for line in _costs(it)))


def _asked(it: KvCache) -> str:
    many = f"{it.copies} copies on {it.cluster}" if it.copies > 1 else f"one copy on {it.cluster}"
    return (
        f"{it.model}, {many}: tp {it.tp} x pp {it.pp}, weights {it.weights} ({it.weight_bytes / 1e9:.1f} GB a device), "
        f"{it.batch} sequences of {it.context:,} tokens, {it.bytes_per_token / 1e3:.1f} kB a token in {it.cache}"
    )


def _place(place: Place, it: KvCache) -> tuple[str, ...]:
    alone = "no room" if place.alone_s is None else _ms(place.alone_s)
    if place is it.places[0]:
        alone = f"{alone} if it held all"
    name = f"{place.name}, attends there" if place.attends else place.name
    return name, f"{place.room_bytes / 1e9:.1f}", f"{place.holds_bytes / 1e9:.1f}", f"{place.share:.1%}", alone


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _costs(it: KvCache) -> list[str]:
    times = it.token_s / it.places[0].alone_s
    spilled = f", {times:.3g} times what it takes if device memory holds all" if abs(times - 1) > 0.005 else ""
    whole = " (all the model takes)" if it.most_context == it.max_positions else ""
    held = f"{it.copies_of_keys} devices hold the same keys and values; a smaller --tp and more --pp keep fewer copies"
    rate = f"{it.tokens_per_s:,.0f}" if it.tokens_per_s >= 10 else f"{it.tokens_per_s:.3g}"
    money = "" if it.usd_per_million is None else f", {it.usd_per_million:.3g} USD a million tokens"
    return [
        f"one token of each sequence in {_ms(it.token_s)}{spilled}; {rate} tokens/s",
        f"{it.joules_per_token:.3g} J a token at the meter{money}",
        f"stays on the device: up to {it.most_context:,} tokens{whole} at this batch, {it.most_batch:,} "
        "sequences at this context",
        *([held] if it.copies_of_keys > 1 else []),
    ]
