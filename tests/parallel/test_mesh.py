"""How devices share tokens."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from consisid.engine.errors import InputError
from consisid.engine.parallel.mesh import Mesh, cut
from consisid.engine.parallel.trunk import take
from consisid.engine.shapes import VideoShape
from consisid.engine.variants import PREVIEW, TINY
from consisid.kernels import merge, partial_attention
from consisid.kernels.partial_attention import reference


@pytest.mark.parametrize(
    ("devices", "heads", "mesh"),
    [
        (1, 48, "cfg=1"),
        (2, 48, "cfg=2"),
        (3, 48, "ulysses=3"),
        (4, 48, "cfg=2,ulysses=2"),
        (5, 48, "ring=5"),
        (6, 48, "cfg=2,ulysses=3"),
        (8, 48, "cfg=2,ulysses=4"),
        (4, 3, "cfg=2,ring=2"),
        (9, 3, "ulysses=3,ring=3"),
    ],
)
def test_the_rule(devices, heads, mesh):
    found = Mesh.choose(devices, heads)
    assert str(found) == mesh
    assert found.size == devices


@pytest.mark.parametrize("text", ["", "cfg", "cfg=x", "cfg=0", "cfg=-1", "cfg=2,cfg=2", "rows=2", "cfg=2 ulysses=2", 3])
def test_no_mesh(text):
    with pytest.raises(InputError, match="give the axes cfg, ulysses, ring"):
        Mesh.parse(text, 48)


def test_a_mesh_that_cannot_be():
    with pytest.raises(InputError, match="guidance has two halves"):
        Mesh.parse("cfg=3", 48)
    with pytest.raises(InputError, match="has to divide the 48 heads"):
        Mesh.parse("ulysses=5", 48)


@given(st.integers(1, 2), st.integers(1, 6), st.integers(1, 6))
def test_ranks_and_coordinates(cfg, ulysses, ring):
    mesh = Mesh(cfg, ulysses, ring)
    assert [mesh.rank(*mesh.coordinates(rank)) for rank in range(mesh.size)] == list(range(mesh.size))


@given(st.integers(0, 100), st.integers(1, 20))
def test_cuts_are_even(length, parts):
    spans = cut(length, parts)
    sizes = [end - begin for begin, end in spans]
    assert sum(sizes) == length
    assert max(sizes) - min(sizes) <= 1
    assert [begin for begin, _ in spans[1:]] == [end for _, end in spans[:-1]]


@pytest.mark.parametrize("parts", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("variant", [TINY, PREVIEW], ids=["tiny", "preview"])
def test_every_token_is_somewhere_once(variant, parts):
    shape = VideoShape.of(variant, None, None, None)
    shares = Mesh(ring=parts).shares(variant, shape)
    text, video = variant.transformer.max_text_seq_length, shape.video_tokens
    hidden = torch.arange(1, text + video + 1).float().view(1, -1, 1)
    found = [torch.cat([take(hidden, share)[:, place] for place in share.places], 1).flatten() for share in shares]
    assert torch.equal(torch.cat(found).sort().values, hidden.flatten())
    assert {take(hidden, share).shape[1] for share in shares} == {-(-text // parts) + -(-video // parts)}


@pytest.mark.parametrize("parts", [2, 3])
def test_attention_over_parts_of_the_keys(parts):
    q, k, v = torch.randn(3, 2, 40, 3, 16, generator=torch.Generator().manual_seed(1)).unbind(0)
    expected, total = reference(q * 3, k * 3, v, 0.25)
    assert torch.allclose(
        expected.transpose(1, 2), torch.nn.functional.scaled_dot_product_attention(
            *(x.transpose(1, 2) for x in (q * 3, k * 3, v)), scale=0.25), atol=1e-5
    )  # fmt: skip
    pieces = [
        partial_attention(q * 3, keys, values, 0.25)
        for keys, values in zip((k * 3).tensor_split(parts, 1), v.tensor_split(parts, 1), strict=True)
    ]
    found = pieces[0]
    for piece in pieces[1:]:
        found = merge(found, piece)
    assert torch.allclose(found[0], expected, atol=1e-5)
    assert torch.allclose(found[1], total, atol=1e-5)
