"""What every part of the catalogue is made of: frozen records, figures with a source each."""

from __future__ import annotations

from datetime import date
from typing import Any, Generic, Literal, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, SerializerFunctionWrapHandler, ValidationError, model_serializer

T = TypeVar("T")


class Record(BaseModel):
    """A frozen record that refuses fields it does not know."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Sparse(Record):
    """A record that is written without the fields that nobody told, as it was before it had them."""

    @model_serializer(mode="wrap")
    def _told(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {name: value for name, value in write(self).items() if value is not None}


class Source(Record):
    """Where a figure was read."""

    title: str
    url: str = ""
    read_on: date | None = None


class Figure(Record, Generic[T]):
    """One number, where it came from, and how sure it is."""

    value: T
    source: str
    kind: Literal["published", "derived", "measured", "assumed"] = "published"
    note: str = ""


class Figures(Record):
    """The figures of a part. They can be sent to another process: which figure has which unit, its class knows."""

    def __reduce__(self) -> tuple:
        return _figures_again, (type(self), {name: dict(figure) for name, figure in self if figure is not None})


def idle_within_board(figures: Any) -> Any:
    """The figures of a device. Raises ``ValueError`` where it draws more idle than at board power."""
    idle_w, board_w = figures.idle_power.value, figures.board_power.value
    if idle_w > board_w:
        raise ValueError(
            f"idle_power is {idle_w:g} W, above board_power of {board_w:g} W: what a device adds under load would be "
            "less than nothing; give both as they are measured"
        )
    return figures


def _figures_again(kind: type[Figures], given: dict[str, dict]) -> Figures:
    """Figures from values that were read before: ``Figure[Bytes]`` itself has no name to be found by."""
    fields = {name: kind.model_fields[name].annotation for name in given}
    figure = {name: (get_args(annotation) or (annotation,))[0] for name, annotation in fields.items()}
    return kind.model_construct(**{name: figure[name].model_construct(**values) for name, values in given.items()})


def validation_text(error: ValidationError) -> str:
    """Every complaint of a pydantic error on one line: ``figures.price.value: ...; name: ...``.

    A list is not too short for lack of members that are there but wrong. Beside a limit stands the number.
    """
    errors = error.errors()
    within = {e["loc"][:k] for e in errors for k in range(len(e["loc"]))}
    told = [e for e in errors if e["type"] != "too_short" or e["loc"] not in within]
    return "; ".join(f"{'.'.join(str(p) for p in e['loc']) or 'file'}: {e['msg']}{_beyond(e)}" for e in told)


def _beyond(error: dict) -> str:
    return f", got {str(error['input'])[:40]}" if error["type"].startswith(("greater_than", "less_than")) else ""
