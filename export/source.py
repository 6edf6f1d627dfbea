"""Where the weights of a build come from."""

import shutil
from dataclasses import dataclass
from pathlib import Path

from consisid.engine.checkpoint import Checkpoint, write_checkpoint
from consisid.engine.errors import CheckpointError
from consisid.engine.files import write_aside
from consisid.engine.random_checkpoint import write_small_parts
from consisid.engine.random_weights import PREFIX, RandomWeights
from consisid.engine.variants import TINY, VARIANTS, Variant, variant_named

INSIDE = "checkpoint"
SEED = 0


@dataclass(frozen=True)
class Source:
    """A checkpoint that was asked for: which model it is, before anything is written, and how to get it."""

    name: str
    variant: Variant
    random: bool
    bundle: bool

    @classmethod
    def find(cls, name: str | Path | Variant, random: bool, bundle: bool) -> "Source":
        """Resolve a folder, a hub id or the name of a variant; for random weights also a variant of one's own.

        Raises:
            CheckpointError: none of them, or a variant's name where a checkpoint is needed.
        """
        if random:
            variant = name if isinstance(name, Variant) else variant_named(str(name))
            return cls(variant.name, variant, True, False)
        name = str(name)
        if name in VARIANTS:
            if name == TINY.name:
                return cls(name, TINY, False, False)
            raise CheckpointError(
                f"{name} is the name of a model; give its checkpoint ({VARIANTS[name].hub_id}), or add "
                "--random-weights to measure it without one."
            )
        checkpoint = Checkpoint.find(name)
        return cls(str(checkpoint.path.resolve()), checkpoint.variant, False, bundle)

    def open(self, folder: Path) -> Checkpoint:
        """The checkpoint, placed into the engine folder where it belongs there."""
        inside = folder / INSIDE
        if self.random:
            if not inside.exists():
                with write_aside(inside) as aside:
                    write_small_parts(aside, self.variant)
            return RandomWeights(inside, self.variant, SEED)
        if self.name == TINY.name:
            return Checkpoint(inside) if inside.exists() else Checkpoint(write_checkpoint(TINY, inside, SEED))
        if not self.bundle:
            return Checkpoint(self.name)
        if not inside.exists():
            with write_aside(inside) as aside:
                shutil.copytree(self.name, aside, dirs_exist_ok=True)
        return Checkpoint(inside)

    @property
    def hash(self) -> str | None:
        """What stands for the weights in the specification where there are no files; None where files are hashed."""
        return f"{PREFIX}{SEED}" if self.random else None
