"""The recorder of one run: a dispatch mode that sees every operator.

Where a shape depends on data it is as :mod:`planner.read_model.torch_expected` says, and a note says how.

Source of the mapping from backward to forward operators: autograd's sequence numbers, as torch.fx uses them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from planner.read_model.torch_data import KnownData
from planner.read_model.torch_errors import user_line
from planner.read_model.torch_expected import Expected
from planner.read_model.torch_flop import flop_of, grouped_out, product_of, reduced_of
from planner.read_model.torch_masks import causal_and_window
from planner.read_model.traced import Attending, Kind, Op, Trace, Value
from topologies.errors import BadInput

aten = torch.ops.aten
SCALARS = {"_local_scalar_dense", "item", "is_nonzero"}
COPIES = {"clone", "_to_copy", "contiguous", "alias", "detach", "lift_fresh", "_reshape_alias"}
LINEAR = {
    "add", "add_", "sub", "sub_", "rsub", "neg", "sum", "mean", "cat", "stack", "constant_pad_nd", "index", "gather",
    "index_select", "scatter", "scatter_add", "index_add", "index_add_", "index_put", "index_put_", "masked_fill",
    "masked_fill_", "where", "cumsum", "roll", "flip", "repeat", "tril", "triu", "avg_pool2d", "_adaptive_avg_pool2d",
    "upsample_nearest2d", "upsample_bilinear2d", "upsample_nearest1d", "zero_", "fill_", "copy_", "slice_scatter",
    "select_scatter", "squeeze", "topk", "sort", "reflection_pad2d", "reflection_pad1d", "replication_pad2d",
}  # fmt: skip
BILINEAR = {"mul", "mul_", "div", "div_"}
MASKS = {"tril", "triu", "tril_", "triu_", "le", "lt", "ge", "gt"}
ELEMENTWISE = {"add", "sub", "mul", "neg", "cat", "rsub"}
CREATED = {"new_empty", "new_zeros", "new_ones", "new_full", "empty_like", "zeros_like", "ones_like", "full_like",
           "new_empty_strided", "detach", "rand_like", "randn_like", "bernoulli"}  # fmt: skip
LOOKUPS = {"embedding", "_embedding_bag", "_embedding_bag_forward_only"}
WITHOUT_FLOP = {*LOOKUPS, "native_layer_norm", "_weight_norm_interface", "_grouped_mm"}
MASKED = {"add", "add_", "sub", "mul", "div", "where", "masked_fill", "masked_fill_", "cat", "_to_copy", "clone"}
CHOOSING = {"topk": 1, "argmax": 0, "sort": 1, "argsort": 0, "max": 1}
ATTENTION = (
    "_scaled_dot_product_flash_attention_for_cpu", "_scaled_dot_product_flash_attention",
    "_scaled_dot_product_efficient_attention", "_scaled_dot_product_cudnn_attention",
)  # fmt: skip
OUTPUT_KEPT = {"relu", "relu_", "sigmoid", "tanh", "exp", "leaky_relu_", "hardtanh", "threshold"}


class Recorder(TorchDispatchMode):
    """Writes operators of the forward pass into ``trace``; adds the FLOP of the backward pass to them."""

    def __init__(self, trace: Trace) -> None:
        super().__init__()
        self.trace, self.phase = trace, "forward"
        self.stack: list[tuple[str, torch.nn.Module]] = []
        self.known: dict[int, int] = {}
        self.alive: list[Any] = []
        self.bases: dict[int, torch.Tensor] = {}
        self.by_sequence: dict[int, int] = {}
        self.kept: dict[int, float] = {}
        self.storages: set[int] = set()
        self.known_data = KnownData()
        self.expected = Expected(self.known_data, lambda tensor: self.trace.values[self.value(tensor)], self._note)
        self.function: int | None = None
        self.saving: list[torch.Tensor] | None = None

    @property
    def path(self) -> str:
        """Qualified name of the module that is running."""
        return self.stack[-1][0] if self.stack else ""

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name, forward = func.overloadpacket.__name__, self.phase == "forward"
        if forward:
            func, args = self._sized(func, args)
        if forward and name in SCALARS and self.known_data.has(args[0]):
            return self.known_data.scalar(args[0])
        if forward and (expected := self.expected.result(name, args, kwargs)) is not None:
            out = expected
        elif forward and torch.Tag.dynamic_output_shape in func.tags and self.known_data.all_of(args, kwargs):
            return self.known_data.sized(func, args, kwargs)
        elif name == "_grouped_mm":
            out = grouped_out(*args[:2], *args[2:3], **kwargs)
        else:
            out = func(*args, **kwargs)
        if forward and name in SCALARS:
            self._note("a number is taken from data; whatever is computed with it is priced, its value is not known")
        if forward and not self.known_data.has(out):
            self.known_data.follow(func, args, kwargs, out)
        if self.phase == "forward":
            self._forward(func, args, kwargs, out)
        elif self.phase == "backward":
            self._backward(func, args, kwargs, out)
        return out

    def value(self, tensor: torch.Tensor, origin: str = "constant") -> int:
        """The value of a tensor; a new one where nothing recorded wrote it."""
        if id(tensor) not in self.known:
            self._check_listed(tensor)
            self.register(tensor, origin=origin, needs=tensor.requires_grad)
        return self.known[id(tensor)]

    def _check_listed(self, tensor: torch.Tensor) -> None:
        """Refuse a weight that the module does not list: no optimiser would train it, no rank would be given it."""
        if isinstance(tensor, torch.nn.Parameter) and tensor.requires_grad:
            raise BadInput(
                f"{user_line(sys._getframe(1))} reads a weight {tuple(tensor.shape)} that module.parameters() does not "
                "list (a module in a plain Python list or a closure?), so that it would not be trained; hold it in an "
                "nn.ModuleList or as an attribute of the module, or set requires_grad_(False) if it is a constant"
            )

    def _note(self, what: str) -> None:
        self.trace.notes.append(f"{user_line(sys._getframe(1))}: {what}")

    def register(self, tensor: torch.Tensor, **fields: Any) -> Value:
        """A new value for ``tensor``."""
        index = len(self.trace.values)
        shape = tuple(int(n) for n in tensor.shape)
        value = Value(index, shape, _distinct(tensor), float(tensor.element_size()), place=(index,))
        for name, what in fields.items():
            setattr(value, name, what)
        self.trace.values.append(value)
        self.known[id(tensor)] = index
        self.alive.append(tensor)
        key = tensor.untyped_storage()._cdata
        if key not in self.bases or self.bases[key].numel() < tensor.numel():
            self.bases[key] = tensor
        return value

    def _forward(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        name = func.overloadpacket.__name__
        tensors = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, torch.Tensor)]
        inputs = tuple(self.value(t) for t in tensors)
        values = self.trace.values
        trained = torch.is_grad_enabled() or self.function is not None
        needs = trained and any(values[i].needs for i in inputs) and name not in CREATED
        op = Op(len(self.trace.ops), name, "constant", inputs, (), self.path, needs, function=self.function)
        written = [self._written(op, t, tensors, name) for t in outputs]
        op.outputs = tuple(written)
        self._mark(op, func, args, written)
        if all(_shares(t, tensors) for t in outputs) and not name.endswith("_"):
            return  # a view: its value says where it lies
        op.kind = self._kind(op, func, args, kwargs, out)
        self.trace.ops.append(op)
        if needs:
            self.by_sequence[torch.autograd._get_sequence_nr() - 1] = op.index

    def _written(self, op: Op, tensor: torch.Tensor, tensors: list[torch.Tensor], name: str) -> int:
        """The value of one output, lying where its base lies if it is a view or a copy of one."""
        base = next((t for t in tensors if t is not tensor and _same_storage(t, tensor)), None)
        if name.endswith("_") and any(t is tensor for t in tensors):
            return self._overwritten(op, tensor)
        if base is None and name in COPIES and tensors:
            base = tensors[0]
        floating = tensor.is_floating_point() or tensor.is_complex()
        if base is None:
            copies = self._copies(op, tensor)
            return self.register(tensor, producer=op.index, needs=op.needs and floating, copies=copies).index
        under = self.trace.values[self.known[id(base)]]
        elements = _distinct(tensor)
        inside = elements < under.elements
        place = (*under.place, (int(tensor.storage_offset()), elements)) if inside else under.place
        view = _same_storage(base, tensor)
        value = self.register(
            tensor, producer=under.producer if view else op.index, needs=op.needs and floating,
            parameter=under.parameter, place=place, causal=under.causal, density=under.density, choices=under.choices,
            origin=under.origin, copies=under.copies if view else elements / max(1, under.elements) * under.copies,
        )  # fmt: skip
        return value.index

    def _copies(self, op: Op, tensor: torch.Tensor) -> float:
        """How often an elementwise result repeats itself: as its operands do, those that it broadcasts included."""
        if op.name not in ELEMENTWISE or not op.needs:
            return 1.0
        read = [self.trace.values[i] for i in op.inputs]
        if all(value.copies == 1.0 for value in read):
            return 1.0
        each = (it.elements / it.copies for it in read)
        return (
            1.0
            if op.name == "cat" and len({it.copies for it in read}) > 1
            else max(1.0, min(read[0].copies if op.name == "cat" else _distinct(tensor) / size for size in each))
        )

    def _overwritten(self, op: Op, tensor: torch.Tensor) -> int:
        """The value of a tensor written in place: whatever it is a part of is a new value from here on."""
        base = self.bases[tensor.untyped_storage()._cdata]
        before = self.value(base)
        op.inputs = tuple(dict.fromkeys((*op.inputs, before)))
        needs = op.needs or self.trace.values[before].needs
        whole = self.register(base, producer=op.index, needs=needs)
        if base is tensor or _distinct(tensor) == whole.elements:
            self.known[id(tensor)] = whole.index
            return whole.index
        place = (whole.index, (int(tensor.storage_offset()), _distinct(tensor)))
        self.register(tensor, producer=op.index, needs=needs, place=place)
        return whole.index

    def _kind(self, op: Op, func: Any, args: tuple, kwargs: dict, out: Any) -> Kind:
        values, name = self.trace.values, op.name
        op.product = product_of(name, args, kwargs, out, lambda t: values[self.known[id(t)]].parameter)
        op.flop = op.product.flop if op.product else flop_of(func, args, kwargs, out)
        op.reduced, op.output_kept = reduced_of(name, args), name in OUTPUT_KEPT
        if name in ("_softmax", "_safe_softmax") and op.needs:
            op.attending = self._by_hand(op)
        if not op.needs and not op.product:
            return "constant"
        self._unpriced(op, func.namespace)
        if op.product:
            return "product"
        if name in ATTENTION:
            query, key, value = args[:3]
            self._attending(op, query, key, value, None, causal=bool(kwargs.get("is_causal", args[4:5] == (True,))))
            return "attention"
        if name in LOOKUPS:
            return "lookup"
        if name in COPIES:
            return "moving"
        if name in LINEAR:
            return "linear"
        if name in BILINEAR:
            return "linear" if sum(values[i].needs for i in op.inputs) < 2 and not _divides(name, op, values) else (
                "nonlinear")  # fmt: skip
        return "nonlinear"

    def _stored(self, tensor: torch.Tensor) -> int:
        """Elements of a tensor that are not repeated copies of others."""
        value = self.trace.values[self.value(tensor)]
        root = self.trace.values[value.place[0]]
        return round(min(value.elements / value.copies, root.elements / root.copies))

    def _unpriced(self, op: Op, namespace: str) -> None:
        """Write down where an operator reads a matrix and no formula says what it costs."""
        read = [self.trace.values[i] for i in op.inputs]
        if namespace != "aten" and not op.flop:
            self.trace.unpriced.setdefault(f"{namespace}::{op.name}", []).append(op.path or "the module")
            return
        matrix = any(it.parameter and len(it.shape) > 1 and min(it.shape[-2:]) > 1 for it in read)
        if matrix and not op.flop and op.product is None and op.name not in WITHOUT_FLOP | LINEAR | COPIES | BILINEAR:
            self.trace.unpriced.setdefault(op.name, []).append(op.path or "the module")

    def _by_hand(self, op: Op) -> Attending:
        """What is known at a softmax of the attention that it may be the middle of; sizes are found later."""
        entered = self.trace.values[op.inputs[0]]
        queries, keys = (1, 1, *entered.shape)[-2:]
        with_sink = queries in (keys, keys - 1)
        causal, window = causal_and_window(self.stack, False, entered.causal, True, with_sink)
        return Attending(0, 0, 0, queries, keys, 0, 0, causal, window)

    def _mark(self, op: Op, func: Any, args: tuple, written: list[int]) -> None:
        """Follow masks of positions, and choices among n with the part of a mask that is expected to hold."""
        values, name = self.trace.values, op.name
        if op.needs or not written:
            if name in MASKED and any(values[i].causal for i in op.inputs):
                for index in written:
                    values[index].causal = True
            if name in CHOOSING and len(written) > CHOOSING[name]:
                values[written[CHOOSING[name]]].choices = values[op.inputs[0]].shape[-1]
            return
        read = [values[i] for i in op.inputs]
        causal = name in MASKS or any(v.causal for v in read)
        choices = next((v.choices for v in read if v.choices), None)
        density = next((v.density for v in read if v.density is not None), None)
        if name == "eq" and choices:
            density = 1.0 / choices
        if name in ("scatter", "scatter_", "one_hot") and choices:
            density = 1.0 / choices
        if name in CHOOSING and len(written) > CHOOSING[name]:
            choices = read[0].shape[-1] if read[0].shape else None
        for index in written:
            values[index].causal, values[index].density = causal, density
            values[index].choices = choices if name != "eq" else None

    def _sized(self, func: Any, args: tuple) -> tuple[Any, tuple]:
        """``func`` and ``args`` with every shape that depends on data replaced by an expected or largest one."""
        name = func.overloadpacket.__name__
        if name == "masked_select":
            return aten.index.Tensor, (args[0], [*self.expected.nonzero((args[1],), {}).unbind(1)])
        if name in ("index", "index_put", "index_put_", "_unsafe_index") and len(args) > 1:
            return func, (args[0], self._indices(args[1]), *args[2:])
        return func, args

    def _indices(self, indices: Iterable) -> list:
        found: list = []
        for it in indices:
            mask = isinstance(it, torch.Tensor) and it.dtype in (torch.bool, torch.uint8)
            found.extend(self.expected.nonzero((it,), {}).unbind(1) if mask else [it])
        return found

    def _backward(self, func: Any, args: tuple, kwargs: dict, out: Any) -> None:
        flop = flop_of(func, args, kwargs, out)
        node = torch._C._current_autograd_node()
        if flop and node is not None:
            index = self.by_sequence.get(node._sequence_nr())
            if index is not None:
                self.trace.ops[index].backward_flop += flop

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        """Count what autograd keeps, once a storage, at the operator it keeps it for."""
        if self.saving is not None:
            self.saving.append(tensor)
        storage = tensor.untyped_storage()
        key = storage._cdata
        known = self.known.get(id(tensor))
        if key not in self.storages and (known is None or self.trace.values[known].parameter is None):
            self.storages.add(key)
            self.alive.append(tensor)
            sequence = torch.autograd._get_sequence_nr() - 1
            self.kept[sequence] = self.kept.get(sequence, 0.0) + storage.nbytes()
        return tensor

    def called(self, original: Any, function: type, args: tuple, kwargs: dict) -> Any:
        """A call of a ``torch.autograd.Function``: what runs inside is trained although autograd does not look."""
        if self.phase != "forward" or self.function is not None:
            return original(function, *args, **kwargs)
        self.function, self.saving = len(self.trace.saved), []
        self.trace.saved[self.function] = ()
        try:
            out = original(function, *args, **kwargs)
        finally:
            saved, number, self.saving, self.function = self.saving, self.function, None, None
        self.trace.saved[number] = tuple(self.value(t) for t in saved)
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor) and tensor.grad_fn is not None and self.trace.ops:
                self.value(tensor)
                self.by_sequence[tensor.grad_fn._sequence_nr()] = self.trace.ops[-1].index
        return out

    def finish(self) -> None:
        """Give what was kept to its operators."""
        for sequence, size in self.kept.items():
            index = self.by_sequence.get(sequence)
            if index is not None:
                self.trace.ops[index].kept_bytes += size

    def attended(self, query: Any, key: Any, value: Any, mask: Any, out: torch.Tensor, causal: bool) -> None:
        """Record one attention that :class:`Functions` stood in for."""
        read = [query, key, value, *([mask] if isinstance(mask, torch.Tensor) else [])]
        inputs = tuple(self.value(t) for t in read)
        needs = torch.is_grad_enabled() and any(self.trace.values[i].needs for i in inputs)
        op = Op(len(self.trace.ops), "attention", "attention", inputs, (), self.path, needs=needs)
        op.outputs = (self.register(out, producer=op.index, needs=needs).index,)
        self._attending(op, query, key, value, mask, causal)
        self.trace.ops.append(op)
        if needs:
            self.by_sequence[torch.autograd._get_sequence_nr() - 1] = op.index

    def _attending(self, op: Op, query: Any, key: Any, value: Any, mask: Any, causal: bool) -> None:
        marked = isinstance(mask, torch.Tensor) and self.trace.values[self.value(mask)].causal
        same = query.shape[-2] == key.shape[-2]
        causal, window = causal_and_window(self.stack, causal, marked, mask is not None, same)
        stored = min(self._stored(key) / key.shape[-1], self._stored(value) / value.shape[-1])
        batch, heads = (1, *query.shape)[-4] if query.dim() > 3 else query.shape[0], query.shape[-3]
        heads = heads if query.dim() > 3 else 1
        per_head = max(1, batch * key.shape[-2])
        op.attending = Attending(
            int(batch), int(heads), max(1, min(int(heads), round(stored / per_head))), int(query.shape[-2]),
            int(key.shape[-2]), int(query.shape[-1]), int(value.shape[-1]), causal, window,
        )  # fmt: skip
        op.flop, op.backward_flop = op.attending.flop


def _divides(name: str, op: Op, values: list[Value]) -> bool:
    return name.startswith("div") and len(op.inputs) > 1 and values[op.inputs[1]].needs


def _distinct(tensor: torch.Tensor) -> int:
    """Elements of a tensor that differ in memory."""
    count = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        count *= int(size) if stride != 0 or size == 1 else 1
    return count


def _same_storage(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.untyped_storage()._cdata == other.untyped_storage()._cdata


def _shares(tensor: torch.Tensor, tensors: list[torch.Tensor]) -> bool:
    return any(_same_storage(tensor, t) for t in tensors)
