"""One denoising step, both halves of guidance: the engine's loop, compiled blocks, a CUDA graph, diffusers."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from consisid.engine.conditioning import Conditioning, Positions, condition
from consisid.engine.denoise import predict, time_table
from consisid.engine.runtime.executor import GraphExecutor, PerLayer

from ..core.flops import STEP_GRAPHS, step_bytes, step_cost
from ..core.reference import face_inputs
from ..core.reference import transformer as reference_transformer
from .cases import Case, Context, Unavailable, Work

BEFORE = ("text_project", "time_embed", "modulation", "out_modulation", "image_embed", "face_extract", "face_fold")
TIMESTEP = 600.0


class Step:
    """Everything that a step reads, made once; `predict` is the step."""

    def __init__(self, c: Context):
        self.c, t, s = c, c.variant.transformer, c.shape
        self.networks = c.weights.networks([*STEP_GRAPHS, *BEFORE])
        patches = (1, s.latent_frames, t.in_channels // 2, s.latent_height, s.latent_width)
        self.latents, self.image = c.randn(*patches, seed=10), c.randn(*patches, seed=11)
        self.embeds = c.randn(c.batch, t.max_text_seq_length, t.text_embed_dim, seed=12)
        self.face = face_inputs(c.variant, c.device, c.dtype)
        learned = None
        if t.use_learned_positional_embeddings:
            learned = c.weights.tensor("transformer", "patch_embed.pos_embedding")
        self.positions = Positions(t, s, learned)
        self.times = time_table(self.networks, torch.tensor([TIMESTEP]))
        self.given = self.condition()

    def condition(self) -> Conditioning:
        tokens, keys, values = self.networks.one("face_extract", *self.face), [], []
        for layer in range(self.c.variant.transformer.num_cross_attn):
            key, value = self.networks.many("face_fold", tokens, layer=layer)
            keys.append(key)
            values.append(value)
        return condition(self.networks, self.positions, self.embeds, self.image, (keys, values))

    def predict(self, networks: GraphExecutor | None = None) -> Tensor:
        return predict(networks or self.networks, self.latents, 0, self.times, self.given)

    def sequential(self) -> Tensor:
        halves = [replace(self.given, text=text) for text in self.given.text.split(1)]
        return torch.cat([predict(self.networks, self.latents, 0, self.times, half) for half in halves])


def shared(c: Context) -> tuple[Step, Tensor]:
    """The step and what the eager loop predicts, made once per phase."""
    step: Step = c.once("step", lambda: Step(c))
    return step, c.once("right", step.predict)


def compiled(networks: GraphExecutor) -> GraphExecutor:
    """The same graphs under torch.compile: weights stay arguments, so a block is compiled once."""
    runners = {name: torch.compile(run, dynamic=False) for name, run in networks.runners.items()}
    return PerLayer(networks.variant, runners, networks.weights, networks.device, networks.dtype)


def captured(c: Context, run: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """A CUDA graph of a call and the tensor that its replay writes."""
    c.need_gpu("a CUDA graph")
    if c.device.type == "meta":
        return lambda: None, run()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run()
    out.zero_()
    graph.replay()
    return graph.replay, out


def ours(c: Context, kind: str) -> Work:
    step, right = shared(c)
    if kind == "sequential":
        return Work(step.sequential, c.compare(step.sequential(), right), c.tolerance)
    if kind == "eager":
        note = "the truth of this phase: compared with diffusers in its row"
        return Work(step.predict, None, note=note)
    if "compiled" in kind and c.device.type == "cpu":
        raise Unavailable("compiling takes minutes on a CPU and answers nothing about a GPU")
    networks = step.networks
    if "compiled" in kind and c.device.type != "meta":
        networks = c.once("compiled", lambda: compiled(step.networks))
    if "graph" in kind:
        replay, out = captured(c, lambda: step.predict(networks))
        return Work(replay, c.compare(out, right), c.tolerance)
    return Work(lambda: step.predict(networks), c.compare(step.predict(networks), right), c.tolerance)


def theirs(c: Context) -> Work:
    """diffusers' transformer with the same weights and inputs."""
    step, right = shared(c)
    model = c.once("theirs", lambda: reference_transformer(c.weights))
    cos, sin = (x.repeat_interleave(2, dim=1) for x in (step.given.cos, step.given.sin))
    joined = torch.cat((step.latents, step.image), dim=2).expand(c.batch, -1, -1, -1, -1)
    time = torch.full((c.batch,), TIMESTEP, device=c.device)

    def run() -> Tensor:
        return model(
            hidden_states=joined, encoder_hidden_states=step.embeds, timestep=time, image_rotary_emb=(cos, sin),
            id_cond=step.face[0], id_vit_hidden=step.face[1:], return_dict=False,
        )[0]  # fmt: skip

    note = "the error is between ours and theirs; both round in another order over all blocks"
    return Work(run, c.compare(right, run()), 5 * c.tolerance, note)


def cases(c: Context) -> Iterator[Case]:
    flops = c.batch * step_cost(c.variant, c.shape).total
    whole = c.batch * step_cost(c.variant, c.shape, folded=False, whole=True).total
    moved = float(step_bytes(c.variant, c.shape, c.dtype.itemsize))
    kinds = ("eager", "sequential", "CUDA graph", "compiled", "compiled, CUDA graph")
    for kind in kinds:
        yield Case(f"step, {kind}", partial(ours, c, kind), flops, moved, repeats=10)
    yield Case("step, diffusers", partial(theirs, c), whole, repeats=10, foreign=True)
