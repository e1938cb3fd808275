"""The DiT against the reference's numbers, and run every way: autocast, compiled, checkpointed, adapted."""

import copy

import numpy as np
import pytest
import torch
from jaxtyping import config as jaxtyping_config
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ray_dit.config import DiTConfig
from ray_dit.core import dit
from ray_dit.core.dit import DiT, adapt_state_dict, macs, position_table, with_bfloat16_products
from tests.support.golden_dit import CASES, CONFIG, assert_near, case, tiny_model, weights

LABEL_TABLE = "y_embedder.embedding_table.weight"


def changed(**fields: object) -> DiTConfig:
    return CONFIG.model_copy(update=fields)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def golden_forward(model: DiT) -> torch.Tensor:
    return model(case("x"), case("t"), case("y"))


# --- against the reference


@torch.no_grad()
def test_forward_is_the_references():
    assert_near(golden_forward(tiny_model()), case("forward"))


@torch.no_grad()
@pytest.mark.parametrize("scale", [1.5, 4.0])
def test_guided_forward_is_the_references(scale: float):
    x, y = case("x").repeat(2, 1, 1, 1), torch.cat([case("cfg_y"), torch.full((4,), CONFIG.num_classes)])
    conditional, unconditional = tiny_model()(x, torch.full((8,), 321), y).chunk(2)
    guided = conditional.clone()
    guided[:, :3] = unconditional[:, :3] + scale * (conditional[:, :3] - unconditional[:, :3])
    assert_near(guided, case(f"forward_with_cfg_t321_scale{scale}"))


def test_names_and_shapes_are_those_of_official_checkpoints():
    ours, official = DiT(CONFIG).state_dict(), weights()
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: w.shape for n, w in official.items()}


def test_normalisations_have_the_published_eps():
    # diffusers' DiT differs here, by less than the tolerance of the forward pass
    norms = [module for module in DiT(CONFIG).modules() if isinstance(module, torch.nn.LayerNorm)]
    assert len(norms) == 2 * CONFIG.depth + 1
    assert {norm.eps for norm in norms} == {1e-6}


def test_position_table_is_the_references():
    rows = position_table(192, 16, 16)[[0, 1, 17, 255]]
    np.testing.assert_allclose(rows, CASES["pos_embed_192_g16_rows"], rtol=0, atol=1e-12)
    torch.testing.assert_close(DiT(CONFIG).pos_embed.detach(), weights()["pos_embed"], rtol=0, atol=1e-7)


def test_position_table_of_an_oblong_grid():
    table, square = position_table(16, 2, 5), position_table(16, 5, 5)
    assert table.shape == (10, 16)
    np.testing.assert_array_equal(table, square[:10])  # row by row, so the first two rows of the square


@pytest.mark.parametrize(
    ("preset", "parameters", "gmacs"),
    [
        ("DiT-S/2", 32_963_360, 6.06),
        ("DiT-B/2", 130_512_416, 23.01),
        ("DiT-L/2", 458_102_816, 80.71),
        ("DiT-XL/2", 675_129_632, 118.64),
    ],
)
def test_presets_have_the_published_size(preset: str, parameters: int, gmacs: float):
    config = DiTConfig.preset(preset)
    with torch.device("meta"):
        model = DiT(config)
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert round(macs(config) / 1e9, 2) == gmacs


def test_macs_at_512_pixels_are_the_published():
    assert round(macs(DiTConfig.preset("DiT-XL/2", input_size=64)) / 1e9, 2) == 524.60


def test_macs_are_those_torch_counts():
    model, counter = tiny_model(), FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:  # other kernels it does not count
        model(case("x")[:1], case("t")[:1], case("y")[:1])
    tokens = (CONFIG.input_size // CONFIG.patch_size) ** 2
    gates = 2 * CONFIG.depth * tokens * CONFIG.hidden_size
    assert macs(CONFIG) == counter.get_total_flops() // 2 + gates


# --- fresh weights


def test_fresh_model_is_zero_and_its_blocks_the_identity():
    model = DiT(CONFIG, generator=seeded())
    assert golden_forward(model).count_nonzero() == 0
    tokens, condition = torch.randn(2, 16, 64), torch.randn(2, 64)
    assert torch.equal(model.blocks[1](tokens, condition), tokens)


def test_fresh_weights_are_drawn_as_the_paper_says():
    state = DiT(changed(hidden_size=256, num_classes=100), generator=seeded()).state_dict()
    assert all(tensor.count_nonzero() == 0 for name, tensor in state.items() if name.endswith("bias"))
    for name in ("t_embedder.mlp.0.weight", "t_embedder.mlp.2.weight", LABEL_TABLE):
        assert state[name].std().item() == pytest.approx(0.02, rel=0.03)
    for name, fans in [
        ("blocks.2.attn.qkv.weight", 256 + 768),
        ("blocks.0.mlp.fc2.weight", 1024 + 256),
        ("x_embedder.proj.weight", 16 + 256),
    ]:
        assert state[name].std().item() == pytest.approx((2 / fans) ** 0.5, rel=0.03)
        assert state[name].abs().max().item() <= (6 / fans) ** 0.5


def test_generator_decides_the_fresh_weights():
    first, again, other = (DiT(CONFIG, generator=seeded(s)).state_dict() for s in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["blocks.0.mlp.fc1.weight"], other["blocks.0.mlp.fc1.weight"])


# --- inputs


@torch.no_grad()
def test_fractional_time_steps_lie_between_whole_ones():
    model, x, y = tiny_model(), case("x")[:1], case("y")[:1]
    at = {t: model(x, torch.tensor([t]), y) for t in (320, 320.0, 320.5, 321)}
    assert torch.equal(at[320], model(x, torch.tensor([320.0]), y))
    gaps = [(at[320.5] - at[t]).norm() for t in (320, 321)]
    assert 0 < max(gaps) < (at[320] - at[321]).norm()


@torch.no_grad()
def test_model_without_classes_needs_no_labels():
    model = DiT(changed(num_classes=0), generator=seeded())
    assert not any(name.startswith("y_embedder") for name in model.state_dict())
    torch.nn.init.normal_(model.final_layer.linear.weight, generator=seeded())
    plain = model(case("x"), case("t"))
    assert plain.abs().max() > 0
    assert torch.equal(plain, model(case("x"), case("t"), case("y")))


def test_null_class_has_a_row_only_where_labels_are_dropped():
    assert len(DiT(CONFIG).state_dict()[LABEL_TABLE]) == CONFIG.num_classes + 1
    assert len(DiT(changed(class_dropout_prob=0.0)).state_dict()[LABEL_TABLE]) == CONFIG.num_classes


def test_fixed_variance_model_predicts_eps_alone():
    assert golden_forward(DiT(changed(learn_sigma=False))).shape == (4, 4, 8, 8)


def test_wrong_latents_and_missing_labels_are_refused():
    model = DiT(CONFIG)
    with pytest.raises(ValueError, match=r"takes \[B, 4, 8, 8\]"):
        model(torch.zeros(1, 4, 16, 16), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    with pytest.raises(ValueError, match="10 classes"):
        model(torch.zeros(1, 4, 8, 8), torch.zeros(1))


# --- the ways it is run


@torch.no_grad()
@pytest.mark.parametrize("patch_size", [1, 2, 4])
def test_patches_embedded_by_a_product_are_those_of_the_convolution(patch_size: int):
    embedder = DiT(changed(patch_size=patch_size), generator=seeded()).x_embedder
    torch.nn.init.normal_(embedder.proj.bias, generator=seeded())
    assert_near(embedder.as_product(case("x")), embedder(case("x")), 1e-6)


def dtypes_under_autocast(model: DiT) -> dict[str, torch.dtype]:
    """The dtype of each linear and normalisation layer's output under autocast, and of the model's."""
    seen: dict[str, torch.dtype] = {}
    handles = [
        module.register_forward_hook(lambda m, i, out, name=name: seen.update({name: out.dtype}))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.LayerNorm)
    ]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        seen["output"] = golden_forward(model).dtype
    for handle in handles:
        handle.remove()
    return seen


def test_autocast_reaches_the_blocks_products_only():
    low = {name for name, dtype in dtypes_under_autocast(tiny_model()).items() if dtype == torch.bfloat16}
    assert low == {
        f"blocks.{i}.{layer}" for i in range(3) for layer in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    }


@torch.no_grad()
def test_autocast_stays_near_float32():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_near(golden_forward(tiny_model()), case("forward"), 0.02)


@torch.no_grad()
def test_products_cast_once_are_those_of_autocast():
    model, golden = tiny_model(), tiny_model().state_dict()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        want, got = golden_forward(model), golden_forward(with_bfloat16_products(model))
    assert torch.equal(want, got)
    kept = {name for name, weight in model.state_dict().items() if torch.equal(weight, golden[name])}
    assert all((".attn." in name or ".mlp." in name) for name in golden.keys() - kept)
    assert model.blocks[0].mlp.fc1.weight.dtype == torch.bfloat16


def gradients(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    model(case("x"), case("t"), case("y")).square().mean().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_no_bit():
    plain, saving = tiny_model(), tiny_model()
    saving.activation_checkpointing = True
    calls: list[int] = []
    saving.blocks[0].attn.register_forward_hook(lambda *_: calls.append(1))
    want, got = gradients(plain), gradients(saving)
    assert want.keys() == got.keys()
    assert "pos_embed" not in got
    assert all(torch.equal(want[name], got[name]) for name in want)
    assert len(calls) == 2  # once forward, once again for the backward pass


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_compiles_without_graph_breaks(monkeypatch: pytest.MonkeyPatch, checkpointing: bool, autocast: bool):
    # shape checks exist under pytest only, and the compiler can't look into them
    monkeypatch.setattr(jaxtyping_config, "jaxtyping_disable", True)
    model = tiny_model()
    model.activation_checkpointing = checkpointing
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True, backend="eager")
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        want, got = golden_forward(model), compiled(case("x"), case("t"), case("y"))
        assert torch.equal(want, got)
        gradients(compiled)


# --- fine-tuning


def test_another_class_count_gets_fresh_labels_and_keeps_the_rest():
    new = changed(num_classes=4)
    adapted = adapt_state_dict(weights(), CONFIG, new, generator=seeded())
    assert len(adapted[LABEL_TABLE]) == 5
    DiT(new).load_state_dict(adapted)
    kept = {name for name, tensor in weights().items() if torch.equal(tensor, adapted[name])}
    assert set(weights()) - kept == {LABEL_TABLE}
    assert adapted[LABEL_TABLE].std().item() == pytest.approx(0.02, rel=0.15)
    again = adapt_state_dict(weights(), CONFIG, new, generator=seeded())
    assert torch.equal(adapted[LABEL_TABLE], again[LABEL_TABLE])


@pytest.mark.parametrize(("drop_old", "drop_new"), [(0.0, 0.1), (0.1, 0.0), (0.1, 0.2)])
def test_null_class_comes_and_goes_and_the_classes_stay(drop_old: float, drop_new: float):
    old, new = changed(class_dropout_prob=drop_old), changed(class_dropout_prob=drop_new)
    state = weights()
    state[LABEL_TABLE] = state[LABEL_TABLE][: dit.num_labels(old)]
    adapted = adapt_state_dict(state, old, new)
    DiT(new).load_state_dict(adapted)
    assert torch.equal(adapted[LABEL_TABLE][:10], state[LABEL_TABLE][:10])
    if drop_old and drop_new:
        assert torch.equal(adapted[LABEL_TABLE], state[LABEL_TABLE])


def test_labels_can_be_left_and_taken_up():
    unconditional = changed(num_classes=0)
    left = adapt_state_dict(weights(), CONFIG, unconditional)
    DiT(unconditional).load_state_dict(left)
    DiT(CONFIG).load_state_dict(adapt_state_dict(left, unconditional, CONFIG))


@torch.no_grad()
def test_another_resolution_gets_its_position_table():
    new = changed(input_size=12)
    state = weights()
    adapted = adapt_state_dict(state, CONFIG, new)
    model = DiT(new)
    fresh_table = model.pos_embed.clone()
    model.load_state_dict(adapted)
    assert torch.equal(model.pos_embed, fresh_table)
    assert model(torch.zeros(1, 4, 12, 12), torch.zeros(1), torch.zeros(1, dtype=torch.long)).abs().max() > 0
    assert state["pos_embed"].shape == (1, 16, 64)  # what was given is as it was


def test_other_changes_are_refused_by_name():
    with pytest.raises(ValueError, match="hidden_size 64 -> 128, depth 3 -> 2;"):
        adapt_state_dict(weights(), CONFIG, changed(hidden_size=128, depth=2, num_classes=3))
