"""photo -> Identity: the face networks of an engine behind face_chain's protocol, and the photos already seen."""

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from . import align
from .checkpoint import FACE_FILES, Checkpoint
from .detect import Detections, Scrfd
from .errors import CheckpointError, InputError
from .face_chain import analyse, features
from .face_models import ArcFace
from .face_preprocess import eva_input, id_cond
from .identity import Identity
from .people import Choice
from .photo import load_photo
from .runtime import Networks

Photo = str | os.PathLike[str] | Image.Image | np.ndarray
KEPT = 32
SIDE = 512  # of an aligned face, in pixels
MODES = ("crop", "whole")
POINTS = ("crop", "reference")


class Faces:
    """The five face networks of an engine: two under ONNX Runtime, three as graphs. The protocol of face_chain."""

    def __init__(self, networks: Networks, checkpoint: Checkpoint):
        folder, kind = checkpoint.path / "face_encoder", networks.device.type
        missing = [file for file in FACE_FILES.values() if not (folder / file).is_file()]
        if missing:
            raise CheckpointError(
                f"{folder} lacks {', '.join(missing)}, so no photo can be identified; use Identity.from_embeddings."
            )
        self.networks = networks
        self._scrfd = Scrfd(folder / FACE_FILES["scrfd"], kind)
        self._arcface = ArcFace(folder / FACE_FILES["arcface"], kind)
        digest = hashlib.sha256()
        for file in sorted(FACE_FILES.values()):
            digest.update((folder / file).read_bytes())
        self.hash = digest.hexdigest()
        self._kept: dict[str, Identity] = {}

    def scrfd(self, image_bgr: np.ndarray) -> Detections:
        return self._scrfd.detect(image_bgr)

    def arcface(self, image_bgr: np.ndarray) -> np.ndarray:
        return self._arcface.embed(image_bgr)

    def retinaface(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, points = self._run("retinaface", image)
        return boxes, scores, points

    def bisenet(self, image: Tensor) -> Tensor:
        return self._run("bisenet", image)[0]

    def eva(self, image: Tensor) -> tuple[Tensor, ...]:
        return self._run("eva", image.to(self.networks.dtype))

    def _run(self, graph: str, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.cpu() for x in self.networks.many(graph, image.to(self.networks.device)))

    def identify(self, photo: Any, face: Choice, aligned: bool, mode: str, key_points: str) -> Identity:
        """See ConsisID.identify."""
        if mode not in MODES or key_points not in POINTS:
            raise InputError(f"mode is one of {', '.join(MODES)}, and key_points one of {', '.join(POINTS)}.")
        if isinstance(photo, Sequence) and not isinstance(photo, str):
            return choose([self.identify(one, face, aligned, mode, key_points) for one in photo])
        settings = {"face": str(face), "aligned": str(aligned), "mode": mode, "key_points": key_points}
        key = "\n".join((mark(photo), *settings.values()))
        if key not in self._kept:
            identity = self._aligned(photo) if aligned else self._found(photo, face, mode, key_points)
            identity.source = {"photo": mark(photo, content=True), "face_models": self.hash, **settings}
            self._kept = dict([*self._kept.items(), (key, identity)][-KEPT:])
        return self._kept[key]

    @torch.no_grad()
    def _found(self, photo: Photo, face: Choice, mode: str, key_points: str) -> Identity:
        analysis = analyse(load_photo(photo), self, face)
        whole = mode == "whole"
        cond, hidden = features(analysis, self, whole=whole)
        points = analysis.points_photo if whole or key_points == "reference" else analysis.points_crop
        image = Image.fromarray(analysis.photo if whole else analysis.crop)
        return Identity(cond.float(), tuple(hidden), image, np.asarray(points, dtype=np.float64))

    @torch.no_grad()
    def _aligned(self, photo: Photo) -> Identity:
        pixels = Image.fromarray(load_photo(photo)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image = np.ascontiguousarray(np.asarray(pixels)[..., ::-1])
        crop = align.to_tensor(image)
        colour, grey = align.parse(crop, self.bisenet(align.parsing_input(crop)))
        embedding, *hidden = self.eva(eva_input(grey))
        arcface = torch.from_numpy(self.arcface(image)).float().reshape(1, -1)
        return Identity(id_cond(arcface, embedding.float()), tuple(hidden), Image.fromarray(align.to_image(colour)))


def mark(photo: Photo, content: bool = False) -> str:
    """What tells one photo from another: for a file its place, size and time of change, else (or with content=True)
    the hash of its bytes."""
    if isinstance(photo, str | os.PathLike):
        path = Path(photo)
        if not path.is_file():
            return str(photo)  # an address, or nothing: load_photo says what
        if content:
            return hashlib.sha256(path.read_bytes()).hexdigest()
        status = path.stat()
        return f"{path.resolve()} {status.st_size} {status.st_mtime_ns}"
    if not isinstance(photo, Image.Image | np.ndarray):
        raise InputError(
            f"A photo is a path, a PIL image or an array, not {type(photo).__name__}; identify() makes an Identity."
        )
    pixels = np.asarray(photo)
    return hashlib.sha256(f"{pixels.shape} {pixels.dtype}".encode() + np.ascontiguousarray(pixels).data).hexdigest()


def choose(identities: Sequence[Identity]) -> Identity:
    """The most typical of several photos of one person: nearest to the mean of their ArcFace embeddings.

    One is chosen rather than an average made, because the model was trained on the features of single photos, and its
    hidden states belong to one pose and one light.
    """
    if not identities:
        raise InputError("The list of photos is empty; give at least one.")
    embeddings = torch.cat([identity.id_cond[:, :512] for identity in identities])
    embeddings = embeddings / embeddings.norm(dim=1, keepdim=True)
    return identities[int((embeddings @ embeddings.mean(0)).argmax())]
