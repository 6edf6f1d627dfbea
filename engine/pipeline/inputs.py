"""The forms in which diffusers' pipelines take images and faces, as the people of a run."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InputError, shown
from ..face.identity import Identity
from ..face.photo import take_photo


def images_of(image: Any) -> list[Any]:
    """The images that were given, each a PIL image in RGB or a float tensor [3, H, W].

    Raises:
        InputError: something else, or none.
    """
    if isinstance(image, Tensor | np.ndarray) and image.ndim == 4:
        image = list(image)
    given = list(image) if isinstance(image, list | tuple) else [image]
    if not given:
        raise InputError("The list of images is empty; give at least one.")
    return [found for each in given for found in _one_or_more(each)]


def _one_or_more(image: Any) -> list[Any]:
    if isinstance(image, Tensor | np.ndarray) and image.ndim == 4:  # a list of batches is a batch, as in diffusers
        return [found for each in image for found in _one_or_more(each)]
    if isinstance(image, Tensor):
        if image.ndim != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
            raise InputError(f"An image of {list(image.shape)} in {image.dtype} is none; a tensor has to be [3, H, W].")
        return [image.expand(3, -1, -1)]
    if isinstance(image, np.ndarray) and image.dtype.kind == "f" and image.ndim == 3 and image.shape[2] == 3:
        return [torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)]
    if isinstance(image, Image.Image) and image.mode == "RGB" and 0 not in image.size:
        return [image]
    return [Image.fromarray(np.ascontiguousarray(take_photo(image).full()))]


def to_pil(image: Any) -> Image.Image:
    """A picture to look at, and to find a face in; tensors are in [0, 1], or in [-1, 1] where they are below 0."""
    if isinstance(image, Image.Image):
        return image
    unit = image.float() * 0.5 + 0.5 if image.min() < 0 else image.float()
    pixels = (unit.clamp(0, 1) * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(np.ascontiguousarray(pixels))


def people_of(
    image: Any, id_cond: Any, id_vit_hidden: Any, kps_cond: Any, processor: Any, height: int, width: int,
    faces: bool = True,
) -> list[Any]:  # fmt: skip
    """The people of a call: identities, or photos that the engine has to identify.

    Args:
        image: one or several, in any form.
        id_cond: [n, 1280]; id_vit_hidden: five [n, 577, 1024]; kps_cond: [5, 2], or n of them. n is 1 or the number of
            images; either may be 1 where the other is more.
        processor: diffusers' VideoProcessor: how it brings an image to a size is part of the result.
        faces: whether the model looks at id_cond and id_vit_hidden.

    Raises:
        InputError: numbers that do not go together, or a part of a face.
    """
    images = images_of(image)
    if id_cond is None and id_vit_hidden is None:
        if faces:
            return [to_pil(each) for each in images]
        id_cond, id_vit_hidden = torch.zeros(1, 1), [torch.zeros(1, 1, 1)]
    if id_cond is None or id_vit_hidden is None:
        name = "id_cond" if id_cond is None else "id_vit_hidden"
        raise InputError(f"{name} is missing; give both, or neither for a photo in which the face is to be found.")
    conds, hiddens = _each(id_cond), [_each(each) for each in id_vit_hidden]
    counts = {len(images), len(conds), *map(len, hiddens)} - {1}
    if len(counts) > 1:
        raise InputError(
            f"{len(images)} images, id_cond for {len(conds)} and id_vit_hidden for {sorted(set(map(len, hiddens)))} do "
            "not go together; give one for all, or as many of each."
        )
    count = counts.pop() if counts else 1
    points = list(kps_cond) if np.ndim(kps_cond) == 3 else [kps_cond]
    return [
        _identity(
            _nth(images, i),
            _nth(conds, i),
            [_nth(each, i) for each in hiddens],
            _nth(points, i),
            processor,
            height,
            width,
        )
        for i in range(count)
    ]


def _each(tensor: Any) -> Sequence[Any]:
    if not isinstance(tensor, Tensor | np.ndarray) or tensor.ndim < 2:
        raise InputError(f"A face is described by tensors with one row per person; this is {shown(tensor)}.")
    return [tensor[i : i + 1] for i in range(len(tensor))]


def _nth(values: Sequence[Any], index: int) -> Any:
    return values[index if len(values) > 1 else 0]


def _identity(image: Any, cond: Any, hidden: Any, points: Any, processor: Any, height: int, width: int) -> Identity:
    found = Identity.from_embeddings(cond, hidden, to_pil(image), points)
    source = image[None] if isinstance(image, Tensor) else image
    found.pixels = processor.preprocess(source, height=height, width=width)
    return found
