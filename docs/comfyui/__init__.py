"""ConsisID for ComfyUI: link or copy this folder into ComfyUI's custom_nodes, with consisid installed beside ComfyUI.

Three nodes: an engine folder is opened, a photo becomes a person, and a person and a prompt become frames. Images are
ComfyUI's: float32 [batch, height, width, 3] in [0, 1].
"""

from .nodes import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

__all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS"]
