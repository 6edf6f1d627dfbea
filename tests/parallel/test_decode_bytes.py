"""What decoding by rows sends: the formula of SlabDecoder's docstring."""

from datetime import timedelta

import pytest
import torch
from support.autoencoders import SMALL, decoding, random_latents

from consisid.engine.parallel.costs import Silent
from consisid.engine.parallel.decode import SlabDecoder
from consisid.engine.shapes import spans


class Counting(SlabDecoder):
    """Counts what each map is said to send."""

    said = (0, 0)

    def meet(self, features):
        channels, frames, _, width = features.data.shape[1:]
        others = len(self.cuts) - 1
        neighbours = (self.exchange.rank > 0) + (self.exchange.rank < others)
        edges, sums = self.said
        self.said = edges + neighbours * channels * frames * width * 4, sums + 16 * self.groups * others
        super().meet(features)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_what_is_sent_is_what_is_stated(rank):
    latents = random_latents(SMALL, 5, 7, 6)
    exchange = Silent(rank, 3, torch.device("cpu"), timedelta())
    run = Counting(decoding(SMALL), exchange, (7, 6), None)
    for begin, end in spans(5):
        part = latents[:, begin:end].transpose(1, 2).contiguous()
        frames = run.decode(part, end == 5, lambda x: x.permute(0, 2, 3, 1))
        ratio = SMALL.spatial_ratio
        assert frames.shape[1:3] == ((run.rows[1] - run.rows[0]) * ratio, 6 * ratio)
    assert (exchange.sent["halo"], exchange.sent["moments"]) == run.said
    assert run.said[0] > 0
