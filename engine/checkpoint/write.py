"""Small checkpoints with seeded random weights, in the layout that diffusers' ConsisIDPipeline.from_pretrained opens.

They are fixtures: the videos are noise, but every part of the engine has its real shape and order of work. The
weights are drawn so that mistakes show: norms are not neutral, biases are not zero.
"""

import io
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from ..configs import TransformerConfig
from ..errors import CheckpointError
from ..util.files import atomic_dir
from ..util.progress import without_bars
from ..variants import Variant, variant_named
from .tiny_faces.write import write_face_models

# What the tokenizer of a random checkpoint is trained on; any text would do.
CORPUS = """A person walks slowly through fresh snow while the camera follows from behind.
The video captures a woman laughing in a sunlit kitchen, filmed on a classic 35mm camera.
A man in a dark coat stands by the window of a train and looks out over green fields.
Soft morning light falls on the face of a girl who reads a book under an old tree.
An astronaut smiles at the viewer, the flag behind her moving a little in the wind.
Quick brown foxes jump over the lazy dog; what a beautiful, vivid, cinematic scene!
The boy rides his bicycle along the river, his expression thoughtful and calm.
She turns her head, her hair moves, and the city lights are blurred in the background.
Zoom in on the chef as he plates the dessert, close-up, shallow depth of field, high quality.
Two musicians play the violin and the cello on a wooden stage, 1980 style, warm colours.
"""


def _randomise(module: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    norms = {name for name, m in module.named_modules() if isinstance(m, nn.LayerNorm | nn.GroupNorm)}
    with torch.no_grad():
        for name, tensor in sorted(module.state_dict().items()):
            noise = torch.randn(tensor.shape, generator=generator)
            owner, _, kind = name.rpartition(".")
            if owner in norms or "layer_norm" in owner:
                tensor.copy_((kind == "weight") + 0.1 * noise)
            elif kind == "bias" or name.endswith("pos_embedding"):
                tensor.copy_(0.1 * noise)
            else:
                tensor.copy_(noise / math.sqrt(max(1, tensor[0].numel())))


def _transformer(config: TransformerConfig) -> nn.Module:
    """diffusers' class where it has one for such a transformer."""
    from . import transformer_module

    return transformer_module.module_of(config)


def _write_tokenizer(folder: Path, size: int, max_length: int) -> None:
    import sentencepiece
    from transformers import T5Tokenizer

    model = io.BytesIO()
    # 100 ids at the end of T5's vocabulary are its sentinels.
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()), model_writer=model, vocab_size=size - 112, pad_id=0, eos_id=1,
        unk_id=2, bos_id=-1, hard_vocab_limit=False, character_coverage=1.0, num_threads=1, minloglevel=2,
    )  # fmt: skip
    folder.mkdir()
    (folder / "spiece.model").write_bytes(model.getvalue())
    config = {"tokenizer_class": "T5Tokenizer", "extra_ids": 100, "model_max_length": max_length}
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    T5Tokenizer.from_pretrained(folder)  # it has to open: a check, not a use


def write_small_parts(folder: Path, variant: Variant) -> None:
    """The parts of a checkpoint that hold no weights: scheduler and tokenizer."""
    from diffusers import CogVideoXDPMScheduler

    # The settings of the official checkpoints.
    CogVideoXDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        prediction_type="v_prediction", rescale_betas_zero_snr=True, snr_shift_scale=1.0,
        timestep_spacing="trailing",
    ).save_pretrained(folder / "scheduler")  # fmt: skip
    size = min(variant.text.vocab_size, 512)  # what the corpus gives; larger vocabularies are not filled
    _write_tokenizer(folder / "tokenizer", size, variant.transformer.max_text_seq_length)


def write_checkpoint(
    variant: str | Variant, path: str | Path, seed: int = 0, dtype: torch.dtype = torch.float32
) -> Path:
    """Write a checkpoint with seeded random weights in the Hugging Face layout that diffusers opens.

    Args:
        variant: a row of VARIANTS or its name. Meant for TINY, TINY_1_5 and small models of one's own.
        path: the folder to write; it must not exist yet. It is written aside and renamed.
        seed: the same seed gives the same bytes.
        dtype: of the stored weights of transformer, text encoder and VAE.

    Returns:
        The folder.
    """
    from diffusers import AutoencoderKLCogVideoX
    from transformers import T5Config, T5EncoderModel

    variant, path = variant_named(variant) if isinstance(variant, str) else variant, Path(path)
    if path.exists():
        raise CheckpointError(f"{path} exists already; name a folder that does not, or remove it first.")
    with without_bars(), atomic_dir(path) as folder:
        blocks = len(variant.vae.block_out_channels)
        modules = {
            "transformer": _transformer(variant.transformer),
            "vae": AutoencoderKLCogVideoX(
                down_block_types=("CogVideoXDownBlock3D",) * blocks,
                up_block_types=("CogVideoXUpBlock3D",) * blocks,
                **asdict(variant.vae),
            ),
            "text_encoder": T5EncoderModel(T5Config(**asdict(variant.text), is_encoder_decoder=False, use_cache=False)),
        }
        for offset, (part, module) in enumerate(modules.items()):
            _randomise(module, seed * len(modules) + offset)
            (module if dtype is torch.float32 else module.to(dtype)).save_pretrained(folder / part)
        write_small_parts(folder, variant)
        index = {
            "_class_name": "ConsisIDPipeline",
            "scheduler": ["diffusers", "CogVideoXDPMScheduler"],
            "text_encoder": ["transformers", "T5EncoderModel"],
            "tokenizer": ["transformers", "T5Tokenizer"],
            "transformer": ["diffusers", "ConsisIDTransformer3DModel"],
            "vae": ["diffusers", "AutoencoderKLCogVideoX"],
        }
        (folder / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
        if variant.transformer.is_train_face:
            write_face_models(folder, seed, variant.eva.width, variant.eva.layers)
    return path
