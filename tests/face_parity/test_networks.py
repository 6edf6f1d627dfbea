"""Our networks against facexlib's and consisid_eva_clip's classes, at their real size on random weights."""

import pytest
import torch
from diffusers.pipelines.consisid.pipeline_consisid import draw_kps
from facexlib.detection.retinaface import RetinaFace as TheirRetinaFace
from facexlib.parsing.bisenet import BiSeNet as TheirBiSeNet
from reference import eva_tower

from consisid.engine.checkpoint.tiny_faces.write import seeded_weights
from consisid.engine.networks.bisenet import BiSeNet, bisenet_state
from consisid.engine.networks.eva import EvaTower, eva_arguments
from consisid.engine.networks.retinaface import RetinaFace, retinaface_backbone, retinaface_state


def randomise(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights and running statistics that are neither zero nor one anywhere."""
    generator = torch.Generator().manual_seed(0)
    for part in module.modules():
        if isinstance(part, torch.nn.BatchNorm2d):
            part.running_mean.normal_(0, 0.1, generator=generator)
            part.running_var.uniform_(0.5, 1.5, generator=generator)
            part.weight.data.uniform_(0.5, 1.0, generator=generator)
            part.bias.data.normal_(0, 0.1, generator=generator)
    return module.state_dict()


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    # fp32 round-off of up to 50 layers; the values are scaled to at most 1 here.
    scale = theirs.abs().max()
    torch.testing.assert_close(ours / scale, theirs / scale, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("backbone", ["resnet50", "mobile0.25"])
@pytest.mark.parametrize("size", [(160, 192), (131, 157)])
def test_retinaface(backbone, size):
    torch.manual_seed(0)
    theirs = TheirRetinaFace(network_name=backbone, device="cpu").eval()
    state = retinaface_state({f"module.{name}": value for name, value in randomise(theirs).items()})
    assert retinaface_backbone(state) == backbone
    ours = RetinaFace(backbone)
    ours.load_state_dict(state)
    image = torch.randn(1, 3, *size) * 60
    for a, b in zip(ours(image), theirs(image), strict=True):
        close(a, b)


@torch.no_grad()
def test_bisenet():
    torch.manual_seed(0)
    theirs = TheirBiSeNet(num_class=19).eval()
    ours = BiSeNet()
    ours.load_state_dict(bisenet_state(randomise(theirs)))
    image = torch.randn(1, 3, 512, 512)
    expected = theirs(image)[0]
    close(ours(image), expected)
    assert (ours(image).argmax(1) != expected.argmax(1)).float().mean() <= 1e-4


@torch.no_grad()
@pytest.mark.parametrize("width", [64, 1024])
def test_eva(width):
    layers = 24 if width == 1024 else 21
    torch.manual_seed(0)
    theirs = eva_tower(width, layers)
    # Its own initialisation leaves biases at zero, which would hide a missing one.
    with torch.device("meta"):
        ours = EvaTower(width, layers, mlp_hidden=int(width * 2.6667))
    state = seeded_weights(ours, seed=0)
    assert eva_arguments(state)["mlp_hidden"] == int(width * 2.6667)
    missing, unexpected = theirs.load_state_dict(state, strict=False)
    assert not unexpected
    assert all("rope." in name for name in missing)
    image = torch.randn(1, 3, 336, 336)
    embedding, hidden = theirs(image, return_hidden=True)
    result = torch.func.functional_call(ours, state, (image,))
    for a, b in zip(result, (embedding, *hidden), strict=True):
        close(a, b)


def test_drawn_key_points():
    import numpy as np
    from PIL import Image

    from consisid.engine.face.keypoints import draw_points

    points = np.array([[190.3, 240.8], [318.9, 240.2], [256.6, 314.0], [201.3, 371.4], [313.1, 371.2]], np.float32)
    for shift in (0, 150, -190):
        expected = np.asarray(draw_kps(Image.new("RGB", (480, 512)), points + shift))
        np.testing.assert_array_equal(draw_points(points + shift, 512, 480), expected)
