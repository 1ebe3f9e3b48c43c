"""What commands that plan ask on the command line, each option once."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

import typer


class Precision(StrEnum):
    """Types that weights and matrix products use."""

    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"
    fp8 = "fp8"


class Optimizer(StrEnum):
    """Optimisers whose states are counted."""

    adam = "adam"
    sgd = "sgd"


Model = Annotated[
    str, typer.Argument(help="A preset (see `meshwright models`), a config.json, or a directory with one.")
]
ClusterName = Annotated[
    str, typer.Option("--cluster", "-c", help="NAME, NAME:COUNT (dgx-h100:4), a TOML file, or what a tool wrote.")
]
SeqLen = Annotated[
    int | None, typer.Option("--seq-len", min=1, help="Tokens a sequence. Default: 8192 or what the model takes.")
]
Batch = Annotated[
    int | None, typer.Option("--global-batch", min=1, help="Sequences a step. Default: about 4 Mi tokens.")
]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="Default: bf16 where the device has it.")
]
OptimizerOption = Annotated[Optimizer, typer.Option("--optimizer", help="Whose states to hold.")]
ObjectiveOption = Annotated[
    str,
    typer.Option("--objective", help="time, energy, money, tokens-per-joule, goodput; several in order: time,energy."),
]
Slack = Annotated[str | None, typer.Option("--slack", help="What each objective may cost for the next: 2%.")]
Tokens = Annotated[str | None, typer.Option("--tokens", help="Tokens to train on, such as 15T: time and money of all.")]
Limit = Annotated[
    list[str] | None,
    typer.Option("--limit", help="At most so much: --limit host-power='8 kW' --limit train-time='30 d'."),
]
PowerCap = Annotated[
    str | None, typer.Option("--power-cap", help="Most power at the facility's meter, with its unit: '700 kW'.")
]
Clocks = Annotated[bool, typer.Option("--clocks", help="Choose each stage's clock, under a power cap or for energy.")]
Tiers = Annotated[
    str | None,
    typer.Option("--tiers", help="Memory tiers that tensors may be offloaded to: dram,nvme, cxl-pool:2, or all."),
]
CalibrationFile = Annotated[
    str | None,
    typer.Option("--calibration", help="Constants measured on such machines, in place of what the cluster names."),
]
Headroom = Annotated[float, typer.Option("--headroom", min=0.0, max=0.99, help="Part of device memory to leave free.")]
Pins = Annotated[list[str] | None, typer.Option("--pin", help="Hold an axis: --pin tp=4 --pin zero=1,recompute=full.")]
TimeLimit = Annotated[float, typer.Option("--time-limit", min=0.01, help="Seconds to search at most.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def work_asked(
    seq_len: int | None, global_batch: int | None, precision: Precision | None, optimizer: Optimizer
) -> dict[str, Any]:
    """The work that the options name, as keyword arguments of ``plan()``."""
    return {
        "seq_len": seq_len, "global_batch": global_batch, "optimizer": optimizer.value,
        "precision": None if precision is None else precision.value,
    }  # fmt: skip
