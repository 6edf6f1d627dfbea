"""A person, as the model knows one: computed from a photo once, usable for any number of videos, saved and loaded."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Le
from PIL import Image
from torch import Tensor
from typing_extensions import TypedDict

from ..errors import InputError, shown
from ..util.files import as_path, check_place
from ..util.parsing import Unreadable, has_numbers, validate
from ..util.sealed import load_sealed, save_sealed
from .photo import Source, take_photo

KIND = "consisid identity 2"
SIDE = 16384  # pixels of a picture at most


class Header(TypedDict):
    """What an identity's file says besides its tensors. hidden: how many hidden states it has."""

    kind: str
    hidden: Annotated[int, Ge(1), Le(64)]
    source: dict[str, str]


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
        pixels: `image` as the caller brought it to the size of a video, float [1, 3, H, W] in [-1, 1]; None where that
            is to be done. No file has it.
    """

    id_cond: Tensor
    id_vit_hidden: tuple[Tensor, ...]
    image: Image.Image
    key_points: np.ndarray | None = None
    crop: Image.Image | None = None
    source: dict[str, str] = field(default_factory=dict)
    pixels: Tensor | None = None

    @classmethod
    def from_embeddings(cls, id_cond: Any, id_vit_hidden: Any, image: Source, key_points: Any = None) -> "Identity":
        """From what diffusers' process_face_embeddings_infer returns; tensors or arrays.

        Args:
            image: the face image, in whatever form `identify` takes a photo.

        Raises:
            InputError: something else, or of other shapes than a face has. Whether they are those of a model shows
                when a video is made.
        """
        cond = _embedding("id_cond", id_cond)
        if cond.dim() != 2 or cond.shape[0] != 1 or not cond.numel():
            raise InputError(f"id_cond has to be [1, n], this is {list(cond.shape)}; one identity per video.")
        stacked = isinstance(id_vit_hidden, Tensor | np.ndarray) and id_vit_hidden.ndim > 0
        if not stacked and not isinstance(id_vit_hidden, list | tuple):
            raise InputError(f"id_vit_hidden has to be a list of tensors, not {type(id_vit_hidden).__name__}.")
        hidden = tuple(_embedding(f"id_vit_hidden[{i}]", each) for i, each in enumerate(id_vit_hidden))
        if not hidden or any(h.dim() != 3 or h.shape[0] != 1 or not h.numel() for h in hidden):
            raise InputError(
                f"id_vit_hidden has to be a list of [1, tokens, width], this is {[list(h.shape) for h in hidden]}."
            )
        return cls(cond, hidden, _face_image(image), _points(key_points))

    @property
    def embeddings(self) -> tuple[Tensor, ...]:
        """id_cond, then the hidden states."""
        return self.id_cond, *self.id_vit_hidden

    def preview(self) -> Image.Image:
        """The aligned face, cut out onto white; the given image where the identity was made from embeddings."""
        return self.image if self.crop is None else self.crop

    def save(self, path: str | Path) -> Path:
        """Write one .safetensors file with the embeddings, the image and, in its header as JSON, where it came from."""
        path = as_path(path)
        check_ending(path)
        tensors = {f"hidden_{i}": hidden.contiguous() for i, hidden in enumerate(self.id_vit_hidden)}
        pictures = {"image": self.image} | ({} if self.crop is None else {"crop": self.crop})
        tensors |= {name: torch.from_numpy(np.array(picture.convert("RGB"))) for name, picture in pictures.items()}
        tensors["id_cond"] = self.id_cond
        if self.key_points is not None:
            tensors["key_points"] = torch.from_numpy(self.key_points)
        save_sealed(path, tensors, {"kind": KIND, "hidden": len(self.id_vit_hidden), "source": self.source})
        return path

    @classmethod
    def load(cls, path: str | Path) -> "Identity":
        """Read what save wrote.

        Raises:
            InputError: no such file, none that save wrote, or one that was changed since.
        """
        again = "save it again with Identity.save"
        try:
            tensors, values = load_sealed(as_path(path))
            if values.get("kind") != KIND:
                raise Unreadable("it is another file, or of another version")
            header: Header = validate(Header, values)
            names = {"id_cond", "image", *(f"hidden_{i}" for i in range(header["hidden"]))}
            if names - tensors.keys() or tensors.keys() - names - {"crop", "key_points"}:
                raise Unreadable(f"its tensors are {shown(sorted(tensors))}")
            pictures = {name: _picture(tensors[name]) for name in ("image", "crop") if name in tensors}
            points = tensors["key_points"].numpy() if "key_points" in tensors else None
            hidden = [tensors[f"hidden_{i}"] for i in range(header["hidden"])]
            if not all(x.is_floating_point() and x.isfinite().all() for x in (tensors["id_cond"], *hidden)):
                raise Unreadable("it holds embeddings that are no finite numbers")
            identity = cls.from_embeddings(tensors["id_cond"], hidden, pictures["image"], points)
        except FileNotFoundError:
            raise InputError(f"There is no identity at {path}.") from None
        except Unreadable as error:
            raise InputError(f"{path} cannot be read as an identity ({error}); {again}.") from None
        identity.crop, identity.source = pictures.get("crop"), header["source"]
        return identity


def _embedding(name: str, given: Any) -> Tensor:
    """A tensor of finite numbers; InputError where it is none."""
    tensor = given
    if isinstance(given, np.ndarray) and given.dtype.kind == "f":
        tensor = torch.from_numpy(np.ascontiguousarray(given))
    if not isinstance(tensor, Tensor) or not has_numbers(tensor):
        kind = given.dtype if isinstance(given, Tensor | np.ndarray) else type(given).__name__
        raise InputError(f"{name} has to be a tensor of floats, this is {kind}.")
    if not tensor.detach().float().isfinite().all():
        raise InputError(f"{name} has numbers that are not finite; compute it again.")
    return tensor.detach()


def _face_image(image: Any) -> Image.Image:
    """An image in RGB at its full size; InputError where there is none."""
    if isinstance(image, Image.Image) and image.mode == "RGB" and 0 not in image.size:
        return image
    return Image.fromarray(np.ascontiguousarray(take_photo(image).full()))


def _points(key_points: Any) -> np.ndarray | None:
    if key_points is None:
        return None
    try:
        given = key_points.detach().float().cpu() if isinstance(key_points, Tensor) else key_points
        points = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError, OverflowError, RuntimeError, NotImplementedError):
        raise InputError(f"key_points={shown(key_points)} are no numbers; give [5, 2], pixels of the image.") from None
    if points.shape != (5, 2):
        raise InputError(f"key_points have to be [5, 2], these are {list(points.shape)}.")
    if not (np.abs(points) < SIDE).all():  # NaN among them
        raise InputError(f"key_points={shown(points.tolist())} are no places in an image; give pixels of it.")
    return points


def check_target(path: Path) -> None:
    """Whether an identity can be written at `path`.

    Raises:
        InputError: another ending than .safetensors; WriteError: a place where it cannot be written.
    """
    check_ending(path)
    check_place(path)


def check_ending(path: Path) -> None:
    """Raises InputError for another ending than .safetensors."""
    if path.suffix != ".safetensors":
        raise InputError(f"{path} does not end in .safetensors, the one format that identities are saved in.")


def _picture(pixels: Tensor) -> Image.Image:
    """A PIL image of uint8 [H, W, 3]; Unreadable where it is none."""
    if pixels.dtype is not torch.uint8 or pixels.dim() != 3 or pixels.shape[2] != 3 or not pixels.numel() > 0:
        raise Unreadable(f"it holds a picture of {pixels.dtype} {list(pixels.shape)}")
    if max(pixels.shape) > SIDE:
        raise Unreadable(f"it holds a picture of {pixels.shape[1]} x {pixels.shape[0]} pixels")
    return Image.fromarray(pixels.numpy())
