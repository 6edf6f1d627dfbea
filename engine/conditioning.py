"""What a video is conditioned on: computed before the loop, kept per identity, prompt and shape.

What is kept is on the host: between two videos nothing of it takes memory of a GPU, whatever plan comes next, and a
copy there takes milliseconds.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from weakref import WeakKeyDictionary

import torch
from PIL import Image
from torch import Tensor

from .checkpoint.reading import Checkpoint
from .configs import TransformerConfig
from .decode.image import encode_image
from .decode.tile import Tile
from .errors import InputError
from .face.identity import Identity
from .face.keypoints import draw_points
from .lora.weights import PART, Active, LoraPatchedCheckpoint
from .networks.positions import additive_positions, rotary_tables
from .networks.transformer import TimeEmbedding
from .runtime.executor import GraphExecutor
from .shapes import VideoShape
from .text import TextEncoder, Tokenizer
from .variants import Variant

KEPT = 8  # identities; the features of one are 126 MiB at full size


Face = tuple[Sequence[Tensor], Sequence[Tensor]]
"""Keys and values of every face attention, each [1, H * N, C]."""


@dataclass(frozen=True)
class Conditioning:
    """All that the loop reads besides the latents. G is 2 with classifier-free guidance (unconditional first), else 1.

    text: [G * b, T, C]; image: [b, V, C]; cos, sin: [V, D / 2] float32; keys, values: one [1, H * N, C] per face
    attention.
    """

    text: Tensor
    image: Tensor
    cos: Tensor
    sin: Tensor
    keys: list[Tensor]
    values: list[Tensor]


class Positions:
    """What a shape alone determines, float32 on the CPU.

    cos, sin: [V, D / 2], rotary tables; text, video: [T, C] and [V, C] that are added to the tokens, or None.
    """

    def __init__(self, config: TransformerConfig, shape: VideoShape, learned: Tensor | None = None):
        self.cos, self.sin = rotary_tables(config, shape)
        added = additive_positions(config, shape, learned)
        length = config.max_text_seq_length
        self.text = None if added is None else added[:length]
        self.video = None if added is None else added[length:]


def time_embeddings(
    checkpoint: Checkpoint, config: TransformerConfig, timesteps: Tensor, loras: Active
) -> Tensor:  # fmt: skip
    """temb [S, D] of timesteps [S] with LoRAs, float32; on the host, where it decides what the loop computes."""
    tensors = LoraPatchedCheckpoint(checkpoint)
    tensors.use(loras)
    module = TimeEmbedding(config).eval()
    state = {name: tensors.tensor(PART, name, "cpu", torch.float32) for name in module.state_dict()}
    module.load_state_dict(state, assign=True)
    with torch.no_grad():
        return module.embed(timesteps.detach().to("cpu", torch.float32))


def project_text(networks: GraphExecutor, positions: Positions, prompt_embeds: Tensor) -> Tensor:
    """Text tokens [B, T, C]: once per prompt."""
    return _with_positions(networks.one("text_project", prompt_embeds), positions.text)


def embed_image(networks: GraphExecutor, positions: Positions, image_latents: Tensor) -> Tensor:
    """The image's share of the video tokens [b, V, C], from image latents [b, F, 16, h, w]: once per video."""
    return _with_positions(networks.one("image_embed", image_latents), positions.video)


def _with_positions(tokens: Tensor, positions: Tensor | None) -> Tensor:
    return tokens if positions is None else tokens + positions.to(tokens.device, tokens.dtype)


def condition(
    networks: GraphExecutor, positions: Positions, prompt_embeds: Tensor, image_latents: Tensor,
    face: Face,
) -> Conditioning:  # fmt: skip
    """Everything that is the same in all steps of a video, on the device; face: keys and values."""
    text = project_text(networks, positions, prompt_embeds)  # first: with it the weights of the stage before leave
    image = embed_image(networks, positions, image_latents)
    networks.weights.tidy()  # of 100 MiB pieces, before what is small and stays
    cos, sin = positions.cos.to(networks.device), positions.sin.to(networks.device)
    keys, values = ([x.to(networks.device) for x in each] for each in face)
    return Conditioning(text, image, cos, sin, keys, values)


def condition_people(
    networks: GraphExecutor, positions: Positions, prompt_embeds: Tensor, image_latents: Tensor,
    faces: Sequence[Face], videos: Sequence[int],
) -> list[Conditioning]:  # fmt: skip
    """`condition` for a batch with the videos of several people, one after the other.

    Args:
        faces: keys and values of each person.
        videos: how many of each.
    """
    whole = condition(networks, positions, prompt_embeds, image_latents, faces[0])
    if len(faces) == 1:
        return [whole]
    texts, images = split_text(whole.text, videos), whole.image.split(list(videos))
    placed = [[[x.to(networks.device) for x in each] for each in face] for face in faces]
    return [
        Conditioning(text, image, whole.cos, whole.sin, keys, values)
        for text, image, (keys, values) in zip(texts, images, placed, strict=True)
    ]


def split_text(text: Tensor, videos: Sequence[int]) -> list[Tensor]:
    """Text tokens [G * b, T, C] as one [G * n, T, C] for the n videos of each person; b of them together."""
    if len(videos) == 1:
        return [text]
    halves = text.unflatten(0, (-1, sum(videos)))
    return [part.flatten(0, 1) for part in halves.split(list(videos), dim=1)]


def extract_face(
    networks: GraphExecutor, identity: Identity, known_faces: bool = True
) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values [1, H * N, C] of every face attention, on the device.

    Raises:
        InputError: the identity's embeddings are not of the sizes that the model takes.
    """
    if not networks.variant.transformer.is_train_face:
        return [], []
    _check_fits(identity, networks.variant, known_faces)
    inputs = [x.to(networks.device, networks.dtype) for x in (identity.id_cond, *identity.id_vit_hidden)]
    return networks.face_keys_values(networks.one("face_extract", *inputs))


def encode_images(
    networks: GraphExecutor, identity: Identity, height: int, width: int, tile: Tile | None
) -> list[Tensor]:
    """The posteriors that a video starts from, each [1, 2 * 16, 1, h, w]: of the face, then of the drawn key points
    where the model takes them."""
    images: list[Image.Image | Tensor] = [identity.image if identity.pixels is None else identity.pixels]
    if networks.variant.transformer.is_kps and identity.key_points is not None:
        points = draw_points(identity.key_points, identity.image.height, identity.image.width)
        images.append(Image.fromarray(points))
    return [encode_image(networks, image, height, width, tile) for image in images]


@dataclass(eq=False)
class Known:
    """What is kept of an identity, on the host.

    keys, values: [1, H * N, C] of every face attention; version: of the weights that made them; moments: see
    encode_images, per height, width and tile.
    """

    keys: list[Tensor]
    values: list[Tensor]
    version: int
    moments: dict[tuple[int, int, Tile | None], list[Tensor]] = field(default_factory=dict)


class Conditioner:
    """Makes and keeps what the videos of one engine are conditioned on.

    Args:
        known_faces: the variant's face tower is the model's own, so the number of face tokens is known.
    """

    def __init__(self, checkpoint: Checkpoint, variant: Variant, known_faces: bool = True):
        self.checkpoint, self.variant, self.known_faces = checkpoint, variant, known_faces
        self._identities: WeakKeyDictionary[Identity, Known] = WeakKeyDictionary()
        self._positions: dict[VideoShape, Positions] = {}

    @cached_property
    def text_encoder(self) -> TextEncoder:
        return TextEncoder(Tokenizer(self.checkpoint.tokenizer, self.variant.transformer.max_text_seq_length))

    def face(self, networks: GraphExecutor, identity: Identity) -> Face:
        """Keys and values of every face attention, on the host; computed once per identity, and anew with other LoRAs.

        Raises:
            InputError: an identity of another model.
        """
        known = self.known(networks, identity)
        return known.keys, known.values

    def images(
        self, networks: GraphExecutor, identity: Identity, height: int, width: int, tile: Tile | None = None
    ) -> list[Tensor]:
        """See encode_images; on the device, computed once per identity, size and tile (None: encoded whole)."""
        moments = self.known(networks, identity).moments
        key = (height, width, tile)
        if key not in moments:
            moments[key] = [x.cpu() for x in encode_images(networks, identity, height, width, tile)]
        return [x.to(networks.device) for x in moments[key]]

    def people(
        self, networks: GraphExecutor, people: Sequence[Identity], height: int, width: int, tile: Tile | None = None
    ) -> tuple[list[Face], list[list[Tensor]]]:
        """`face` and `images` of each."""
        faces = [self.face(networks, person) for person in people]
        return faces, [self.images(networks, person, height, width, tile) for person in people]

    def known(self, networks: GraphExecutor, identity: Identity) -> Known:
        """What is kept of an identity, made where it is missing."""
        known, version = self._identities.get(identity), networks.weights.version
        if known is None or known.version != version:
            keys, values = ([x.cpu() for x in each] for each in extract_face(networks, identity, self.known_faces))
            moments = {} if known is None else known.moments
            known = self._identities[identity] = Known(keys, values, version, moments)
            while len(self._identities) > KEPT:
                del self._identities[next(iter(self._identities))]
        return known

    def positions(self, shape: VideoShape) -> Positions:
        """Rotary tables and additive positions of a shape: once per shape."""
        if shape not in self._positions:
            config, learned = self.variant.transformer, None
            if config.use_learned_positional_embeddings:
                learned = self.checkpoint.tensor("transformer", "patch_embed.pos_embedding")
            self._positions[shape] = Positions(config, shape, learned)
        return self._positions[shape]


def _check_fits(identity: Identity, variant: Variant, known_faces: bool) -> None:
    """Raises InputError where the model takes embeddings of other sizes."""
    config, eva = variant.transformer, variant.eva
    tokens = (eva.image_size // eva.patch_size) ** 2 + 1 if known_faces else identity.id_vit_hidden[0].shape[1]
    wanted = [[1, config.LFE_id_dim], *[[1, tokens, config.LFE_vit_dim]] * config.LFE_num_scale]
    given = [list(x.shape) for x in (identity.id_cond, *identity.id_vit_hidden)]
    if given != wanted:
        raise InputError(
            f"The identity has an id_cond of {given[0]} and {len(given) - 1} hidden states of "
            f"{_kinds(given[1:])}; this model takes {wanted[0]} and {len(wanted) - 1} of {_kinds(wanted[1:])}. "
            "Identify the photo with an engine of this model."
        )


def _kinds(shapes: Sequence[list[int]]) -> str:
    return " and ".join(str(list(shape)) for shape in dict.fromkeys(tuple(shape) for shape in shapes))
