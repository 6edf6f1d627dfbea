"""photo -> Identity, and what an engine derives from an identity once: nothing about a face is computed in the loop."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .decode import encode_image
from .errors import FaceError, InputError
from .face_preprocess import eva_input
from .face_preprocess import id_cond as id_condition
from .runtime import Networks

if TYPE_CHECKING:
    from .face_models import ArcFace

Photo = str | Path | Image.Image | np.ndarray


@dataclass(eq=False)
class FaceFeatures:
    """What an engine keeps of an identity: keys and values [1, H * N, C] of every face attention, and the moments of
    the image's posterior per (height, width)."""

    keys: list[Tensor]
    values: list[Tensor]
    moments: dict[tuple[int, int], Tensor] = field(default_factory=dict)


@dataclass(eq=False)
class Identity:
    """A person, ready for any number of videos.

    Attributes:
        id_cond: [1, 1280], ArcFace embedding and normalised EVA-CLIP embedding.
        id_vit_hidden: five hidden states of the EVA-CLIP tower, each [1, 577, width].
        image: the face image that the first frame is conditioned on.
    """

    id_cond: Tensor
    id_vit_hidden: tuple[Tensor, ...]
    image: Image.Image
    _features: "WeakKeyDictionary[Networks, FaceFeatures]" = field(default_factory=WeakKeyDictionary, repr=False)

    @classmethod
    def from_embeddings(cls, id_cond: Tensor, id_vit_hidden: Any, image: Image.Image) -> "Identity":
        """From what diffusers' process_face_embeddings_infer returns.

        Raises:
            InputError: tensors of other shapes.
        """
        hidden = tuple(id_vit_hidden)
        if id_cond.dim() != 2 or id_cond.shape[0] != 1:
            raise InputError(f"id_cond has to be [1, n], this is {list(id_cond.shape)}; one identity per video.")
        if not hidden or any(h.dim() != 3 or h.shape[0] != 1 for h in hidden):
            raise InputError(
                f"id_vit_hidden has to be a list of [1, tokens, width], this is {[list(h.shape) for h in hidden]}."
            )
        return cls(id_cond, hidden, image)

    def features(self, networks: Networks) -> FaceFeatures:
        """The face attention's matrices in an engine; computed at the first call."""
        if networks not in self._features:
            device, dtype = networks.device, networks.dtype
            inputs = [x.to(device, dtype) for x in (self.id_cond, *self.id_vit_hidden)]
            keys, values = [], []
            if networks.variant.transformer.is_train_face:
                tokens = networks.one("face_extract", *inputs)
                for layer in range(networks.variant.transformer.num_cross_attn):
                    key, value = networks.many("face_fold", tokens, layer=layer)
                    keys.append(key)
                    values.append(value)
            self._features[networks] = FaceFeatures(keys, values)
        return self._features[networks]

    def moments(self, networks: Networks, height: int, width: int) -> Tensor:
        """The posterior of the face image at a size; computed once per size."""
        features = self.features(networks)
        if (height, width) not in features.moments:
            features.moments[height, width] = encode_image(networks, self.image, height, width)
        return features.moments[height, width]


def read_photo(photo: Photo) -> Image.Image:
    """An RGB image, upright, from a path, a PIL image or a uint8 array [H, W, 3].

    Raises:
        InputError: no such file, or nothing that is an image.
    """
    if isinstance(photo, np.ndarray):
        if photo.dtype != np.uint8 or photo.ndim != 3 or photo.shape[2] != 3:
            raise InputError(f"An image array has to be uint8 [H, W, 3], this is {photo.dtype} {list(photo.shape)}.")
        return Image.fromarray(photo)
    if isinstance(photo, Image.Image):
        return ImageOps.exif_transpose(photo).convert("RGB")
    if not isinstance(photo, str | Path):
        raise InputError(
            f"A photo is a path, a PIL image or an array, not {type(photo).__name__}; identify() makes an Identity."
        )
    try:
        with Image.open(photo) as image:
            return ImageOps.exif_transpose(image).convert("RGB")
    except FileNotFoundError:
        raise InputError(f"There is no image at {photo}.") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"{photo} cannot be read as an image ({error}); give a PNG or JPEG of a face.") from None


def identify(networks: Networks, arcface: "ArcFace", photo: Photo, aligned: bool) -> Identity:
    """The identity features of an aligned face crop.

    Raises:
        InputError: an image that cannot be used.
        FaceError: a photo that is not said to be aligned: finding and aligning faces is not part of this version.
    """
    image = read_photo(photo)
    if not aligned:
        raise FaceError(
            "Finding the face in a photo is not supported yet: crop and align the face (FFHQ alignment, 512x512) and "
            "pass aligned=True (--aligned on the command line)."
        )
    if min(image.size) < 64:
        raise InputError(f"The image is {image.width}x{image.height}; a face needs at least 64x64 pixels.")
    pixels = np.asarray(image)
    crop = torch.from_numpy(pixels.astype(np.float32) / 255.0).permute(2, 0, 1)[None]
    embedding, *hidden = networks.many("eva", eva_input(crop).to(networks.device, networks.dtype))
    face = arcface.embed(np.ascontiguousarray(pixels[:, :, ::-1]))
    return Identity(
        id_condition(torch.from_numpy(face), embedding.float().cpu()), tuple(h.cpu() for h in hidden), image
    )
