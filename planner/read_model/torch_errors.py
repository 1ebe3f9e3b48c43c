"""What went wrong while a module was traced, as what to change: the rule, the line of the user's code, the way out."""

from __future__ import annotations

import re
import sysconfig
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from topologies.errors import BadInput

DATA_DEPENDENT = (DataDependentOutputException, DynamicOutputShapeException, GuardOnDataDependentSymNode)
ITEM = ("item()", "numpy()", "data-dependent", "Boolean value of Tensor", "tolist()", "unbacked")
TORCH, HERE = (f"{Path(file).parent}/" for file in (torch.__file__, __file__))
OWN_CODE = (TORCH, "/site-packages/transformers/", HERE)
STANDARD = f"{sysconfig.get_paths()['stdlib']}/"
CONTROL = re.compile(r"^(if|elif|while|for|assert|return .* if )\b|\bif .* else\b|\b(and|or)\b")
"""Source lines that branch."""


@dataclass(frozen=True)
class Failure:
    """One error met while ``module`` ran on inputs of ``shapes``; ``where`` is the line, ``text`` what torch said."""

    module: str
    shapes: str
    where: str
    source: str
    text: str


def is_own(file: str) -> bool:
    """Whether a file is the user's: neither torch's, transformers', Python's nor this package's."""
    standard = file.startswith(STANDARD) and "-packages/" not in file
    return not standard and not file.startswith("<") and not any(part in file for part in OWN_CODE)


def user_line(frame: FrameType | None) -> str:
    """``file:line`` of the innermost frame from ``frame`` on that is the user's."""
    while frame is not None:
        if is_own(frame.f_code.co_filename):
            return f"{frame.f_code.co_filename.rsplit('/', 1)[-1]}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch's own code"


def explained(module: torch.nn.Module, tensors: list[torch.Tensor], error: Exception) -> BadInput:
    """The error as what to change, with the line of the module that raised it."""
    shapes = ", ".join(f"{tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for t in tensors)
    where, source = _line_of(error)
    failure = Failure(type(module).__name__, shapes, where, source, first_line(error))
    return BadInput(next(says(failure) for applies, says in CAUSES if applies(error, str(error))))


def is_of_inputs(error: Exception) -> bool:
    """Whether a module refused its arguments, by code of its own: data in place of shapes would not help."""
    innermost = traceback.extract_tb(error.__traceback__)[-1].filename
    cause = next(says for applies, says in CAUSES if applies(error, str(error)))
    refused = isinstance(error, TypeError | ValueError) and not innermost.startswith(TORCH)
    return cause is _arguments or (cause is _other and refused)


def first_line(error: Exception) -> str:
    """What an error says first; its class too where that is a part of what it says."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    named = isinstance(error, RuntimeError | TypeError | ValueError)
    said = lines[0] if lines else type(error).__name__
    return (said if named or not lines else f"{type(error).__name__}: {said}")[:200]


def _line_of(error: Exception) -> tuple[str, str]:
    """The innermost line of the user's own code that an error passed, else of the library that raised it."""
    frames = traceback.extract_tb(error.__traceback__)
    outside = [f for f in frames if not f.filename.startswith((HERE, TORCH, STANDARD))]
    own = [frame for frame in outside if is_own(frame.filename)]
    frame = (own or outside or list(frames))[-1]
    source = (frame.line or "").strip()
    return f"{frame.filename.rsplit('/', 1)[-1]}:{frame.lineno} ({source[:80]})", source


def _depends(it: Failure) -> str:
    return f"{it.module} decides by the values of its data at {it.where} ({it.text}); a plan knows shapes only. " + (
        "Give the module with that branch taken (an argument or attribute in place of the tensor), a mask instead of a "
        "loop over data, or plan from a config.json"
        if CONTROL.search(it.source)
        else "Keep the number a tensor (no float(), int(), .item(), .numpy() or f-string of it), give what it sizes as "
        "an argument or attribute, a mask instead of a loop over data, or plan from a config.json"
    )


def _shape_depends(it: Failure) -> str:
    return (
        f"{it.module} makes a tensor at {it.where} whose size depends on the values of its data ({it.text}); a plan "
        "knows shapes only. Make it of a fixed size (padded, with a mask; repeat_interleave with output_size and equal "
        "counts; bincount with minlength), or give the sizes as a tensor of whole numbers among example_inputs"
    )


def _packed(it: Failure) -> str:
    return (
        f"{it.module} packs sequences at {it.where}, whose rows in memory depend on the values of their lengths; a "
        "plan knows shapes only. Give recurrent layers the padded batch, without pack_padded_sequence"
    )


def _takes_functions(it: Failure) -> str:
    return (
        f"{it.module} calls an operator that takes functions at {it.where}, such as torch.cond, while_loop or scan, "
        "which decide by the values of their data; a plan knows shapes only. Give the module with the branch taken, or "
        "a Python loop of a fixed number of turns"
    )


def _flex(it: Failure) -> str:
    return (
        f"{it.module} calls flex_attention at {it.where}, which does not go back on a CPU, where shapes are passed; "
        "plan the module with scaled_dot_product_attention in its place (a flag of the module)"
    )


def _layout(it: Failure) -> str:
    return (
        f"{it.module} makes or reads nested or sparse tensors at {it.where} ({it.text}), whose elements their shapes "
        "do not count; plan it with a padded tensor and a mask, or index_select and index_add for sparse products"
    )


def _without_fake(it: Failure) -> str:
    return (
        f"{it.module} calls an operator at {it.where} whose result's shape is not known ({it.text}); give it one with "
        "torch.library.register_fake, and register_autograd for its backward pass"
    )


def _arguments(it: Failure) -> str:
    return f"{it.module} cannot be called with example_inputs of {it.shapes}: {it.text}"


def _cuda(it: Failure) -> str:
    return (
        f"{it.module} makes tensors on a CUDA device at {it.where} ({it.text}); planning passes shapes on a CPU: "
        "create them on the device of an input or of a parameter instead"
    )


def _other(it: Failure) -> str:
    return f"{it.module} fails at {it.where} on example_inputs of {it.shapes}: {it.text}"


LAYOUTS = ("SparseTensorImpl", "SparseCsrTensorImpl", "NestedIntNode", "NestedTensor", "shape_env must not be None")
CAUSES: tuple[tuple[Callable[[Exception, str], bool], Callable[[Failure], str]], ...] = (
    (lambda error, text: "_pack_padded_sequence" in text, _packed),
    (lambda error, text: isinstance(error, DynamicOutputShapeException), _shape_depends),
    (lambda error, text: isinstance(error, DATA_DEPENDENT) or any(word in text for word in ITEM), _depends),
    (lambda error, text: "FlexAttention" in text, _flex),
    (lambda error, text: "HigherOrderOperator" in text, _takes_functions),
    (lambda error, text: any(word in text for word in LAYOUTS), _layout),
    (lambda error, text: "no fake impl" in text.lower() or "fake impl registered" in text, _without_fake),
    (lambda error, text: isinstance(error, TypeError) and "forward() " in text, _arguments),
    (lambda error, text: "cuda" in text.lower(), _cuda),
    (lambda error, text: True, _other),
)
"""What an error is known by, and what is said of it; the first that applies."""
