"""Plans at work: apply one to a torch module under torchrun, train with it, measure. torch is imported on use."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.errors import Unsupported

if TYPE_CHECKING:
    import torch

    from planner.mixed.one_mesh import MixedJob
    from planner.mixed.uneven import UnevenJob
    from planner.result import Plan

__all__ = ["apply"]


def apply(plan: Plan | MixedJob | UnevenJob, module: torch.nn.Module, **options: Any) -> tuple[Any, Any]:
    """``(model, schedule)``: see :func:`planner.runtime.parallelize.parallelize`.

    Raises ``Unsupported`` where torch is not installed.
    """
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise Unsupported("applying a plan needs torch; install it with: pip install 'meshwright[torch]'") from error
    from planner.runtime.parallelize import parallelize

    return parallelize(plan, module, **options)
