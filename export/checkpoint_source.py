"""Where the weights of a build come from."""

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path

from consisid.engine.checkpoint import write_checkpoint
from consisid.engine.checkpoint.random_weights import PREFIX, RandomWeights
from consisid.engine.checkpoint.reading import Checkpoint
from consisid.engine.checkpoint.write import write_small_parts
from consisid.engine.errors import CheckpointError, InputError
from consisid.engine.util.files import atomic_dir
from consisid.engine.variants import VARIANTS, Variant, variant_named

from .check import check_checkpoint

INSIDE = "checkpoint"
INDEX = "model_index.json"
SEED = 0


@dataclass(frozen=True)
class Source:
    """A checkpoint that was asked for: which model it is, before anything is written, and how to get it.

    weights: which of a checkpoint's files hold the weights, see engine.checkpoint.Checkpoint.
    """

    name: str
    variant: Variant
    random: bool
    bundle: bool
    weights: str | None = None

    @classmethod
    def find(cls, name: str | Path | Variant, random: bool, bundle: bool, weights: str | None = None) -> "Source":
        """Resolve a folder, a hub id or the name of a variant; for random weights also a variant of one's own. All that
        a video needs of a checkpoint is opened and checked.

        Raises:
            CheckpointError: none of them, a variant's name where a checkpoint is needed, or a checkpoint of which no
                video can be made.
        """
        if weights and (random or isinstance(name, Variant) or name in VARIANTS):
            raise InputError("--variant names files of a checkpoint, and there is none here; leave it out.")
        if random:
            variant = name if isinstance(name, Variant) else variant_named(str(name))
            return cls(variant.name, variant, True, False)
        name = str(name)
        if name in VARIANTS:
            if VARIANTS[name].seeded:
                return cls(name, VARIANTS[name], False, False)
            raise CheckpointError(
                f"{name} is the name of a model; give its checkpoint ({VARIANTS[name].hub_id}), or add "
                "--random-weights to measure it without one."
            )
        checkpoint = Checkpoint.find(name, weights)
        check_checkpoint(checkpoint)
        return cls(str(checkpoint.path.resolve()), checkpoint.variant, False, bundle, weights)

    def open(self, folder: Path) -> Checkpoint:
        """The checkpoint, placed into the engine folder where it belongs there."""
        inside = folder / INSIDE
        if self.random:
            if not inside.exists():
                with atomic_dir(inside) as aside:
                    write_small_parts(aside, self.variant)
            return RandomWeights(inside, self.variant, SEED)
        if self.name in VARIANTS:
            return Checkpoint(inside if inside.exists() else write_checkpoint(self.variant, inside, SEED))
        checkpoint = Checkpoint(self.name, self.weights)
        if not self.bundle:
            return checkpoint
        if not inside.exists():
            with atomic_dir(inside) as aside:
                copy_read_files(checkpoint, aside)
        return Checkpoint(inside, self.weights)

    @property
    def identity(self) -> str:
        """What a build is of, known before anything is read: where it comes from, and of a folder every file's size and
        time of change."""
        lines = [
            self.name,
            repr(self.variant),
            f"random {self.random}",
            f"bundle {self.bundle}",
            f"weights {self.weights}",
        ]
        root = Path(self.name)
        if not self.random and root.is_dir():
            for file in sorted(path for path in root.rglob("*") if path.is_file()):
                state = file.stat()
                lines.append(f"{file.relative_to(root)} {state.st_size} {state.st_mtime_ns}")
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    @property
    def hash(self) -> str | None:
        """What stands for the weights in the specification where there are no files; None where files are hashed."""
        return f"{PREFIX}{SEED}" if self.random else None


def copy_read_files(checkpoint: Checkpoint, folder: Path) -> None:
    """Copy what an engine reads of a checkpoint, and diffusers' list of its parts, into a folder."""
    wanted = {checkpoint.path / file for file in checkpoint.files()} | {checkpoint.path / INDEX}
    wanted |= {parent for file in wanted for parent in file.parents}

    def skip(place: str, names: list[str]) -> list[str]:
        return [name for name in names if Path(place) / name not in wanted]

    shutil.copytree(checkpoint.path, folder, ignore=skip, dirs_exist_ok=True)
