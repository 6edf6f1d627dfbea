"""diffusers' face models over the same files that the engine reads."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import consisid_eva_clip
import insightface
import torch
from consisid_eva_clip.constants import OPENAI_DATASET_MEAN, OPENAI_DATASET_STD
from consisid_eva_clip.factory import get_model_config
from consisid_eva_clip.model import _build_vision_tower
from diffusers.pipelines.consisid import consisid_utils
from facexlib.parsing import init_parsing_model
from facexlib.parsing.parsenet import ParseNet
from facexlib.utils.face_restoration_helper import FaceRestoreHelper
from insightface.app import FaceAnalysis

CPU = ["CPUExecutionProvider"]


def eva_tower(width: int, layers: int) -> torch.nn.Module:
    """consisid_eva_clip's EVA02-CLIP-L-14-336, narrower."""
    config = dict(get_model_config("EVA02-CLIP-L-14-336"))
    vision = {**config["vision_cfg"], "width": width, "layers": layers}
    return _build_vision_tower(config["embed_dim"], vision).eval()


class Reference:
    """`prepare_face_models` for the files of TINY, on the CPU, and `process_face_embeddings_infer`."""

    def __init__(self, folder: Path) -> None:
        root = folder / "face_encoder"
        # TINY's file has the real file's name and MobileNet inside; facexlib chooses the class by the name.
        shutil.copy(root / "detection_Resnet50_Final.pth", root / "detection_mobilenet0.25_Final.pth")
        # The helper loads a second parser that ConsisID replaces; any weights will do.
        torch.save(ParseNet(in_size=512, out_size=512, parsing_ch=19).state_dict(), root / "parsing_parsenet.pth")
        self.helper = FaceRestoreHelper(
            upscale_factor=1, face_size=512, crop_ratio=(1, 1), det_model="retinaface_mobile0.25", save_ext="png",
            device="cpu", model_rootpath=str(root),
        )  # fmt: skip
        parser = init_parsing_model("bisenet", device="cpu", model_rootpath=str(root)).eval()
        self.labels: torch.Tensor | None = None
        parser.register_forward_hook(self.keep_labels)
        self.helper.face_parse = parser
        antelope = root / "models" / "antelopev2"
        self.arcface = insightface.model_zoo.get_model(str(antelope / "glintr100.onnx"), providers=CPU)
        self.arcface.prepare(ctx_id=0)
        self.app = FaceAnalysis(name="antelopev2", root=str(root), providers=CPU)
        self.app.prepare(ctx_id=0, det_size=(640, 640))
        state = torch.load(root / "EVA02_CLIP_L_336_psz14_s6B.pt", weights_only=True)
        state = {name.removeprefix("visual."): value for name, value in state.items()}
        self.eva = eva_tower(state["cls_token"].shape[-1], 21)
        missing, unexpected = self.eva.load_state_dict(state, strict=False)
        assert not unexpected
        assert all("rope." in name for name in missing)

    def keep_labels(self, module: Any, inputs: Any, outputs: Any) -> None:
        self.labels = outputs[0].argmax(dim=1)[0]

    @torch.no_grad()
    def __call__(self, source: Any, aligned: bool = True) -> SimpleNamespace:
        id_cond, hidden, image, points = consisid_utils.process_face_embeddings_infer(
            self.helper, self.eva, self.arcface, OPENAI_DATASET_MEAN, OPENAI_DATASET_STD, self.app, "cpu",
            torch.float32, source, is_align_face=aligned,
        )  # fmt: skip
        return SimpleNamespace(id_cond=id_cond, hidden=hidden, image=image, points=points, labels=self.labels)


assert consisid_eva_clip is not None
