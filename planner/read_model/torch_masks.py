"""Whether an attention is causal and which window it has, as far as its module, its config and its mask say."""

from __future__ import annotations

from typing import Any

import torch

WINDOWS = ("sliding_window", "window_size", "attention_window", "attention_chunk_size")


def causal_and_window(
    stack: list[tuple[str, torch.nn.Module]], asked: bool, marked: bool, masked: bool, square: bool
) -> tuple[bool, int | None]:
    """``(causal, window)`` of the attention that runs inside ``stack``.

    Causal is what the call asks for; with a mask, what the module's ``is_causal`` says, else whether the mask was
    made by comparing positions. A window is what the module or its config names, if this layer's type slides.
    """
    module = next((inner for _, inner in reversed(stack[-3:]) if _says(inner)), stack[-1][1] if stack else None)
    stated = getattr(module, "is_causal", None)
    causal = asked or (masked and square and (marked if not isinstance(stated, bool) else stated))
    return causal and square, _window(module) if causal or masked else None


def _says(module: torch.nn.Module) -> bool:
    """Whether a module says anything about how it attends."""
    return isinstance(getattr(module, "is_causal", None), bool) or any(hasattr(module, name) for name in WINDOWS)


def _window(module: torch.nn.Module | None) -> int | None:
    config = getattr(module, "config", None)
    if not _slides(module, config):
        return None
    for name in WINDOWS:
        for owner in (module, config):
            found = getattr(owner, name, None)
            if isinstance(found, int) and not isinstance(found, bool) and found > 0:
                return found
    return None


def _slides(module: torch.nn.Module | None, config: Any) -> bool:
    """Whether this layer attends in a window, where its type or its config says so for some layers only."""
    if getattr(module, "sliding_window", 0) is None or getattr(module, "is_sliding", None) is False:
        return False
    kind = getattr(module, "layer_type", None) or getattr(module, "attention_type", None)
    types, layer = getattr(config, "layer_types", None), getattr(module, "layer_idx", None)
    if kind is None and isinstance(types, list | tuple) and isinstance(layer, int) and layer < len(types):
        kind = types[layer]
    if isinstance(kind, str):
        return "sliding" in kind or "chunked" in kind
    return getattr(config, "use_sliding_window", True) is not False
