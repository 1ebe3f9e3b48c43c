"""A ``config.json`` of a family that has no reading here: transformers builds it without weights, and it is traced.

Nothing is lost against a torch module of the same config; what it takes is torch, transformers and a few seconds.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from cost_models.model_graph import ModelGraph
from planner.read_model.config_fields import ALIASES, shown
from planner.read_model.torch_module import read_module
from topologies.errors import BadInput, PlannerError, UnknownName

LONGEST_SAMPLE = 8192
"""Tokens of the sample that is passed through, for models without a shorter limit on positions."""
UNSTATED_SAMPLE = 2048
"""The same for models whose config states no limit."""
MOST_LAYERS = 1024
MOST_CALLS_IN_A_ROW = 1000
"""Calls of torch in one module's own code: some tens; what loops over tokens takes as many as there are tokens."""
LAYER_COUNTS = ("layers", "layer", "depth", "depths")
MOST_LABELS = 1_000_000
NOT_OF_THE_MODEL = ("_attn_implementation", "attn_implementation", "_experts_implementation", "quantization_config")
"""Fields that say with which kernels or in which type of weights a model was run; plans choose their own."""
Inputs = dict[str, torch.Tensor]


def read_built(config: Mapping[str, Any], name: str) -> ModelGraph:
    """The graph of the model that transformers builds from ``config``, as it trains on one sample.

    A text model is passed a sample as long as its positions allow, a power of two of at most ``LONGEST_SAMPLE`` tokens;
    an image classifier one image of its size. Needs torch and transformers. Raises ``UnknownName`` for a family that
    transformers does not have, ``BadInput`` for a config it does not build, for a family that is neither a language
    model nor an image classifier, and for models whose code tells nothing of how they train.
    """
    _check_sizes(config)
    with _quiet_transformers() as transformers:
        module, inputs = _built(transformers, config)
        with _no_loops(type(module).__name__):
            graph = read_module(module, inputs, name)
    _check_sample(graph, module, inputs)
    note = f"its family has no reading here: {type(module).__name__} of transformers {transformers.__version__}, traced"
    return dataclasses.replace(graph, config=dict(config), notes=(note, *graph.notes))


def _check_sample(graph: ModelGraph, module: torch.nn.Module, inputs: Inputs) -> None:
    """Raises ``BadInput`` where the tokens passed in are not the sequence that was found in the last layer."""
    tokens = inputs["input_ids"].shape[1] if "input_ids" in inputs else None
    if tokens is not None and graph.example_seq_len != tokens:
        raise BadInput(
            f"{type(module).__name__} was passed {tokens:,} tokens, but its last layer has {graph.example_seq_len:,}: "
            "it lays out its hidden states in a way that is not read; no plan is made of it"
        )


def _check_sizes(config: Mapping[str, Any]) -> None:
    """Raises ``BadInput`` for more layers or labels than are built one by one, in a config or one inside it."""
    for inner in config.values():
        if isinstance(inner, Mapping):
            _check_sizes({"model_type": config.get("model_type"), **inner})
    limits = {field: MOST_LAYERS for field in config if str(field).endswith(LAYER_COUNTS)} | {"num_labels": MOST_LABELS}
    for field, most in limits.items():
        value = config.get(field)
        if any(type(it) is int and it > most for it in (value if isinstance(value, list) else [value])):
            raise BadInput(
                f"{shown(config.get('model_type'))} config: {field} is {shown(value)}; transformers makes them one by "
                f"one, so at most {most:,} are built"
            )


@contextmanager
def _quiet_transformers() -> Iterator[Any]:
    """transformers without the hub, its warnings of a config's fields held back; afterwards as it was."""
    import transformers
    from huggingface_hub import constants

    verbosity, offline = transformers.logging.get_verbosity(), constants.HF_HUB_OFFLINE
    transformers.logging.set_verbosity(transformers.logging.CRITICAL)
    constants.HF_HUB_OFFLINE = True
    try:
        yield transformers
    finally:
        transformers.logging.set_verbosity(verbosity)
        constants.HF_HUB_OFFLINE = offline


def _built(transformers: Any, config: Mapping[str, Any]) -> tuple[torch.nn.Module, Inputs]:
    """The model on the meta device, and one sample for it."""
    model_type = config["model_type"]
    if model_type not in transformers.CONFIG_MAPPING:
        nearest = difflib.get_close_matches(model_type.lower()[:80], list(transformers.CONFIG_MAPPING), n=4, cutoff=0.4)
        raise UnknownName(
            f"model_type {shown(model_type)} is no family of transformers {transformers.__version__}"
            f"{'; nearest: ' + ', '.join(nearest) if nearest else ''}; give the model as a torch module"
        )
    try:
        own = {key: _with_floats(value) for key, value in config.items() if key not in NOT_OF_THE_MODEL}
        settings = transformers.CONFIG_MAPPING[model_type].from_dict(own)
        task = _task(transformers, settings)
        with torch.device("meta"):
            return task.from_config(settings), INPUTS[task.__name__](settings)
    except PlannerError:
        raise
    except Exception as error:
        raise BadInput(
            f"{shown(model_type)} config: transformers {transformers.__version__} does not build it "
            f"({type(error).__name__}: {shown(str(error), 200)})"
        ) from error


def _with_floats(value: Any) -> Any:
    """``value`` with the infinities that transformers 5 writes as ``{"__float__": "Infinity"}``."""
    if isinstance(value, Mapping):
        if value.keys() == {"__float__"}:
            return float(value["__float__"])
        return {key: _with_floats(it) for key, it in value.items()}
    return [_with_floats(it) for it in value] if isinstance(value, list) else value


@contextmanager
def _no_loops(name: str) -> Iterator[None]:
    """While it lasts, raises ``BadInput`` where one module calls torch ``MOST_CALLS_IN_A_ROW`` times by itself."""
    inside = calls = 0

    def begin(module: torch.nn.Module, inputs: object) -> None:
        nonlocal inside, calls
        inside, calls = inside + 1, 0

    def end(module: torch.nn.Module, inputs: object, output: object) -> None:
        nonlocal inside, calls
        inside, calls = inside - 1, 0

    class Counted(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            nonlocal calls
            calls += inside > 0
            if calls > MOST_CALLS_IN_A_ROW:
                raise BadInput(
                    f"{name} calls torch more than {MOST_CALLS_IN_A_ROW:,} times in one module: without its own "
                    "kernels it loops over tokens, which says nothing of how it trains; no plan is made of it"
                )
            return func(*args, **(kwargs or {}))

    hooks = register_module_forward_pre_hook(begin), register_module_forward_hook(end)
    try:
        with Counted():
            yield
    finally:
        for hook in hooks:
            hook.remove()


def _task(transformers: Any, settings: Any) -> Any:
    """The class that builds what is trained: what ``architectures`` names, else the first task the family has."""
    named = (getattr(settings, "architectures", None) or [""])[0]
    tasks = [getattr(transformers, name) for name in INPUTS]
    tasks = [task for task in tasks if type(settings) in task._model_mapping]
    if not tasks:
        raise BadInput(
            f"{settings.model_type!r} is neither a language model nor an image classifier; give the model as a torch "
            "module with example_inputs"
        )
    return next((task for task in tasks if _class_of(task, settings).__name__ == named), tasks[0])


def _class_of(task: Any, settings: Any) -> type:
    found = task._model_mapping[type(settings)]
    return found[0] if isinstance(found, tuple) else found


def _tokens(settings: Any) -> Inputs:
    return {"input_ids": torch.zeros(1, _sample_len(settings), dtype=torch.long)}


def _pairs(settings: Any) -> Inputs:
    return {**_tokens(settings), "decoder_input_ids": _tokens(settings)["input_ids"]}


def _image(settings: Any) -> Inputs:
    size = getattr(settings, "image_size", 224)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    return {"pixel_values": torch.zeros(1, getattr(settings, "num_channels", 3), height, width)}


INPUTS: dict[str, Callable[[Any], Inputs]] = {
    "AutoModelForSeq2SeqLM": _pairs,
    "AutoModelForMaskedLM": _tokens,
    "AutoModelForCausalLM": _tokens,
    "AutoModelForImageClassification": _image,
}
"""What is passed to the models of each task; the first task that a family has is what it is trained for."""


def _sample_len(settings: Any) -> int:
    """The largest power of two of tokens that the positions take (some families reserve a few).

    Where only configs inside one state positions, as those of an encoder and a decoder, both have to take them.
    """
    inner = [_positions(it) for it in vars(settings).values() if hasattr(it, "model_type")]
    positions = _positions(settings) or min(filter(None, inner), default=UNSTATED_SAMPLE)
    return min(LONGEST_SAMPLE, 1 << (positions.bit_length() - 1))


def _positions(settings: Any) -> int | None:
    """The positions that a config states, in whatever spelling."""
    spellings = ("max_position_embeddings", *ALIASES["max_position_embeddings"], "max_seq_len")
    stated = [getattr(settings, name, None) for name in spellings]
    return next((it for it in stated if type(it) is int and it > 0), None)
