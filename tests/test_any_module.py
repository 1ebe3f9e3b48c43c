"""Plans applied to modules that run by their own ``forward``: exactness by axis and family, and what is refused."""

from __future__ import annotations

import re

import pytest

torch = pytest.importorskip("torch")

import module_worker  # noqa: E402
import torch_models  # noqa: E402
from module_cases import AXES, CHECKPOINT_MATRIX, CHECKPOINTS, DO_NOT_APPLY, MATRIX, MODULE_CASES  # noqa: E402
from plans import make_plan  # noqa: E402
from torch.distributed.pipelining import PipelineStage  # noqa: E402

from planner.errors import BadInput, Unsupported  # noqa: E402
from planner.read_model.torch_module import read_module  # noqa: E402
from planner.runtime import checkpoint, clipping  # noqa: E402
from planner.runtime.blocks import read_blocks  # noqa: E402
from planner.runtime.pipeline_stage import ScheduledStage  # noqa: E402
from planner.runtime.recompute import recompute_inside  # noqa: E402
from planner.runtime.split_modules import SectionedWeight  # noqa: E402
from planner.runtime.stages import StagePart, release  # noqa: E402

LIMIT = 0.05


def compared(case, found):
    """Losses, gradients and the norm of all gradients, against a single process's on the same micro-batches."""
    assert found["covered"], "the ranks together do not hold every parameter"
    assert found["apart"] == 0.0, "ranks do not start from one copy's weights"
    assert found["loss"] == pytest.approx(found["wanted_loss"], rel=case.tolerance / 10)
    assert found["error"] < case.tolerance, found["worst"]
    assert found["statistics"] < case.tolerance
    assert found["norm"] == pytest.approx(found["wanted_norm"], rel=case.tolerance)
    assert found["clipped"] == pytest.approx(LIMIT, rel=1e-3)


def named(cases):
    return pytest.mark.parametrize("case", cases, ids=[f"{case.name} on {case.world}" for case in cases])


@named([case for case in MODULE_CASES if case.mutation is None and not case.refused])
def test_gradients_equal_a_single_process(case, findings):
    compared(case, findings(case.world)[case.name])


@pytest.mark.matrix
@named([case for case in MODULE_CASES if case.mutation is not None and not case.refused])
def test_a_job_with_a_part_taken_out_is_noticed(case, findings):
    """The comparison above would fail without this exchange or division."""
    assert findings(case.world, "matrix")[case.name]["error"] > 0.05


@named([case for case in MODULE_CASES if case.refused])
def test_rules_are_refused_on_every_rank(case, findings):
    """Rank 0 checks them, and whatever it meets the others are told instead of waiting."""
    said = findings(case.world)[case.name]["said"]

    assert len(said) == case.world and len(set(said)) == 1
    assert re.search(case.refused, said[0])


@named(CHECKPOINTS)
def test_a_checkpoint_of_one_plan_is_loaded_under_another(case, findings):
    """All weights and both of Adam's moments, bit by bit; the next step's loss too. What is not whole is refused."""
    found = findings(case.world)[case.name]

    saved(found)
    assert "exists; give each its own folder" in found["again"]
    shorter, unfinished, partial = found["said"]
    assert "is no whole checkpoint" in shorter and "distcp was" in shorter
    assert "complete.json is missing" in unfinished and "complete.json is missing" in partial


def saved(found):
    assert (found["step"], found["differ"]) == (2, [])
    assert found["states"] > 3 * 20
    assert found["loss"] == pytest.approx(found["wanted_loss"], rel=1e-5)


@pytest.mark.matrix
@named(CHECKPOINT_MATRIX)
def test_checkpoints_between_more_plans(case, findings):
    saved(findings(case.world, "matrix")[case.name])


@pytest.mark.matrix
@named(MATRIX)
def test_every_axis_and_pair_of_every_family(case, findings):
    compared(case, findings(case.world, "matrix")[case.name])


def planned(module, example, name="small", **strategy):
    """A plan for just this module."""
    graph = read_module(module, example, name)
    plan = make_plan(config=None, name=name, layers=graph.layers, **strategy)
    record = {"parameters": graph.parameters, "layers": graph.layers, "digest": graph.digest}
    return plan.model_copy(update={"model": plan.model.model_copy(update=record)})


def alike_layers():
    """Two layers with one norm's weight."""
    module = torch_models.Decoder(layers=2)
    module.blocks[1].norm1.weight = module.blocks[0].norm1.weight
    return module


TOKENS = torch.zeros(1, 12, dtype=torch.long)
V_SHAPED = {"pp": 2, "virtual_stages": 2, "schedule": "zbv", "micro_batches": 4}
IMAGES = torch.zeros(1, 8, 8, 8)


@pytest.mark.parametrize(
    ("network", "example", "strategy", "text"),
    [
        (torch_models.Convolutional, IMAGES, {"cp": 2}, r"cp = 2 needs an output for every position, .*\(1, 10\)"),
        (torch_models.Convolutional, IMAGES, {"tp": 2}, "no rule splits any module of Convolutional; pin tp=1"),
        (torch_models.UNet, torch.zeros(1, 3, 8, 8), {"pp": 2}, "pass on nothing but their hidden states"),
        (lambda: torch_models.Decoder(tied=True), TOKENS, V_SHAPED, "share one weight, and schedule=zbv has both ends"),
        (lambda: alike_layers(), TOKENS, {"pp": 2}, r"parameter 'blocks.1.norm1.weight' is also one of 'blocks.0'"),
        (lambda: torch_models.Decoder(layers=2), TOKENS, {"dp_shard": 2, "ep": 2}, "no experts were found in Decoder"),
    ],
)
def test_axes_that_do_not_apply_are_refused_before_the_job(network, example, strategy, text):
    module = network()
    with pytest.raises(Unsupported, match=text):
        planned(module, example, **strategy).apply(module, example_inputs=example)


def test_layers_that_attend_by_products_of_their_own_are_refused_under_cp(transformers):
    """Before the job: gemma2 caps its scores, for which transformers has no kernel."""
    sizes = {"head_dim": 8, "num_key_value_heads": 2, "vocab_size": 64, "query_pre_attn_scalar": 8}
    module = transformers.Gemma2ForCausalLM(transformers.Gemma2Config(**module_worker.SIZES, **sizes))
    example = {"input_ids": TOKENS}
    with pytest.raises(Unsupported, match=r"scaled_dot_product_attention, and 'model\.layers\.0' calls none"):
        planned(module, example, cp=2).apply(module, example_inputs=example)


@pytest.mark.matrix
@pytest.mark.parametrize(("family", "axis"), [key for key in DO_NOT_APPLY if key != ("t5", "tp")])
def test_the_table_of_what_does_not_apply(family, axis):
    """t5's rules are refused only once ranks have met."""
    module, example = module_worker.build(family, 1), module_worker.batch_of(family, 1)[0]
    strategy = AXES[axis]
    with pytest.raises(Unsupported, match=DO_NOT_APPLY[family, axis]):
        planned(module, example, **strategy).apply(module, example_inputs=example)


def test_a_plan_of_another_module_is_refused_by_digest():
    """As many parameters and layers, but a window: the digest tells them apart."""
    plan = planned(torch_models.Decoder(layers=2), TOKENS)
    other = torch_models.Decoder(layers=2, windows=(4,))
    with pytest.raises(BadInput, match=r"digest = [0-9a-f]{16}, but the module has [0-9a-f]{16} with these"):
        plan.apply(other, example_inputs=TOKENS)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_compiled_module_is_refused():
    """Its forward would run what was compiled, not what is done to its layers."""
    module = torch_models.Decoder(layers=2)
    with pytest.raises(BadInput, match=r"before torch\.compile, and this Decoder is compiled; give module\._orig_mod"):
        planned(module, TOKENS).apply(torch.compile(module), example_inputs=TOKENS)


def test_a_module_that_is_no_known_decoder_needs_example_inputs():
    with pytest.raises(BadInput, match="example_inputs"):
        planned(torch_models.Decoder(layers=2), TOKENS).apply(torch_models.Decoder(layers=2))


def test_what_other_stages_hold_is_left_on_the_target_device():
    """The module is still on the CPU when its stage is cut; the zeros are where the rest of it goes."""
    layer = torch.nn.Sequential(torch.nn.Linear(4, 2))
    release(layer, ["0"], [], torch.zeros((), device="meta"))

    assert not list(layer.parameters())
    assert (layer[0].weight.device.type, layer[0].weight.shape) == ("meta", (2, 4))
    assert layer[0].weight.untyped_storage().nbytes() == 4


def test_a_later_stage_counts_nothing_of_what_comes_before():
    """The stem runs there on zeros, for the shapes; its statistics are the module's own, as the layers' are."""
    module = torch_models.Convolutional()
    module.stem = torch.nn.Sequential(module.stem, torch.nn.BatchNorm2d(8))
    blocks = read_blocks(planned(module, IMAGES), module, IMAGES)
    later = StagePart(module, blocks, range(1, 3), torch.zeros(()))
    later.hook()
    later(torch.randn(2, 16, 8, 8), arg0=torch.randn(2, 8, 8, 8))
    counts = {name: int(it) for name, it in module.named_buffers() if name.endswith("num_batches_tracked")}

    assert counts["stem.1.num_batches_tracked"] == counts["stages.0.norm1.num_batches_tracked"] == 0
    assert counts["stages.1.norm1.num_batches_tracked"] == counts["stages.2.norm2.num_batches_tracked"] == 1


class Averaging(torch.nn.Module):
    """A norm's running statistics, and two buffers of its own that count passes: in place and anew."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(4)
        self.register_buffer("passes", torch.zeros(()))
        self.register_buffer("anew", torch.zeros(()))

    def forward(self, x):
        self.passes += 1
        self.anew = self.anew + 1
        return self.norm(x).square()


@pytest.mark.parametrize("kind", ["full", "selective"])
def test_recomputing_counts_nothing_twice(kind):
    torch.manual_seed(0)
    once, twice, x = Averaging(), Averaging(), torch.randn(3, 4)
    recompute_inside(twice, kind)
    for layer in (once, twice):
        layer(x).sum().backward()

    assert int(twice.norm.num_batches_tracked) == int(twice.passes) == int(twice.anew) == 1
    for wanted, found in zip(once.buffers(), twice.buffers(), strict=True):
        assert torch.equal(wanted, found)
    assert torch.equal(once.norm.weight.grad, twice.norm.weight.grad)


def test_made_up_inputs_change_no_buffer(monkeypatch):
    """Neither a norm's statistics nor what a layer counts by itself."""
    stage = object.__new__(ScheduledStage)
    stage.submod = Averaging()
    held = dict(stage.submod.named_buffers())
    monkeypatch.setattr(PipelineStage, "_forward_metadata_inference", lambda stage: stage.submod(torch.zeros(3, 4)))
    monkeypatch.setattr(PipelineStage, "_post_metadata_inference_cleanup", lambda stage: None)
    stage._forward_metadata_inference()
    assert int(stage.submod.passes) == 1
    stage._post_metadata_inference_cleanup()

    assert all(it is held[name] for name, it in stage.submod.named_buffers())
    assert all(torch.equal(it, wanted) for it, wanted in zip(held.values(), Averaging().buffers(), strict=True))


def test_fill_is_refused_where_the_module_has_parameters_of_its_own():
    """No call of fill would give them values."""
    module = torch_models.Scaled(layers=2)
    with pytest.raises(Unsupported, match="'start' is Scaled's own, in none of them"):
        planned(module, TOKENS).apply(module, example_inputs=TOKENS, fill=lambda name, inner: None)


def test_a_rank_without_gradients_reduces_on_the_mesh_s_device(monkeypatch):
    """As a rank of a stage without parameters does; nccl takes no tensor of the CPU."""
    places = []
    monkeypatch.setattr(clipping.dist, "all_reduce", lambda total: places.append(total.device.type))
    monkeypatch.setattr(torch.Tensor, "item", lambda total: 0.0)
    clipping.clip_gradients([], 1.0, 1, torch.device("meta"))

    assert places == ["meta"]


@pytest.mark.parametrize("folder", ["ckpt", "ckpt/"])
def test_a_checkpoint_is_written_beside_its_folder(folder, tmp_path, monkeypatch):
    """A slash at the end changes nothing: the parts are in ckpt.partial until the folder is whole."""
    written = []
    monkeypatch.setattr(checkpoint, "_together", lambda work: work())
    monkeypatch.setattr(checkpoint, "_states", lambda *args: {})
    monkeypatch.setattr(checkpoint.dcp, "save", lambda states, checkpoint_id: written.append(checkpoint_id))
    checkpoint.save(f"{tmp_path}/{folder}", planned(torch_models.Decoder(layers=2), TOKENS), None, None, step=1)

    assert written == [f"{tmp_path}/ckpt.partial"]
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt"]


def test_fused_rows_are_reordered_and_back():
    """Two ranks, sections of 4 and 2 rows: each rank has half of both."""
    layout = SectionedWeight(0, (4, 2), 2)
    rows = torch.arange(6)

    assert layout.split_order(rows).tolist() == [0, 1, 4, 2, 3, 5]
    assert torch.equal(layout.module_order(layout.split_order(rows)), rows)
