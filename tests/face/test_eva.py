"""The EVA tower: names, shapes, and its mathematics against a second way of writing it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from consisid.engine.checkpoint.tiny_faces.write import seeded_weights, tiny_eva
from consisid.engine.networks.eva import TAPS, EvaTower, eva_arguments, eva_state, rotary_table

SMALL = {"width": 128, "layers": 21, "mlp_hidden": 96, "image_size": 56, "embed_dim": 40}


def small_tower(seed: int = 0) -> tuple[EvaTower, dict[str, Tensor]]:
    with torch.device("meta"):
        tower = EvaTower(**SMALL)
    return tower, seeded_weights(tower, seed)


def test_names_and_shapes_of_the_checkpoint():
    with torch.device("meta"):
        state = EvaTower(1024, 24, 2730).state_dict()
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    block = {
        "norm1.weight": (1024,), "norm1.bias": (1024,), "norm2.weight": (1024,), "norm2.bias": (1024,),
        "attn.q_proj.weight": (1024, 1024), "attn.k_proj.weight": (1024, 1024), "attn.v_proj.weight": (1024, 1024),
        "attn.q_bias": (1024,), "attn.v_bias": (1024,),
        "attn.inner_attn_ln.weight": (1024,), "attn.inner_attn_ln.bias": (1024,),
        "attn.proj.weight": (1024, 1024), "attn.proj.bias": (1024,),
        "mlp.w1.weight": (2730, 1024), "mlp.w1.bias": (2730,), "mlp.w2.weight": (2730, 1024), "mlp.w2.bias": (2730,),
        "mlp.ffn_ln.weight": (2730,), "mlp.ffn_ln.bias": (2730,), "mlp.w3.weight": (1024, 2730), "mlp.w3.bias": (1024,),
    }  # fmt: skip
    expected = {
        "cls_token": (1, 1, 1024), "pos_embed": (1, 577, 1024),
        "patch_embed.proj.weight": (1024, 3, 14, 14), "patch_embed.proj.bias": (1024,),
        "norm.weight": (1024,), "norm.bias": (1024,), "head.weight": (768, 1024), "head.bias": (768,),
    } | {f"blocks.{i}.{name}": shape for i in range(24) for name, shape in block.items()}  # fmt: skip
    assert shapes == expected


def test_arguments_follow_from_the_checkpoint():
    checkpoint = tiny_eva(0, 64, 22)
    checkpoint["visual.rope.freqs_cos"] = torch.zeros(576, 64)
    checkpoint["visual.blocks.3.attn.rope.freqs_sin"] = torch.zeros(576, 64)
    checkpoint["text.ln_final.weight"] = torch.zeros(8)
    state = eva_state(checkpoint)
    arguments = eva_arguments(state)
    assert arguments == {
        "width": 64, "layers": 22, "mlp_hidden": 170, "image_size": 336, "patch_size": 14, "embed_dim": 768,
    }  # fmt: skip
    with torch.device("meta"):
        assert EvaTower(**arguments).state_dict().keys() == state.keys()


def test_rotary_is_a_turn_by_row_then_column():
    """Channel pair i of the first half turns by row * theta_i, of the second by column * theta_i."""
    cos, sin = rotary_table(6, 4, 8, torch.device("cpu"))
    theta = 10000.0 ** -torch.tensor([0.0, 0.5])
    for row, column in ((0, 0), (5, 2), (1, 4)):
        angle = torch.cat((row * 4 / 6 * theta, column * 4 / 6 * theta)).repeat_interleave(2)
        torch.testing.assert_close(cos[row * 6 + column], angle.cos())
        torch.testing.assert_close(sin[row * 6 + column], angle.sin())


def plain_tower(state: dict[str, Tensor], image: Tensor) -> list[Tensor]:
    """The tower again, from the paper's formulas, one head and one matrix at a time."""

    def norm(x: Tensor, name: str) -> Tensor:
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()
        return scaled * state[f"{name}.weight"] + state[f"{name}.bias"]

    side = SMALL["image_size"] // 14
    patches = image.unfold(2, 14, 14).unfold(3, 14, 14).permute(0, 2, 3, 1, 4, 5).reshape(1, side * side, -1)
    x = patches @ state["patch_embed.proj.weight"].flatten(1).T + state["patch_embed.proj.bias"]
    x = torch.cat((state["cls_token"], x), 1) + state["pos_embed"]
    index = torch.arange(side * side)
    theta = 10000.0 ** (-torch.arange(16) / 16)
    angles = torch.cat(((index // side)[:, None] * theta, (index % side)[:, None] * theta), 1) * 16 / side
    turn = torch.polar(torch.ones_like(angles), angles)

    def rotated(x: Tensor) -> Tensor:
        pairs = torch.view_as_complex(x[:, 1:].reshape(1, side * side, 32, 2).contiguous())
        return torch.cat((x[:, :1], torch.view_as_real(pairs * turn).flatten(2)), 1)

    taps = []
    for i in range(SMALL["layers"]):
        if i in TAPS:
            taps.append(x)
        p = f"blocks.{i}"
        y = norm(x, f"{p}.norm1")
        q = y @ state[f"{p}.attn.q_proj.weight"].T + state[f"{p}.attn.q_bias"]
        k = y @ state[f"{p}.attn.k_proj.weight"].T
        v = y @ state[f"{p}.attn.v_proj.weight"].T + state[f"{p}.attn.v_bias"]
        heads = []
        for h in range(0, SMALL["width"], 64):
            weights = (rotated(q[..., h : h + 64]) @ rotated(k[..., h : h + 64]).mT / 8).softmax(-1)
            heads.append(weights @ v[..., h : h + 64])
        y = norm(torch.cat(heads, -1), f"{p}.attn.inner_attn_ln")
        x = x + y @ state[f"{p}.attn.proj.weight"].T + state[f"{p}.attn.proj.bias"]
        y = norm(x, f"{p}.norm2")
        gate = y @ state[f"{p}.mlp.w1.weight"].T + state[f"{p}.mlp.w1.bias"]
        y = gate * gate.sigmoid() * (y @ state[f"{p}.mlp.w2.weight"].T + state[f"{p}.mlp.w2.bias"])
        x = x + norm(y, f"{p}.mlp.ffn_ln") @ state[f"{p}.mlp.w3.weight"].T + state[f"{p}.mlp.w3.bias"]
    return [norm(x[:, 0], "norm") @ state["head.weight"].T + state["head.bias"], *taps]


def test_the_formulas():
    tower, state = small_tower()
    image = torch.randn(1, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        result = torch.func.functional_call(tower, state, (image,))
        expected = plain_tower(state, image)
    assert len(result) == 6
    for ours, theirs in zip(result, expected, strict=True):
        # fp32 round-off of 21 blocks in another order of summation, at values up to about 20: 2.4e-5 was measured.
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


def test_full_size_on_the_meta_device():
    with torch.device("meta"):
        out = EvaTower(1024, 24, 2730)(torch.empty(2, 3, 336, 336))
    assert [tuple(t.shape) for t in out] == [(2, 768)] + [(2, 577, 1024)] * 5


def test_a_tower_too_shallow_for_the_taps_fails():
    with torch.device("meta"):
        tower = EvaTower(64, 20, 170)
        with pytest.raises(ValueError, match="unpack"):
            tower(torch.empty(1, 3, 336, 336))


def test_bfloat16_keeps_its_dtype():
    tower, state = small_tower()
    half = {name: value.bfloat16() for name, value in state.items()}
    out = torch.func.functional_call(tower, half, (torch.randn(1, 3, 56, 56).bfloat16(),))
    assert {t.dtype for t in out} == {torch.bfloat16}
    assert F.cosine_similarity(out[0].float(), out[0].float()).isfinite().all()
