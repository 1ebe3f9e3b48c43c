"""The plans that ``module_worker.py`` applies to modules of many families, without torch: tests are collected here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class ModuleCase:
    """A plan applied to a small module of ``family``, which runs by its own ``forward``.

    ``mutation`` names what is taken out of the job to see that the comparison notices; ``refused`` is part of the
    error that applying it raises instead of training.
    """

    name: str
    world: int
    family: str
    strategy: dict[str, Any] = field(default_factory=dict)
    mutation: str | None = None
    refused: str | None = None
    tolerance: float = 1e-4
    own_seeds: bool = False


def _twos(**fields: Any) -> dict[str, Any]:
    return {"micro_batch": 2, "micro_batches": 2} | fields


CASES_2 = [
    ModuleCase("vit dp2 zero 0", 2, "vit", _twos(dp_replicate=2), own_seeds=True),
    ModuleCase("vit dp2 zero 3 full", 2, "vit", _twos(dp_shard=2, zero=3, recompute="full")),
    ModuleCase("vit tp2", 2, "vit", _twos(tp=2)),
    ModuleCase("llama tp2 selective", 2, "llama", _twos(tp=2, recompute="selective")),
    ModuleCase("llama pp2", 2, "llama", _twos(pp=2)),
    ModuleCase("llama cp2", 2, "llama", _twos(cp=2)),
    ModuleCase("llama cp2 zero 2", 2, "llama", _twos(cp=2, zero=2, recompute="full")),
    ModuleCase("llama zero 3 bf16", 2, "llama", _twos(dp_shard=2, zero=3, precision="bf16"), tolerance=0.05),
    ModuleCase("gpt2 tp2", 2, "gpt2", _twos(tp=2)),
    ModuleCase("moe tp2", 2, "moe", _twos(tp=2)),
    ModuleCase("moe ep2", 2, "moe", _twos(dp_shard=2, zero=1, ep=2)),
    ModuleCase("moe ep2 zero 0 full", 2, "moe", _twos(dp_replicate=2, ep=2, recompute="full")),
    ModuleCase("moe cp2", 2, "moe", _twos(cp=2)),
    ModuleCase("mixtral ep2", 2, "mixtral", _twos(dp_shard=2, zero=3, ep=2)),
    ModuleCase("mixtral pp2", 2, "mixtral", _twos(pp=2)),
]
CASES_4: list[ModuleCase] = []
MODULE_CASES = CASES_2 + CASES_4
