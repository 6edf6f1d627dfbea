"""Joint attention over tokens that are spread over devices."""

from collections.abc import Sequence

import torch
from torch import Tensor

from consisid.kernels import joint_attention, merge, partial_attention

from .exchange import Exchange
from .mesh import Mesh, Share


class SpreadAttention:
    """Attention of every token to the tokens of all devices of a sequence.

    Ulysses (Jacobs et al., arXiv:2309.14509): each device gives its tokens of most heads away and gets all tokens of
    the heads that it computes; the result goes back the same way. In a ring (Liu et al., arXiv:2310.01889) queries
    stay, keys and values go round. Both together are USP (Fang and Zhao, arXiv:2405.07719). Rows of padding do not
    travel.

    Args:
        shares: of the devices of a sequence.
    """

    def __init__(self, exchange: Exchange, mesh: Mesh, shares: Sequence[Share]):
        cfg, mine, turn = mesh.coordinates(exchange.rank)
        self.exchange, self.mesh, self.shares = exchange, mesh, shares
        self.mine, self.turn = mine, turn
        self.group = [mesh.rank(cfg, i, turn) for i in range(mesh.ulysses)]
        self.ring = [mesh.rank(cfg, mine, i) for i in range(mesh.ring)]

    def _share(self, ulysses: int, ring: int) -> Share:
        return self.shares[self.mesh.rank(0, ulysses, ring)]

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q, k and v of this device, [B, s, H, D] -> [B, s, C], zero in the rows of padding."""
        own = self._share(self.mine, self.turn)
        q, k, v = self._all_tokens(torch.stack((q, k, v)), own)
        found = self._attend(q, k, v)
        del q, k, v
        found = self._all_heads(found, own)
        out = found.new_zeros((len(found), own.rows, *found.shape[2:]))
        ends = 0
        for place in own.places:
            ends, begins = ends + place.stop - place.start, ends
            out[:, place] = found[:, begins:ends]
        return out.flatten(2)

    def _all_tokens(self, given: Tensor, own: Share) -> tuple[Tensor, ...]:
        """[3, B, s, H, D] of this device -> three of [B, N, H / u, D]: the tokens of its Ulysses group, the text's
        first."""
        heads = given.shape[3] // self.mesh.ulysses

        def part(index: int) -> Tensor:
            rows = given[:, :, :, index * heads : (index + 1) * heads]
            return torch.cat([rows[:, :, place] for place in own.places], dim=2)

        shares = [self._share(i, self.turn) for i in range(self.mesh.ulysses)]
        parts = [
            part(i) if i == self.mine else given.new_empty((*given.shape[:2], share.count, heads, given.shape[4]))
            for i, share in enumerate(shares)
        ]
        self._swap("tokens", [part(i) for i in range(len(shares)) if i != self.mine], parts)
        text = [part[:, :, : share.text[1] - share.text[0]] for part, share in zip(parts, shares, strict=True)]
        video = [part[:, :, share.text[1] - share.text[0] :] for part, share in zip(parts, shares, strict=True)]
        return torch.cat([*text, *video], dim=2).unbind(0)

    def _all_heads(self, given: Tensor, own: Share) -> Tensor:
        """[B, N, H / u, D], in the order of `_all_tokens` -> [B, n, H, D] of this device."""
        shares = [self._share(i, self.turn) for i in range(self.mesh.ulysses)]
        texts = [share.text[1] - share.text[0] for share in shares]
        videos = [share.video[1] - share.video[0] for share in shares]
        pieces = given.split([*texts, *videos], dim=1)
        cuts = [torch.cat((pieces[i], pieces[len(shares) + i]), dim=1) for i in range(len(shares))]
        parts = [cuts[i] if i == self.mine else torch.empty_like(cuts[self.mine]) for i in range(len(shares))]
        self._swap("heads", [piece for i, piece in enumerate(cuts) if i != self.mine], parts)
        return torch.cat(parts, dim=2)

    def _swap(self, what: str, gives: Sequence[Tensor], parts: Sequence[Tensor]) -> None:
        others = [i for i in range(self.mesh.ulysses) if i != self.mine]
        self.exchange.swap(
            what,
            [(tensor, self.group[i]) for i, tensor in zip(others, gives, strict=True)],
            [(parts[i], self.group[i]) for i in others],
        )

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention of the group's tokens to those of all groups."""
        scale, count = q.shape[-1] ** -0.5, len(self.ring)
        if count == 1:
            return joint_attention(q, k, v, scale)
        counts = [sum(self._share(i, ring).count for i in range(self.mesh.ulysses)) for ring in range(count)]
        after, before = self.ring[(self.turn + 1) % count], self.ring[(self.turn - 1) % count]
        keys, found = torch.stack((k, v)), None
        del k, v
        for step in range(1, count):
            came = keys.new_empty((*keys.shape[:2], counts[(self.turn - step) % count], *keys.shape[3:]))
            with self.exchange.swapping("ring", [(keys, after)], [(came, before)]):
                part = partial_attention(q, keys[0], keys[1], scale)
            keys, found = came, part if found is None else merge(found, part)
            del came, part
        assert found is not None
        return merge(found, partial_attention(q, keys[0], keys[1], scale))[0].to(q.dtype)
