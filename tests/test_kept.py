"""What stacks keep for backward beyond or below one copy of each tensor: every case by hand."""

from __future__ import annotations

import dataclasses

import pytest
from costs import make_rows, plain_fits, small_model, two_hosts

from cost_models.kept import kept_elements
from cost_models.memory import buffer_bytes, logit_bytes, needed, saved_bytes, state_bytes
from cost_models.model_graph import Attention, Layer, Operator
from cost_models.stack import Stack
from cost_models.workload import Training

FITS = plain_fits(two_hosts())
H, KV, WIDTH = 64, 16, 192
"""Hidden width, keys' elements (as many values), feed-forward width."""
NORM = {"kind": "elementwise", "split": "sequence", "parameters": H}
OPERATORS = (
    Operator("attention_norm", **NORM, saved=2 * H, saved_selective=H),
    Operator("qkv", "matmul", "columns", n=H + 2 * KV, k=H, saved=H + 2 * KV, saved_selective=H + 2 * KV),
    Operator("attention", "attention", "columns", saved=H, saved_selective=H, attention=Attention(4, 1, 16, 16)),
    Operator("output", "matmul", "columns", n=H, k=H),
    Operator("feed_forward_norm", **NORM, saved=2 * H, saved_selective=H),
    Operator("gate_up", "matmul", "columns", n=2 * WIDTH, k=H, saved=2 * WIDTH, saved_selective=2 * WIDTH),
    Operator("activation", "elementwise", "columns", moved=3 * WIDTH, saved=WIDTH),
    Operator("down", "matmul", "columns", n=H, k=WIDTH),
)
DENSE = Layer("dense", OPERATORS, boundaries=2)
ROUTED = Layer(
    "experts",
    (
        *OPERATORS[:5],
        Operator("router", "matmul", "sequence", n=8, k=H, saved=8, saved_selective=8),
        Operator("dispatch", "elementwise", "routed", saved=2 * H, saved_selective=2 * H),
        Operator("experts_up", "expert_matmul", "experts", saved=96, saved_selective=96),
        Operator("experts_activation", "elementwise", "experts", saved=96),
        Operator("combine", "elementwise", "routed", saved=2 * H, saved_selective=2 * H),
    ),
    experts=8,
    top_k=2,
)


def kept(layer: Layer, name: str = "saved", **options) -> dict[str, float]:
    settings = {key: options.pop(key) for key in list(options) if key in Stack.model_fields}
    work = Training(seq_len=8, global_batch=1, stack=Stack(**settings), **options)
    return {op.name: kept_elements(op, layer, H, name, work) for op in layer.operators}


@pytest.mark.parametrize(("precision", "share"), [("fp8", 1 / 2), ("fp4", 9 / 32)])
def test_a_quantised_input_is_kept_as_it_is_read(precision, share):
    """A byte, or 4.5 bits: of both norms' results, the activation's, and attention's beside its 16-bit one."""
    plain, less = kept(DENSE), kept(DENSE, precision=precision)

    assert less["attention_norm"] == less["feed_forward_norm"] == H + share * H
    assert less["activation"] == share * WIDTH
    assert less["attention"] == plain["attention"] + share * H
    assert [less[name] for name in ("qkv", "gate_up")] == [plain[name] for name in ("qkv", "gate_up")]
    assert kept(DENSE, precision=precision, quantised_inputs=False) == plain


def test_llama_405b_in_fp8_keeps_11_hidden_widths_and_5_feed_forward_widths():
    """Bytes a token and layer: 11 h + 5 f + 4 kv, where 16 bits take 12 h + 6 f + 4 kv."""
    counts = {name: 2 * sum(kept(DENSE, precision=name).values()) for name in ("bf16", "fp8")}

    assert counts == {"bf16": 12 * H + 6 * WIDTH + 4 * KV, "fp8": 11 * H + 5 * WIDTH + 4 * KV}


def test_a_router_reads_16_bits_and_experts_their_own_copy():
    found = kept(ROUTED, precision="fp8")

    assert (found["feed_forward_norm"], found["dispatch"], found["experts_activation"]) == (2 * H, H, 48)


@pytest.mark.parametrize(("inside", "left"), [(True, 0), (False, 2 * H)])
def test_weights_inside_an_expert_need_no_result_of_it(inside, left):
    assert kept(ROUTED, weights_on_activation=inside)["combine"] == left


@pytest.mark.parametrize(
    ("selective", "again"),
    [
        ("network", {"router", "dispatch", "experts_up", "experts_activation", "combine"}),
        ("activation", {"experts_activation"}),
        ("attention", set()),
        ("behind_qkv", None),
    ],
)
def test_modules_that_run_again_keep_nothing(selective, again):
    whole = kept(ROUTED)
    again = whole.keys() - {"qkv"} if again is None else again
    found = kept(ROUTED, "saved_selective", selective=selective)

    left = {op.name: op.saved_selective for op in ROUTED.operators if op.name == "attention_norm"}
    assert found == {name: left.get(name, 0) if name in again else size for name, size in whole.items()}


def test_functions_of_shared_experts_stay_beside_those_of_routed_ones():
    shared = Operator("shared_activation", "elementwise", "columns", moved=3 * WIDTH, saved=WIDTH)
    layer = dataclasses.replace(ROUTED, operators=(*ROUTED.operators, shared))

    assert kept(layer, "saved_selective", selective="activation")["shared_activation"] == WIDTH
    assert kept(layer, "saved_selective", selective="network")["shared_activation"] == 0


def test_gathered_inputs_that_stay():
    """Two inputs a layer and the head's: 3/4 of the hidden width at tp 4 is not the rank's own."""
    rows, work = make_rows(tp=4), Training(seq_len=8, global_batch=1)
    keeps = work.model_copy(update={"stack": Stack(gathers_again=False)})
    more = [saved_bytes(DENSE, H, rows, one, FITS)["none"][0] for one in (work, keeps)]
    ends = [logit_bytes(small_model(), rows, one, FITS)[0] for one in (work, keeps)]

    assert more[1] - more[0] == 2 * 8 * 2 * H * 3 / 4
    assert ends[1] - ends[0] == 2 * 8 * 16 * 3 / 4


@pytest.mark.parametrize("tuning", ["all", "lora"])
def test_keys_and_values_that_are_copied_for_every_head(tuning):
    """Of four heads and one of keys and values: three more of each; not where the layer runs again in part."""
    plain, found = (kept(DENSE, tuning=tuning, repeats_kv=copied) for copied in (False, True))
    again = [kept(DENSE, "saved_selective", tuning=tuning, repeats_kv=copied) for copied in (False, True)]

    assert found == plain | {"attention": plain["attention"] + 3 * (16 + 16)}
    assert again[0] == again[1]


def test_copies_for_every_head_are_all_that_a_rank_keeps():
    """On tp 4 each rank has one head of keys and values, 32 elements, as without copies where tp is above them."""
    rows, work = make_rows(tp=4), Training(seq_len=8, global_batch=1)
    copies = work.model_copy(update={"stack": Stack(repeats_kv=True)})
    for choice in ("none", "selective"):
        found = [saved_bytes(DENSE, H, rows, one, FITS)[choice][0] for one in (work, copies)]
        assert found[0] == found[1]


@pytest.mark.parametrize(("options", "states"), [({}, 2), ({"copies_gathered": True}, 4),
                                                 ({"copies_gathered": True, "tp_overlap": True}, 2)])  # fmt: skip
def test_gathered_hidden_states_and_their_copies(options, states):
    model, rows = small_model(), make_rows(tp=2, micro_batch=3)
    work = Training(seq_len=8, global_batch=1, stack=Stack(**options))

    assert buffer_bytes(model, rows, work, FITS)[0] == states * 3 * 8 * 16 * 2


def test_adapters_of_single_kernels():
    """Rotated queries and keys beside all three; of queries' and values' adapters a mask of bytes and the result."""
    lora = {"tuning": "lora", "lora_targets": ("qkv",), "fused_pointwise": False}
    plain = kept(DENSE, **lora)
    found = kept(DENSE, **lora, whole_qkv=True, plain_adapters=True)

    assert (plain["attention_norm"], plain["feed_forward_norm"]) == (3 * H, 2 * H)
    assert found["qkv"] - plain["qkv"] == (H + KV) + (H + KV) + H / 2


def test_bitsandbytes_keeps_inputs_and_two_copies_of_the_largest_matrix():
    lora = {"tuning": "lora", "lora_targets": ("qkv",), "frozen_bytes": 0.5}
    plain, found = kept(DENSE, **lora), kept(DENSE, **lora, bitsandbytes=True)
    more = {name: found[name] - plain[name] for name in found if found[name] != plain[name]}
    stack = Stack(frozen_bytes=0.5, bitsandbytes=True)
    work = Training(seq_len=8, global_batch=1, tuning="lora", lora_targets=("qkv",), stack=stack)
    other = work.model_copy(update={"stack": Stack(frozen_bytes=0.5)})
    model, rows = small_model(), make_rows()

    assert more == {"attention_norm": H, "feed_forward_norm": H, "activation": WIDTH}
    assert buffer_bytes(model, rows, work, FITS)[0] - buffer_bytes(model, rows, other, FITS)[0] == 4 * 128 * 16
    heads = [state_bytes(model.head, rows, one)["weights"][0] for one in (other, work)]
    assert heads[0] == 4 * heads[1]


def test_a_loss_on_parts_of_the_vocabulary_takes_bytes_of_its_own():
    """Where it is not fused, and where tp splits the vocabulary: 18 bytes a logit of the half, not 14."""
    fits = plain_fits(two_hosts(), logit_bytes=14.0, split_logit_bytes=18.0, fused_logit_bytes=4.0)
    model, works = small_model(), [
        Training(seq_len=8, global_batch=1, stack=Stack(fused_loss=fused)) for fused in (False, True)
    ]  # fmt: skip
    found = [[logit_bytes(model, make_rows(tp=tp), work, fits)[0] for tp in (1, 2)] for work in works]

    assert found == [[8 * model.vocab * 14, 8 * model.vocab * 9], [8 * model.vocab * 4, 8 * model.vocab * 2]]


def test_states_of_an_embedding_may_be_wider():
    work = Training(
        seq_len=8, global_batch=1, stack=Stack(optimizer_bytes=6, embedding_optimizer_bytes=12)
    )  # fmt: skip
    model, rows = small_model(), make_rows()
    found = [state_bytes(layer, rows, work)["optimizer"][0] for layer in (model.embedding, model.head, DENSE)]

    assert found == [12 * model.embedding.parameters, 6 * model.head.parameters, 6 * DENSE.parameters]


@pytest.mark.parametrize(("activations", "logits", "need"), [(30.0, 0.0, 120.0), (7.0, 6.0, 110.0), (0.0, 0.0, 110.0)])
def test_what_only_the_update_holds_is_not_beside_activations(activations, logits, need):
    """4 of 16 bytes of states are the step's own, 20 of 80: these or activations with logits count, the larger ones."""
    work = Training(seq_len=8, global_batch=1)
    held = {"weights": 30.0, "optimizer": 80.0, "activations": activations, "logits": logits}

    assert needed(held, work, plain_fits(two_hosts(), step_bytes=4.0)) == pytest.approx(need)
    assert needed(held, work, plain_fits(two_hosts()), spare=2.0) == pytest.approx(2 * sum(held.values()))


def test_gradients_that_a_rank_holds():
    """6 bytes a parameter: 16-bit ones and their fp32 sums."""
    work = Training(seq_len=8, global_batch=1, stack=Stack(held_gradient_bytes=6))

    assert state_bytes(DENSE, make_rows(), work)["gradients"][0] == 6 * DENSE.parameters


def test_a_gradient_applied_at_once_is_held_until_then():
    """The embedding of 128 tokens by 16 is the largest of the model's parts, in 16 bits."""
    model, rows = small_model(), make_rows()
    sizes = [model.embedding.parameters, model.head.parameters, *(kind.parameters for kind in model.kinds)]
    work = Training(seq_len=8, global_batch=1, stack=Stack(gradient_bytes=0))

    assert buffer_bytes(model, rows, work, FITS)[0] == 2 * max(sizes)


def test_a_head_that_runs_in_chunks_has_its_gradient_beside_a_chunk_s():
    model, rows = small_model(), make_rows()
    work = Training(seq_len=8, global_batch=1, stack=Stack(gradient_bytes=0, chunked_loss=True))

    assert buffer_bytes(model, rows, work, FITS)[0] == 2 * 2 * model.head.parameters


def test_graphs_of_frozen_layers_pin_nothing_more():
    rows, fits = make_rows(), dataclasses.replace(FITS, graph_bytes=1000.0)
    work = Training(seq_len=8, global_batch=1, tuning="lora", stack=Stack(cuda_graphs=True))

    assert buffer_bytes(small_model(), rows, work, fits) == buffer_bytes(small_model(), rows, work, FITS)


@pytest.mark.parametrize(("heads", "beside"), [(1, 0), (4, 2 * H)])
def test_keys_and_values_joined_into_a_copy(heads, beside):
    """Of four heads of 16 as many keys and values stay in the whole result; fewer are each copied alone."""
    attention = dataclasses.replace(OPERATORS[2], attention=Attention(4, heads, 16, 16))
    layer = Layer("dense", (*OPERATORS[:2], attention, *OPERATORS[3:]), boundaries=2)

    assert kept(layer, joined_kv=True)["qkv"] == kept(layer)["qkv"] + beside


def test_norms_of_one_kernel_keep_no_fp32_vector_where_other_kernels_are_single():
    single, fused = kept(DENSE, fused_pointwise=False), kept(DENSE, fused_pointwise=False, fused_norms=True)

    assert single["attention_norm"] == fused["attention_norm"] + 2 * H
    assert fused["attention_norm"] == kept(DENSE)["attention_norm"]
    assert fused["activation"] == single["activation"] > kept(DENSE)["activation"]


def test_an_adapter_s_dropout_keeps_a_mask_of_bytes():
    """Half a 16-bit element each, of what the adapters of the first projection and of the output read."""
    plain, masked = (kept(DENSE, tuning="lora", adapter_masks=on) for on in (False, True))

    assert masked["qkv"] == plain["qkv"] + H / 2
    assert masked["attention"] == plain["attention"] + H / 2
    assert kept(DENSE, tuning="lora", adapter_masks=True, lora_targets=("up",))["qkv"] == plain["qkv"]


def test_attention_in_fp8_beside_adapters_keeps_its_result_in_a_byte():
    plain, less = (kept(DENSE, tuning="lora", precision="fp8", fp8_attention=on) for on in (False, True))

    assert less["attention"] == plain["attention"] - H / 2


def test_a_compiled_layer_does_not_keep_what_its_backward_pass_does_not_read():
    """Of every second product's results the last is added to the residual, which takes no derivative to know."""
    eager, compiled = (
        kept(DENSE, "saved_selective", selective="alternate", fused_pointwise=on) for on in (False, True)
    )

    assert (eager["down"], compiled["down"]) == (H, 0)
    assert {**eager, "down": 0} == compiled


def test_graphs_pin_buffers():
    rows, fits = make_rows(), dataclasses.replace(FITS, graph_bytes=1000.0)
    plain, graphs = (Training(seq_len=8, global_batch=1, stack=Stack(cuda_graphs=on)) for on in (False, True))

    assert (
        buffer_bytes(small_model(), rows, graphs, fits)[0] == 1000 + buffer_bytes(small_model(), rows, plain, fits)[0]
    )


LATENT = Layer(
    "latent",
    (
        OPERATORS[0],
        Operator("kv_a", "matmul", "whole", saved=24, saved_selective=24),
        Operator("latent_norm", "elementwise", "whole", saved=20),
        Operator("kv_b", "matmul", "columns", saved=3 * H, saved_selective=3 * H),
        Operator("rope", "elementwise", "columns", saved=8),
        *ROUTED.operators[4:],
    ),
    experts=8,
    top_k=2,
)


@pytest.mark.parametrize(
    ("selective", "less"),
    [
        ("up_projection", {"latent_norm": 20, "kv_b": 3 * H, "rope": 8}),
        (
            "small_modules",
            {"attention_norm": H, "latent_norm": 20, "kv_b": 3 * H, "rope": 8, "feed_forward_norm": H,
             "experts_activation": 96},
        ),
    ],
)  # fmt: skip
def test_latents_stand_for_queries_keys_and_values_where_their_projections_run_again(selective, less):
    whole, part = kept(LATENT), kept(LATENT, "saved_selective", selective=selective)

    assert {name: whole[name] - part[name] for name in whole if whole[name] != part[name]} == less


def test_the_input_of_experts_activation_is_kept_in_fp8_too():
    assert kept(ROUTED, fp8_activation=True)["experts_up"] == kept(ROUTED)["experts_up"] / 2
