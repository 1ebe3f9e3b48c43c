"""What one forward and backward pass of a module did: values, operators and module calls; no torch.

A value is one tensor that an operator wrote, or a part of one. ``place`` says where its elements lie: views,
casts and plain copies of a value have its place, a slice has one of its own inside it. So two readers of one
tensor are seen to read the same, whatever shape each of them gave it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["product", "attention", "lookup", "linear", "nonlinear", "moving", "constant"]
"""``product`` multiplies matrices, ``moving`` only copies elements; ``linear`` operators need nothing to go back."""


@dataclass(slots=True)
class Value:
    """One tensor. ``elements`` are those that differ in memory: a broadcast dimension counts once.

    ``needs`` is whether a gradient reaches it, ``parameter`` the name of the parameter that it is or shows,
    ``density`` the part of a mask that is expected to hold, ``choices`` out of how many an index was chosen, and
    ``copies`` how often each element is there, being made element by element of one that was repeated.
    """

    index: int
    shape: tuple[int, ...]
    elements: int
    bytes: float
    producer: int | None = None
    needs: bool = False
    parameter: str | None = None
    place: tuple = ()
    causal: bool = False
    density: float | None = None
    choices: int | None = None
    copies: float = 1.0
    origin: str = "operator"


@dataclass(frozen=True, slots=True)
class Product:
    """``count`` products ``[m, k] x [k, n]``; ``weight`` is the parameter that is one side, ``None`` if none is.

    ``groups`` is more than 1 where ``count`` weights of one parameter each take their own rows, ``m`` on average.
    """

    m: float
    n: int
    k: int
    count: int = 1
    groups: int = 1
    weight: str | None = None
    convolution: bool = False

    @property
    def flop(self) -> float:
        """FLOP, a multiply-add being 2."""
        return 2.0 * self.m * self.n * self.k * self.count


@dataclass(frozen=True, slots=True)
class Attending:
    """One attention: ``[batch * heads, queries, qk_dim]`` against ``keys``; ``window`` and ``causal`` as found."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    qk_dim: int
    v_dim: int
    causal: bool
    window: int | None = None

    @property
    def flop(self) -> tuple[float, float]:
        """Forward and backward FLOP; backward computes the scores again and has four products: 2.5 times forward."""
        window = min(self.window or self.keys, self.keys)
        keys = float(window)
        if self.causal:
            keys = (window * (self.keys - window) + window * (window + 1) / 2) / self.keys
        once = 2.0 * self.batch * self.heads * self.queries * keys * (self.qk_dim + self.v_dim)
        return once, 2.5 * once


@dataclass(slots=True)
class Op:
    """One operator: values read and written, where in the module it ran, FLOP, and bytes that eager torch kept.

    ``function`` is the call of a ``torch.autograd.Function`` that it ran in; what that saved is in ``Trace.saved``.
    ``experts`` is the list of modules that it belongs to one of, each with rows of its own.
    """

    index: int
    name: str
    kind: Kind
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    path: str
    needs: bool = False
    flop: float = 0.0
    backward_flop: float = 0.0
    kept_bytes: float = 0.0
    product: Product | None = None
    attending: Attending | None = None
    reduced: int = 0
    output_kept: bool = False
    function: int | None = None
    experts: str | None = None


@dataclass(slots=True)
class Call:
    """One call of a submodule: its name, the operators it ran, and the values that went in and came out."""

    path: str
    first: int
    last: int = -1
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()


@dataclass
class Trace:
    """Everything one run showed. ``batch`` are the samples of the example, ``element_bytes`` of its own float type."""

    values: list[Value] = field(default_factory=list)
    ops: list[Op] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    inputs: tuple[int, ...] = ()
    outputs: tuple[int, ...] = ()
    batch: int = 1
    element_bytes: float = 2.0
    notes: list[str] = field(default_factory=list)
    unpriced: dict[str, list[str]] = field(default_factory=dict)
    """Modules in which an operator reads a matrix and no formula says what it costs, by its name."""
    classes: dict[str, str] = field(default_factory=dict)
    children: dict[str, tuple[str, ...]] = field(default_factory=dict)
    containers: set[str] = field(default_factory=set)
    linear: set[str] = field(default_factory=set)
    parameters: dict[str, int] = field(default_factory=dict)
    frozen: tuple[str, ...] = ()
    saved: dict[int, tuple[int, ...]] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)

    def size(self, value: int) -> float:
        """Elements of a value in units of the run's own float type, as far as they differ from what it copies."""
        it = self.values[value]
        return it.elements * max(1.0, it.bytes / self.element_bytes) if it.bytes else float(it.elements)

    @property
    def forward_flop(self) -> float:
        """FLOP of the forward pass of the example."""
        return sum(op.flop for op in self.ops)

    @property
    def backward_flop(self) -> float:
        """FLOP of the backward pass of the example."""
        return sum(op.backward_flop for op in self.ops)
