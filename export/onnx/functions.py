"""The kernels as ONNX functions of domain `consisid`: a call of a kernel is one node, its body of standard operators.

ONNX Runtime runs the bodies; a TensorRT plugin of the same name can take a node's place. Text and video rows are told
apart by a mask over the rows, not by cutting and joining: all of it is elementwise, which compilers fuse.
"""

import onnx
from onnxscript import INT64, script
from onnxscript import opset23 as op
from onnxscript.values import Opset

OPSET = 23  # the first with Attention
DOMAIN = Opset("consisid", 1)
FLOAT = 1  # onnx.TensorProto.FLOAT


@script(DOMAIN, default_opset=op)
def is_text(hidden, text_length: int):  # type: ignore[no-untyped-def]
    """[S, 1] bool: whether a row of hidden [B, S, C] is text."""
    rows = op.Range(op.Constant(value_int=0), op.Squeeze(op.Shape(hidden, start=1, end=2)), op.Constant(value_int=1))
    return op.Unsqueeze(op.Less(rows, op.Constant(value_int=text_length)), op.Constant(value_ints=[1]))


@script(DOMAIN, default_opset=op)
def row_of(hidden, modulation, which: int, text_length: int):  # type: ignore[no-untyped-def]
    """[S, C]: for each row of hidden its shift (0), scale (1) or gate (2) of modulation [2 (video, text), 3, C]."""
    pair = op.Gather(modulation, op.Constant(value_int=which), axis=1)
    video = op.Gather(pair, op.Constant(value_ints=[0]), axis=0)
    text = op.Gather(pair, op.Constant(value_ints=[1]), axis=0)
    return op.Where(is_text(hidden, text_length), text, video)


@script(DOMAIN, default_opset=op)
def modulated_norm(hidden, modulation, weight, bias, text_length: int, eps: float):  # type: ignore[no-untyped-def]
    normed = op.LayerNormalization(hidden, weight, bias, axis=-1, epsilon=eps)
    scale = row_of(hidden, modulation, 1, text_length)
    one = op.CastLike(op.Constant(value_float=1.0), scale)
    return normed * (one + scale) + row_of(hidden, modulation, 0, text_length)


@script(DOMAIN, default_opset=op)
def gated_residual(hidden, update, modulation, text_length: int):  # type: ignore[no-untyped-def]
    return hidden + update * row_of(hidden, modulation, 2, text_length)


@script(DOMAIN, default_opset=op)
def gated_modulated_norm(  # type: ignore[no-untyped-def]
    hidden, update, gate_modulation, modulation, weight, bias, text_length: int, eps: float
):
    total = gated_residual(hidden, update, gate_modulation, text_length)
    return total, modulated_norm(total, modulation, weight, bias, text_length, eps)


@script(DOMAIN, default_opset=op)
def rotated(x, cos, sin):  # type: ignore[no-untyped-def]
    """x [B, S, H, D] with the pairs (2i, 2i + 1) turned by angles with cos and sin [S, D / 2], in float32."""
    pairs = op.Reshape(op.Cast(x, to=FLOAT), op.Constant(value_ints=[0, 0, 0, -1, 2]))
    even = op.Gather(pairs, op.Constant(value_int=0), axis=4)
    odd = op.Gather(pairs, op.Constant(value_int=1), axis=4)
    c = op.Unsqueeze(cos, op.Constant(value_ints=[1]))
    s = op.Unsqueeze(sin, op.Constant(value_ints=[1]))
    last = op.Constant(value_ints=[4])
    turned = op.Concat(op.Unsqueeze(even * c - odd * s, last), op.Unsqueeze(odd * c + even * s, last), axis=4)
    return op.CastLike(op.Reshape(turned, op.Shape(x)), x)


@script(DOMAIN, default_opset=op)
def qk_norm_rope(  # type: ignore[no-untyped-def]
    qkv, q_weight, q_bias, k_weight, k_bias, cos, sin, heads: int, eps: float
):
    count = op.Unsqueeze(op.Constant(value_int=heads), op.Constant(value_ints=[0]))
    size = op.Concat(op.Constant(value_ints=[0, 0, 3]), count, op.Constant(value_ints=[-1]), axis=0)
    parts = op.Reshape(qkv, size)
    q = op.LayerNormalization(
        op.Gather(parts, op.Constant(value_int=0), axis=2), q_weight, q_bias, axis=-1, epsilon=eps
    )
    k = op.LayerNormalization(
        op.Gather(parts, op.Constant(value_int=1), axis=2), k_weight, k_bias, axis=-1, epsilon=eps
    )
    # Text rows turn by nothing: cos 1, sin 0.
    text = op.Shape(qkv, start=1, end=2) - op.Shape(cos, start=0, end=1)
    pads = op.Concat(text, op.Constant(value_ints=[0, 0, 0]), axis=0)
    c = op.Pad(cos, pads, op.Constant(value_float=1.0))
    s = op.Pad(sin, pads, op.Constant(value_float=0.0))
    return rotated(q, c, s), rotated(k, c, s)


@script(DOMAIN, default_opset=op)
def joint_attention(q, k, v, scale: float):  # type: ignore[no-untyped-def]
    """The scale, a power of two at head_dim 64 and so exact, goes into q: Attention's own would be split over q and k
    as square roots, each with a rounding."""
    scaled = op.Transpose(q * op.CastLike(op.Constant(value_float=scale), q), perm=[0, 2, 1, 3])
    keys = op.Transpose(k, perm=[0, 2, 1, 3])
    values = op.Transpose(v, perm=[0, 2, 1, 3])
    return op.Transpose(op.Attention(scaled, keys, values, scale=1.0), perm=[0, 2, 1, 3])


@script(DOMAIN, default_opset=op)
def face_cross_attention(  # type: ignore[no-untyped-def]
    hidden, keys, values, weight, bias, heads: int, text_length: int, eps: float
):
    """The text rows are computed with the others and dropped: they are one in eighty."""
    normed = op.LayerNormalization(hidden, weight, bias, axis=-1, epsilon=eps)
    scores = op.MatMul(normed, op.Transpose(keys, perm=[0, 2, 1]))
    count = op.Unsqueeze(op.Constant(value_int=heads), op.Constant(value_ints=[0]))
    size = op.Concat(op.Constant(value_ints=[0, 0]), count, op.Constant(value_ints=[-1]), axis=0)
    heads_of = op.Softmax(op.Cast(op.Reshape(scores, size), to=FLOAT), axis=-1)
    attention = op.Reshape(op.CastLike(heads_of, hidden), op.Shape(scores))
    return op.Where(is_text(hidden, text_length), hidden, hidden + op.MatMul(attention, values))


@script(DOMAIN, default_opset=op)
def linear_gelu(x, weight, bias):  # type: ignore[no-untyped-def]
    return op.Gelu(op.MatMul(x, op.Transpose(weight, perm=[1, 0])) + bias, approximate="tanh")


@script(DOMAIN, default_opset=op)
def at_size_of(z, x):  # type: ignore[no-untyped-def]
    """z [B, C, f, h, w] at the size of x [B, C, F, H, W] by nearest neighbour; frame 0 of an odd F > 1 has its own."""
    one = op.Constant(value_ints=[1])
    frames, low = op.Shape(x, start=2, end=3), op.Shape(z, start=2, end=3)
    odd = op.Cast(op.Greater(op.Mod(frames, op.Constant(value_ints=[2])) * (frames - one), op.Constant(value_ints=[0])),
                  to=INT64.dtype)  # fmt: skip
    t = op.Range(op.Constant(value_int=0), op.Squeeze(frames), op.Constant(value_int=1))
    # Frame 0 of an odd number is -1 here, and (-1 * n) / m is 0 in whole numbers for n < m, or -1 for n = m.
    later = op.Max(t - odd, op.Constant(value_ints=[0])) * (low - odd) / (frames - odd)
    index = op.Where(op.Less(t, odd), op.Constant(value_ints=[0]), later + odd)
    spread = op.Gather(z, index, axis=2)
    size = op.Concat(op.Shape(spread, start=0, end=3), op.Shape(x, start=3), axis=0)
    return op.Resize(
        spread, None, None, size, mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor"
    )


@script(DOMAIN, default_opset=op)
def group_norm_silu(x, weight, bias, scale, shift, groups: int, eps: float):  # type: ignore[no-untyped-def]
    normed = op.GroupNormalization(x, weight, bias, num_groups=groups, epsilon=eps)
    y = normed * at_size_of(scale, x) + at_size_of(shift, x)
    return y * op.Sigmoid(y)


def attention(  # type: ignore[no-untyped-def]
    query, key, value, attn_mask=None, dropout_p: float = 0.0, is_causal: bool = False, scale: float | None = None,
    enable_gqa: bool = False,
):  # fmt: skip
    """scaled_dot_product_attention with the scale applied to the queries; see joint_attention."""
    factor = query.shape[-1] ** -0.5 if scale is None else scale
    if factor != 1.0:
        query = op.Mul(query, op.CastLike(op.Constant(value_float=factor), query))
    result, _, _, _ = op.Attention(query, key, value, attn_mask, scale=1.0)
    return result


FUNCTIONS = (
    is_text, row_of, rotated, at_size_of, modulated_norm, gated_residual, gated_modulated_norm, qk_norm_rope,
    joint_attention, face_cross_attention, group_norm_silu, linear_gelu,
)  # fmt: skip


def protos(names: set[str]) -> list[onnx.FunctionProto]:
    """The functions of these names and the functions that they call, in any order."""
    made = {function.name: function.to_function_proto() for function in FUNCTIONS}
    found: set[str] = set()
    while names - found:
        found |= names
        names = {node.op_type for name in found for node in made[name].node if node.domain == DOMAIN.domain}
    return [made[name] for name in sorted(found)]
