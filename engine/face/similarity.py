"""Is it the same person? Cosine of ArcFace embeddings, as the authors' evaluation has it (ConsisID, arXiv:2411.17440,
FaceSim-Arc)."""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch

from .alignment import arcface_crop
from .extractor import Faces
from .identity import Identity

EMBEDDING = 512  # of id_cond's 1280 numbers, the first come from ArcFace


@dataclass(frozen=True)
class Similarity:
    """Per frame the cosine to the person, None where SCRFD finds no face, and a summary of those that have one; of none
    that is None."""

    frames: list[float | None]
    mean: float | None
    lowest: float | None
    without_face: int


def similarity(faces: Faces, person: Identity, frames: Iterable[np.ndarray]) -> Similarity:
    """How like a person the largest face in each frame is, uint8 [H, W, 3] BGR."""
    reference = person.id_cond[0, :EMBEDDING]
    cosines: list[float | None] = []
    for frame in frames:
        found = faces.scrfd(frame)
        if not len(found):
            cosines.append(None)
            continue
        points = found.points[int(np.argmax(found.areas))]
        embedding = torch.from_numpy(faces.arcface(arcface_crop(frame, points))).reshape(-1)
        cosines.append(float(torch.cosine_similarity(reference, embedding, dim=0)))
    seen = [cosine for cosine in cosines if cosine is not None]
    mean, lowest = (statistics.fmean(seen), min(seen)) if seen else (None, None)
    return Similarity(cosines, mean, lowest, len(cosines) - len(seen))
