"""The kernels as operators torch.ops.consisid.*, so that torch.export keeps each as one node.

Imported where a kernel is first called, not with the package: torch.library.triton_op imports Inductor, more than a
second that a run on a CPU does not need. Import it before loading a saved graph that holds these operators.

As triton_op, Inductor sees the kernel inside an operator and compiles it into its package. The fakes are given
explicitly because the default, running the launcher on fake tensors, cannot work where the kernels are interpreted.

joint_attention is a custom_op, closed to the compiler: what runs inside is looked up per GPU and may be one of
PyTorch's own backends, and host-made tensor descriptors cannot be traced. At milliseconds a call, the Python around it
costs nothing. linear_gelu is one because Inductor would take it apart.
"""

from collections.abc import Callable, Mapping
from typing import Any

from torch.library import custom_op, triton_op

from .face_cross_attention import fake as face_cross_attention_fake
from .face_cross_attention import launch as face_cross_attention_launch
from .group_norm_silu import fake as group_norm_silu_fake
from .group_norm_silu import launch as group_norm_silu_launch
from .joint_attention import fake as joint_attention_fake
from .joint_attention import launch as joint_attention_launch
from .linear_gelu import fake as linear_gelu_fake
from .linear_gelu import launch as linear_gelu_launch
from .modulated_norm import fake_both, fake_norm, fake_residual, launch_both, launch_norm, launch_residual
from .qk_norm_rope import fake as qk_norm_rope_fake
from .qk_norm_rope import launch as qk_norm_rope_launch

# What each operator gives, without data.
FAKES: Mapping[str, Callable[..., Any]] = {
    "qk_norm_rope": qk_norm_rope_fake,
    "modulated_norm": fake_norm,
    "gated_residual": fake_residual,
    "gated_modulated_norm": fake_both,
    "group_norm_silu": group_norm_silu_fake,
    "joint_attention": joint_attention_fake,
    "face_cross_attention": face_cross_attention_fake,
    "linear_gelu": linear_gelu_fake,
}


def _closed(name: str, launch: Callable[..., Any]) -> Any:
    operator: Any = custom_op(f"consisid::{name}", launch, mutates_args=())
    operator.register_fake(FAKES[name])
    return operator


def _operator(name: str, launch: Callable[..., Any]) -> Any:
    operator: Any = triton_op(f"consisid::{name}", launch, mutates_args=())
    operator.register_fake(FAKES[name])
    return operator


qk_norm_rope = _operator("qk_norm_rope", qk_norm_rope_launch)
modulated_norm = _operator("modulated_norm", launch_norm)
gated_residual = _operator("gated_residual", launch_residual)
gated_modulated_norm = _operator("gated_modulated_norm", launch_both)
group_norm_silu = _operator("group_norm_silu", group_norm_silu_launch)
joint_attention = _closed("joint_attention", joint_attention_launch)
linear_gelu = _closed("linear_gelu", linear_gelu_launch)
face_cross_attention = _operator("face_cross_attention", face_cross_attention_launch)
