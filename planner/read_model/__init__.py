"""Models by name, from a Hugging Face ``config.json``, from a torch module, or as a graph already."""

from __future__ import annotations

import difflib
import json
import re
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cost_models.model_graph import ModelGraph
from planner.read_model.config_fields import shown
from planner.read_model.hf_config import has_reading, text_part
from planner.read_model.hf_config import read_config as read_by_table
from topologies.catalogue import unknown
from topologies.errors import BadInput, UnknownName

if TYPE_CHECKING:
    import torch

__all__ = ["preset_names", "read_config", "read_model"]

PRESETS = Path(__file__).parent / "presets"
LARGEST_FILE_BYTES = 2_000_000
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
"""An organisation and a model, as the Hugging Face hub names them."""


def preset_names() -> list[str]:
    """Names of the models that come along, sorted."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def read_model(what: str | Path | dict | ModelGraph | torch.nn.Module, example_inputs: Any = None) -> ModelGraph:
    """The model that ``what`` means: ``"llama-3.1-8b"``, a ``config.json`` or its directory, its content, or itself.

    ``"meta-llama/Llama-3.1-8B"`` is read from the cache of the Hugging Face hub, where it is there; nothing is fetched.
    A torch module is read by passing the shapes of ``example_inputs`` through it
    (:mod:`planner.read_model.torch_module`). Raises ``UnknownName`` with the nearest presets, ``BadInput`` for a file,
    content or module that is no model, and for example inputs to anything but a module.
    """
    if is_module(what):
        from planner.read_model.torch_module import read_module

        return read_module(what, example_inputs)
    if example_inputs is not None:
        raise BadInput(f"example_inputs are for torch modules; the model is {shown(what)}, which needs none")
    if isinstance(what, ModelGraph):
        return what
    if isinstance(what, dict):
        return read_config(what, _own_name(what))
    if isinstance(what, str) and what in preset_names():
        return read_config(read_json(PRESETS / f"{what}.json"), what)
    if isinstance(what, str | Path):
        return _read_path(what)
    raise BadInput(
        "a model is a preset name, the path of a config.json, its content, a torch module or a ModelGraph; found "
        f"{shown(what)}"
    )


def read_config(config: dict, name: str) -> ModelGraph:
    """The graph of a ``config.json``'s content: by its family's reading, else by the model that transformers builds.

    Raises ``BadInput`` and ``UnknownName`` as :mod:`planner.read_model.hf_config` and
    :mod:`planner.read_model.torch_from_config` do.
    """
    if has_reading(config) or not all(map(find_spec, ("torch", "transformers"))):
        return read_by_table(config, name)
    from planner.read_model.torch_from_config import read_built

    return read_built(text_part(config), name)


def is_module(what: object) -> bool:
    """Whether ``what`` is a torch module; torch is not imported for the question."""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "nn") and isinstance(what, torch.nn.Module)


def _own_name(config: dict) -> str:
    """The last part of the name or path that transformers wrote into a config, else its family."""
    for key in ("_name_or_path", "model_type"):
        written = config.get(key)
        if isinstance(written, str) and written.strip("/"):
            return written.strip("/").rsplit("/", 1)[-1][:80]
    return "model"


def _read_path(what: str | Path) -> ModelGraph:
    if (cached := _cached(str(what))) is not None:
        return read_config(read_json(cached), str(what).rsplit("/", 1)[1])
    path = _file(what)
    name = path.resolve().parent.name if path.name == "config.json" else path.stem
    return read_config(read_json(path), name or "model")


def _file(what: str | Path) -> Path:
    """The file that ``what`` points to. Raises ``UnknownName`` for a bare word that is neither preset nor path."""
    text, path = str(what), Path(what)
    try:
        directory, exists = path.is_dir(), path.exists()
    except (OSError, ValueError) as error:
        raise BadInput(f"{shown(text)} cannot be a path: {str(error)[:60]}") from error
    if directory and not (path / "config.json").is_file():
        raise BadInput(f"directory {shown(text, 200)} holds no config.json; give the file itself")
    if exists:
        return path / "config.json" if directory else path
    if isinstance(what, Path) or "/" in text or "\\" in text or text.endswith(".json"):
        raise BadInput(
            f"{shown(text, 200)} does not exist; give a config.json, its directory or a preset name{_from_hub(text)}"
        )
    raise UnknownName(f"{unknown('model', text, preset_names())}; or give the path of a config.json")


def _cached(text: str) -> Path | None:
    """The config of a model of the Hugging Face hub, where its cache on this machine has it and no path is so named."""
    if not HUB_NAME.fullmatch(text) or Path(text).exists() or find_spec("huggingface_hub") is None:
        return None
    from huggingface_hub import try_to_load_from_cache

    try:
        found = try_to_load_from_cache(text, "config.json")
    except ValueError:
        return None
    return Path(found) if isinstance(found, str) else None


def _from_hub(text: str) -> str:
    """For what may be a model of the Hugging Face hub: how to get its config, and the preset that may be the same."""
    if not HUB_NAME.fullmatch(text):
        return ""
    model = text.rsplit("/", 1)[1].lower()
    near = difflib.get_close_matches(model, preset_names(), n=1, cutoff=0.6)
    fetch = f"hf download {text} config.json --local-dir {model}"
    return f"; if it is a model of the Hugging Face hub: {fetch}" + (
        f", or take the preset {near[0]!r}" if near else ""
    )


def read_json(path: Path) -> dict:
    """The object in a JSON file. Raises ``BadInput`` when it is missing, above 2 MB, not text or not a JSON object."""
    try:
        if not path.is_file():
            raise BadInput(f"{path} is not a regular file; give a config.json")
        if path.stat().st_size > LARGEST_FILE_BYTES:
            raise BadInput(f"{path} is {path.stat().st_size:,} bytes; a config.json is at most {LARGEST_FILE_BYTES:,}")
        found = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise BadInput(f"{path} is not UTF-8 text: {error.reason} at byte {error.start}") from error
    except RecursionError as error:
        raise BadInput(f"{path} nests too deeply for a config.json") from error
    except ValueError as error:
        if isinstance(error, BadInput):
            raise
        raise BadInput(f"{path} is not JSON: {str(error)[:200]}") from error
    if not isinstance(found, dict):
        raise BadInput(f"{path} holds {shown(found)}; a config.json is a JSON object")
    return found
