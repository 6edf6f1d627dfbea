"""Attention of others: which backend of PyTorch is taken, and packages that are made up here."""

import sys
import warnings
from importlib import import_module
from types import SimpleNamespace

import pytest
import torch
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel

from consisid.kernels import attention_others, dispatch
from consisid.kernels.attention_others import by_package, by_torch_preferring, load_package, package_works, reference

joint_attention = import_module("consisid.kernels.joint_attention")  # the package exports the function of that name
CPU, BF16 = torch.device("cpu"), torch.bfloat16
ORDER = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH, SDPBackend.CUDNN_ATTENTION)
SWITCHES = (cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.math_sdp_enabled, cuda.cudnn_sdp_enabled)


@pytest.fixture(autouse=True)
def nothing_installed(monkeypatch):
    """No package, whatever this environment has, and nothing remembered of one."""
    for places in attention_others.PACKAGES.values():
        for place in places:
            monkeypatch.setitem(sys.modules, place, None)
    package_works.cache_clear()
    yield
    package_works.cache_clear()


def install(monkeypatch, place, attend):
    monkeypatch.setitem(sys.modules, place, SimpleNamespace(flash_attn_func=attend))


def qkv():
    return torch.randn(3, 1, 9, 2, 8)


def settings():
    """Which backends are switched on, in PyTorch's order of preference."""
    on = {int(each) for each, switch in zip(ORDER, SWITCHES, strict=True) if switch()}
    return [each for each in torch._C._get_sdp_priority_order() if each in on]


@pytest.mark.parametrize("off", [(), ("cudnn",), ("cudnn", "flash")])
def test_a_preference_changes_the_order_and_no_switch(monkeypatch, off):
    """Seen from inside a call, and afterwards everything is as before."""
    kept = [each for each in ORDER if each not in [attention_others.BACKENDS[name] for name in off]]
    seen = []

    def recorded(*arguments):
        seen.append(settings())
        return reference(*arguments)

    monkeypatch.setattr(attention_others, "reference", recorded)
    with sdpa_kernel(kept):
        before = settings()
        tensors = qkv()
        assert torch.equal(by_torch_preferring(*tensors, 0.3, "efficient"), reference(*tensors, 0.3))
        assert settings() == before
    assert seen[0][0] == int(SDPBackend.EFFICIENT_ATTENTION)
    assert set(seen[0]) == set(before) == set(map(int, kept))


def test_what_its_user_switched_off_is_not_usable():
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        usable = [name for name in ("flash", "cudnn", "efficient", "ours", "torch", "fa3", "fa4")
                  if attention_others.usable(name, CPU, BF16)]  # fmt: skip
    assert usable == ["flash", "ours", "torch"]


def test_packages_that_are_not_installed_are_named_with_their_modules():
    with pytest.raises(ImportError, match=r"fa3_fwd_interface cannot be imported .*; flash_attn_interface cannot"):
        load_package("fa3")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not package_works("fa3", CPU, BF16)
        assert not package_works("fa4", CPU, BF16)


@pytest.mark.parametrize(("name", "place"), [("fa3", "fa3_fwd_interface"), ("fa3", "flash_attn_interface"),
                                             ("fa4", "flash_attn.cute")])  # fmt: skip
@pytest.mark.parametrize("more", [False, True])
def test_a_package_that_works_is_called(monkeypatch, name, place, more):
    """With the scale by its name, and whether or not the log-sum-exp comes too."""

    def attend(q, k, v, softmax_scale):
        out = reference(q, k, v, softmax_scale)
        return (out, None) if more else out

    install(monkeypatch, place, attend)
    tensors = qkv()
    assert torch.equal(by_package(*tensors, 0.3, name), reference(*tensors, 0.3))
    assert attention_others.usable(name, CPU, BF16)


def refuse(q, k, v, softmax_scale):
    raise RuntimeError("no kernel image is available\nfor execution")


@pytest.mark.parametrize(
    ("attend", "said"),
    [
        (
            refuse,
            "FlashAttention 3 is installed and does not work on cpu in bfloat16: no kernel image is available; it",
        ),
        (lambda q, k, v, softmax_scale: reference(q, k, v, 2 * softmax_scale), "its error is"),
        (lambda q, k, v, softmax_scale: torch.full_like(q, float("nan")), "its error is nan"),
    ],
)
def test_a_package_that_does_not_work_is_passed_over_with_a_warning(monkeypatch, attend, said):
    install(monkeypatch, "fa3_fwd_interface", attend)
    with pytest.warns(UserWarning, match=said):
        assert not package_works("fa3", CPU, BF16)
    choice = dispatch.look_up(
        "NVIDIA H200", (9, 0), torch.bfloat16, 64, 17776, lambda name: attention_others.usable(name, CPU, BF16)
    )
    assert choice.implementation == "ours"
    assert choice.reason.endswith("; not usable here: fa3")


@pytest.mark.parametrize("implementation", ["fa3", "fa4", "flash", "cudnn", "efficient", "torch"])
def test_the_operator_calls_what_was_chosen(monkeypatch, implementation):
    called = []
    names = {"fa3": ["by_package"], "fa4": ["by_package"], "torch": []}
    for name in ("by_package", "by_torch_preferring"):

        def stand_in(q, k, v, scale, chosen, name=name):
            called.append((name, chosen))
            return reference(q, k, v, scale)

        monkeypatch.setattr(joint_attention, name, stand_in)
    choice = dispatch.Choice(implementation, dispatch.FLOAT32, "")
    monkeypatch.setattr(dispatch, "choose", lambda *_: choice)
    tensors = qkv()
    result = joint_attention.launch(*tensors, 0.3)
    assert torch.equal(result, reference(*tensors, 0.3))
    assert result.is_contiguous()
    assert called == [(name, implementation) for name in names.get(implementation, ["by_torch_preferring"])]
