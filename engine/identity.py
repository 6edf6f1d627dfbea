"""A person, as the model knows one: computed from a photo once, usable for any number of videos, saved and loaded."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .decode import encode_image
from .errors import InputError
from .files import file_aside
from .keypoints import draw_points
from .runtime import Networks
from .tiling import Tile

KIND = "consisid identity 1"
NEEDED = {"id_cond", "hidden_0", "image"}


@dataclass(eq=False)
class FaceFeatures:
    """What an engine keeps of an identity.

    Keys and values [1, H * N, C] of every face attention, and the moments of the posterior of its images per (height,
    width, tile): the face, and the drawn key points where the model takes them. version: of the weights that made keys
    and values.
    """

    keys: list[Tensor]
    values: list[Tensor]
    version: int = 0
    moments: dict[tuple[int, int, Tile | None], list[Tensor]] = field(default_factory=dict)


@dataclass(eq=False)
class Identity:
    """A person, ready for any number of videos.

    Attributes:
        id_cond: [1, 1280], ArcFace embedding and normalised EVA-CLIP embedding.
        id_vit_hidden: five hidden states of the EVA-CLIP tower, each [1, 577, width].
        image: the face image that the first frame is conditioned on.
        key_points: [5, 2] float, eyes, nose and corners of the mouth in pixels of `image`; None where unknown.
        crop: the aligned face on white, where `image` is something else (mode="whole").
        source: what it was made from: hashes of the photo and of the face models, and the settings.
    """

    id_cond: Tensor
    id_vit_hidden: tuple[Tensor, ...]
    image: Image.Image
    key_points: np.ndarray | None = None
    crop: Image.Image | None = None
    source: dict[str, str] = field(default_factory=dict)
    _features: "WeakKeyDictionary[Networks, FaceFeatures]" = field(default_factory=WeakKeyDictionary, repr=False)

    @classmethod
    def from_embeddings(
        cls, id_cond: Tensor, id_vit_hidden: Any, image: Image.Image, key_points: Any = None
    ) -> "Identity":
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
        points = None if key_points is None else np.asarray(key_points, dtype=np.float64)
        if points is not None and points.shape != (5, 2):
            raise InputError(f"key_points have to be [5, 2], these are {list(points.shape)}.")
        return cls(id_cond, hidden, image, points)

    def preview(self) -> Image.Image:
        """The aligned face, cut out onto white; the given image where the identity was made from embeddings."""
        return self.image if self.crop is None else self.crop

    def save(self, path: str | Path) -> Path:
        """Write one .safetensors file with the embeddings, the image and, in its header as JSON, where it came from."""
        path = Path(path)
        if path.suffix != ".safetensors":
            raise InputError(f"{path} does not end in .safetensors, the one format that identities are saved in.")
        tensors = {f"hidden_{i}": hidden.contiguous() for i, hidden in enumerate(self.id_vit_hidden)}
        pictures = {"image": self.image} | ({} if self.crop is None else {"crop": self.crop})
        tensors |= {name: torch.from_numpy(np.array(picture.convert("RGB"))) for name, picture in pictures.items()}
        tensors["id_cond"] = self.id_cond
        if self.key_points is not None:
            tensors["key_points"] = torch.from_numpy(self.key_points)
        with file_aside(path) as aside:
            save_file(tensors, aside, metadata={"kind": KIND, "source": json.dumps(self.source)})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Identity":
        """Read what save wrote.

        Raises:
            InputError: no such file, or none that save wrote.
        """
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except FileNotFoundError:
            raise InputError(f"There is no identity at {path}.") from None
        except (SafetensorError, OSError) as error:
            raise InputError(f"{path} cannot be read as an identity ({error}); save it again.") from None
        if metadata.get("kind") != KIND:
            raise InputError(f"{path} is no identity that this version can read; save it again with Identity.save.")
        missing = sorted(NEEDED - tensors.keys())
        if missing:
            raise InputError(f"{path} lacks {', '.join(missing)}; save the identity again with Identity.save.")
        hidden = [tensors[name] for name in sorted(tensors) if name.startswith("hidden_")]
        pictures = {name: Image.fromarray(tensors[name].numpy()) for name in ("image", "crop") if name in tensors}
        points = tensors["key_points"].numpy() if "key_points" in tensors else None
        identity = cls.from_embeddings(tensors["id_cond"], hidden, pictures["image"], points)
        identity.crop, identity.source = pictures.get("crop"), json.loads(metadata.get("source", "{}"))
        return identity

    def features(self, networks: Networks) -> FaceFeatures:
        """The face attention's matrices in an engine; computed at the first call, and anew with other LoRAs."""
        known, version = self._features.get(networks), networks.weights.version
        if known is None or known.version != version:
            device, dtype = networks.device, networks.dtype
            inputs = [x.to(device, dtype) for x in (self.id_cond, *self.id_vit_hidden)]
            keys: list[Tensor] = []
            values: list[Tensor] = []
            if networks.variant.transformer.is_train_face:
                tokens = networks.one("face_extract", *inputs)
                keys, values = networks.spans.faces(networks, tokens)
            moments = {} if known is None else known.moments
            self._features[networks] = FaceFeatures(keys, values, version, moments)
        return self._features[networks]

    def moments(self, networks: Networks, height: int, width: int, tile: Tile | None = None) -> list[Tensor]:
        """The posteriors that a video starts from, each [1, 2 * 16, 1, h, w]: of the face, then of the drawn key
        points where the model takes them; computed once per size and tile (None: encoded whole)."""
        features, key = self.features(networks), (height, width, tile)
        if key not in features.moments:
            images = [self.image]
            if networks.variant.transformer.is_kps and self.key_points is not None:
                points = draw_points(self.key_points, self.image.height, self.image.width)
                images.append(Image.fromarray(points))
            features.moments[key] = [encode_image(networks, image, height, width, tile) for image in images]
        return features.moments[key]
