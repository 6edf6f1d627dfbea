"""Who generate is to make a video of."""

from collections.abc import Sequence
from typing import Any

from ..engine import Engine
from ..errors import InputError
from ..face.identity import Identity
from ..runtime.executor import GraphExecutor


def person_of(identity: Any, image: Any, id_cond: Any, id_vit_hidden: Any, kps_cond: Any) -> Any:
    """The person that generate's arguments mean: an Identity, or a photo.

    Raises:
        InputError: nobody, two people, or a part of one.
    """
    features = {"id_cond": id_cond, "id_vit_hidden": id_vit_hidden, "kps_cond": kps_cond}
    given = [name for name, value in features.items() if value is not None]
    if identity is not None:
        given += ["image"] if image is not None else []
        if given:
            raise InputError(f"Both a person and {', '.join(given)} were given; give one of the two.")
        return identity
    if image is None:
        raise InputError("Nobody was given; give an Identity, a photo, or image, id_cond and id_vit_hidden.")
    if not given:
        return image
    if id_cond is None or id_vit_hidden is None:
        raise InputError(f"{', '.join(given)} alone is no person; give id_cond and id_vit_hidden with the image.")
    return Identity.from_embeddings(id_cond, id_vit_hidden, image, kps_cond)


def identified(engine: Engine, networks: GraphExecutor, who: Sequence[Any], aligned: bool) -> list[Identity]:
    """Each of these, photos identified by the engine; calls are counted where `networks` counts them."""

    def identify(each: Any) -> Identity:
        return each if isinstance(each, Identity) else engine.faces.within(networks).identify(each, aligned=aligned)

    return [identify(each) for each in who]
