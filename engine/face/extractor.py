"""photo -> Identity: the face networks of an engine behind face_chain's protocol, and the photos already seen."""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checkpoint.reading import FACE_FILES, Checkpoint
from ..errors import CheckpointError, FaceError, InputError
from ..manifest import Manifest, digest, kernels_hash
from ..runtime.executor import GraphExecutor
from . import alignment as align
from .analysis import analyse, features
from .detection import Detections, Scrfd
from .identity import Identity
from .photo import RawPhoto, Source, take_photo
from .preprocess import eva_input, id_cond
from .recognition import ArcFace
from .selection import Choice, check_choice

Photo = Source
KEPT = 32
SIDE = 512  # of an aligned face, in pixels
MODES = ("crop", "whole")
POINTS = ("crop", "reference")
FOLDER = "face_encoder"
SESSIONS: dict[str, Callable[..., Any]] = {"scrfd": Scrfd, "arcface": ArcFace}


class Faces:
    """The five face networks of an engine: two under ONNX Runtime, three as graphs. The protocol of face_chain.

    Attributes:
        hash: of the five networks: their files as the manifest knows them, and what is executed, which for an eager
            graph is this package.
    """

    def __init__(self, networks: GraphExecutor, checkpoint: Checkpoint, manifest: Manifest):
        names = {part: checkpoint.face_file(part) for part in FACE_FILES}
        known = manifest.weights
        missing = [name for name in names.values() if name not in known or not (checkpoint.path / name).is_file()]
        if missing:
            raise CheckpointError(
                f"{checkpoint.path} lacks {', '.join(missing)}, so no photo can be identified; use "
                "Identity.from_embeddings, or build the engine again from a checkpoint that has them."
            )
        self.networks = networks
        self.files = {part: checkpoint.path / name for part, name in names.items()}
        graphs = {part: manifest.graphs[part] for part in names if part in manifest.graphs}
        self.hash = digest(
            {
                "files": {name: known[name]["sha256"] for name in names.values()},
                "graphs": {part: graph.sha256 or kernels_hash() for part, graph in graphs.items()},
            }
        )
        self._sessions: dict[str, Any] = {}
        self._kept: dict[str, Identity] = {}

    def release(self) -> None:
        """The sessions of ONNX Runtime leave the device; the next photo that is new brings them back."""
        self._sessions.clear()

    def within(self, networks: GraphExecutor) -> "Faces":
        """The same, with calls counted where these networks count theirs."""
        found = copy.copy(self)
        found.networks = networks
        return found

    def scrfd(self, image_bgr: np.ndarray) -> Detections:
        return self._session("scrfd").detect(image_bgr)

    def arcface(self, image_bgr: np.ndarray) -> np.ndarray:
        return self._session("arcface").embed(image_bgr)

    def _session(self, name: str) -> Any:
        if name not in self._sessions:
            self._sessions[name] = SESSIONS[name](self.files[name], self.networks.device)
        self.networks.count(name)
        return self._sessions[name]

    def retinaface(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        boxes, scores, points = self._run("retinaface", image)
        return boxes, scores, points

    def bisenet(self, image: Tensor) -> Tensor:
        return self._run("bisenet", image)[0]

    def eva(self, image: Tensor) -> tuple[Tensor, ...]:
        return self._run("eva", image.to(self.networks.dtype))

    def _run(self, graph: str, image: Tensor) -> tuple[Tensor, ...]:
        return tuple(x.cpu() for x in self.networks.many(graph, image.to(self.networks.device)))

    def identify(
        self,
        photo: Any,
        face: Choice = "largest",
        aligned: bool = False,
        mode: str = "crop",
        key_points: str = "crop",
    ) -> Identity:
        """See ConsisID.identify."""
        if mode not in MODES or key_points not in POINTS:
            raise InputError(f"mode is one of {', '.join(MODES)}, and key_points one of {', '.join(POINTS)}.")
        if isinstance(photo, list | tuple):
            return choose([self._one_of(photo, i, face, aligned, mode, key_points) for i in range(len(photo))])
        face = check_choice(face)
        raw = take_photo(photo)
        settings = {"face": str(face), "aligned": str(aligned), "mode": mode, "key_points": key_points}
        key = "\n".join((raw.hash, repr(face), *settings.values()))
        if key not in self._kept:
            try:
                identity = self._aligned(raw) if aligned else self._found(raw, face, mode, key_points)
            except FaceError as error:
                raise FaceError(f"{raw.name}: {error}") from None
            identity.source = {"photo": raw.hash, "face_models": self.hash, **settings}
            self._kept[key] = identity
            while len(self._kept) > KEPT:
                del self._kept[next(iter(self._kept))]
        return self._kept[key]

    def _one_of(self, photos: Sequence[Any], index: int, *options: Any) -> Identity:
        """The identity of one of several photos; errors say which one."""
        if isinstance(photos[index], list | tuple):
            raise InputError(f"photo {index + 1} of {len(photos)} is a list itself; give one list of photos.")
        try:
            return self.identify(photos[index], *options)
        except InputError as error:
            raise type(error)(f"photo {index + 1} of {len(photos)}, {error}") from None

    @torch.no_grad()
    def _found(self, raw: RawPhoto, face: Choice, mode: str, key_points: str) -> Identity:
        analysis = analyse(raw.pixels(), self, face)
        whole = mode == "whole"
        cond, hidden = features(analysis, self, whole=whole)
        points = analysis.points_photo if whole or key_points == "reference" else analysis.points_crop
        image = Image.fromarray(analysis.photo if whole else analysis.crop)
        crop = Image.fromarray(analysis.crop) if whole else None
        return Identity(cond.float(), tuple(hidden), image, np.asarray(points, dtype=np.float64), crop)

    @torch.no_grad()
    def _aligned(self, raw: RawPhoto) -> Identity:
        pixels = Image.fromarray(raw.pixels()).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        image = np.ascontiguousarray(np.asarray(pixels)[..., ::-1])
        crop = align.to_tensor(image)
        colour, grey = align.parse(crop, self.bisenet(align.parsing_input(crop)))
        embedding, *hidden = self.eva(eva_input(grey))
        arcface = torch.from_numpy(self.arcface(image)).float().reshape(1, -1)
        return Identity(id_cond(arcface, embedding.float()), tuple(hidden), Image.fromarray(align.to_image(colour)))


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
