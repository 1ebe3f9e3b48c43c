"""What is asked of the model: sequences, batch, precision, optimiser."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from cost_models.stack import Stack

Precision = Literal["bf16", "fp16", "fp32", "fp8", "fp4"]
Tuning = Literal["all", "lora"]


@dataclass(frozen=True, slots=True)
class PrecisionRecipe:
    """Bytes a parameter costs in each tensor class, and the type that matrix products run in.

    ``reduce_bytes`` a gradient element costs on the wire, ``gather_bytes`` a weight.

    Mixed precision keeps 16-bit weights, fp32 accumulated gradients, and an fp32 master copy beside Adam's
    two fp32 moments: 2 + 4 + 12 bytes. Source: Rajbhandari et al., arXiv:1910.02054, section 3.1 (which
    counts 16-bit gradients), with Megatron-LM's fp32 gradient accumulation.
    """

    compute: str
    weight_bytes: float
    gradient_bytes: float
    reduce_bytes: float
    gather_bytes: float
    activation_bytes: float
    master_bytes: float


PRECISIONS: dict[str, PrecisionRecipe] = {
    "bf16": PrecisionRecipe("bf16", 2, 4, 4, 2, 2, 4),
    "fp16": PrecisionRecipe("fp16", 2, 4, 4, 2, 2, 4),
    "fp8": PrecisionRecipe("fp8", 2, 4, 4, 2, 2, 4),
    "fp4": PrecisionRecipe("fp4", 2, 4, 4, 2, 2, 4),
    "fp32": PrecisionRecipe("fp32", 4, 4, 4, 4, 4, 0),
}
"""fp8 and fp4 keep 16-bit weights and activations and cast them for each product, as torchtitan's float8 linear
layers and Megatron-LM's fp8 do without fp8 parameters."""

OPERAND_BYTES = {"fp8": 1.0, "fp4": 0.5625}
"""Bytes an element of the operands of narrow products; fp4 in blocks of 16 with a scale of a byte."""

OPTIMISER_STATE_BYTES = {"adam": 8.0, "sgd": 0.0}
"""Bytes a parameter of fp32 optimiser state: two moments for Adam, none for plain SGD."""


class Training(BaseModel):
    """A training step: ``global_batch`` sequences of ``seq_len`` tokens, one optimiser update.

    ``tuning`` is ``lora`` where weights are frozen and adapters of rank ``lora_rank`` learn beside the matrices
    ``lora_targets`` (operators' names; attention's projections in Hu et al., arXiv:2106.09685, section 4.2).
    ``packed_len`` is the mean over tokens of the length of their example (sum of squared lengths over sum of lengths),
    of which several are packed into one sequence and attend to themselves only; ``None`` for one example a sequence.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    seq_len: int = Field(ge=1, le=2**24)
    global_batch: int = Field(ge=1, le=2**24)
    precision: Precision = "bf16"
    optimizer: Literal["adam", "sgd"] = "adam"
    tuning: Tuning = "all"
    lora_rank: int = Field(default=16, ge=1, le=4096)
    lora_targets: tuple[str, ...] = ("qkv", "output")
    packed_len: float | None = Field(default=None, ge=1, allow_inf_nan=False)
    stack: Stack = Stack()

    @property
    def recipe(self) -> PrecisionRecipe:
        """Bytes a parameter for this precision, or as the stack has them."""
        names = ("weight_bytes", "gradient_bytes", "reduce_bytes", "gather_bytes", "master_bytes")
        given = {name: getattr(self.stack, name) for name in names if getattr(self.stack, name) is not None}
        return replace(PRECISIONS[self.precision], **given) if given else PRECISIONS[self.precision]

    def weight_bytes(self, *, frozen_matrices: bool) -> float:
        """Bytes of a weight; of a layer's frozen matrices as the stack keeps them."""
        frozen = self.stack.frozen_bytes if self.tuning == "lora" and frozen_matrices else None
        return self.recipe.weight_bytes if frozen is None else frozen

    @property
    def optimizer_bytes(self) -> float:
        """Bytes a parameter of master copy and optimiser states."""
        if self.stack.optimizer_bytes is not None:
            return self.stack.optimizer_bytes
        return self.recipe.master_bytes + OPTIMISER_STATE_BYTES[self.optimizer]

    def adapts(self, operator: str) -> bool:
        """Whether an adapter learns beside the operator of that name."""
        return self.tuning == "lora" and operator in self.lora_targets

    @property
    def attended_len(self) -> float:
        """Tokens of one example: what attention sees of a sequence."""
        return min(self.packed_len or self.seq_len, self.seq_len)

    @property
    def tokens(self) -> int:
        """Tokens a step."""
        return self.seq_len * self.global_batch


class Serving(BaseModel):
    """A serving load: prompts of ``prompt_tokens`` answered with ``output_tokens``, at ``requests_per_s``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    prompt_tokens: int = Field(ge=1)
    output_tokens: int = Field(ge=1)
    requests_per_s: float = Field(gt=0, allow_inf_nan=False)
    precision: Precision = "bf16"
    time_to_first_token_s: float | None = None
    time_per_output_token_s: float | None = None

    @model_validator(mode="after")
    def _limits_are_positive(self) -> Serving:
        for name in ("time_to_first_token_s", "time_per_output_token_s"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ValueError(f"{name} = {value} must be a finite number of seconds above 0")
        return self
