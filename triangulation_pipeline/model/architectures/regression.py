"""The posterior straight from the pooled tokens of the receivers, for comparison. Shapes: B batch."""

import torch
from torch import Tensor, nn

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.encoder import NOISE_FEATURES, ReceiverEncoder, View, pooled
from triangulation_pipeline.model.inputs import HYPOTHESIS_FEATURES, LocatorInputs
from triangulation_pipeline.model.locator import Locator, Mixture, freedom, zeroed
from triangulation_pipeline.model.spec import EncoderConfig
from triangulation_pipeline.model.start import prepared
from triangulation_pipeline.physics.layout import Layout


class Regression(Locator):
    """Encoder and plain head around the posterior of the cells: one Student's t in its units, no solver."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        self.start = config.start.model_copy(update={"hypotheses": 1})
        self.encoder = ReceiverEncoder(config)
        width = 2 * config.embedding
        self.head = nn.Sequential(
            nn.Linear(width + HYPOTHESIS_FEATURES + NOISE_FEATURES, width), nn.GELU(), zeroed(nn.Linear(width, 6))
        )

    def prepare(self, layout: Layout, measurements: Measurements) -> LocatorInputs:
        """One hypothesis a row: mean and spread of its posterior over the cells."""
        return prepared(layout, measurements, self.start, solve=False)

    def forward(self, inputs: LocatorInputs) -> Mixture:
        """One component a row."""
        view = View.of(inputs, torch.zeros(len(inputs), dtype=torch.int64, device=inputs.hears_BW.device))
        tokens = self.encoder(view.features_MWF, inputs.hears_BW)
        about = torch.cat([pooled(tokens, inputs.hears_BW), inputs.hypothesis_features_BKF[:, 0], view.noise_MF], -1)
        raw = self.head(about)
        first, cross, second = inputs.spread_m_BK3[:, 0].unbind(-1)
        east, north = raw[:, 0], raw[:, 1]
        fix_m = inputs.hypothesis_m_BK2[:, 0] + torch.stack([first * east, cross * east + second * north], -1)
        return Mixture(
            log_weight_BC=torch.zeros_like(first)[:, None],
            mean_m_BC2=fix_m[:, None],
            scale_tril_m_BC3=scaled(inputs.spread_m_BK3[:, 0], raw[:, 2:5])[:, None],
            freedom_BC=freedom(raw[:, 5:]),
            fix_m_BK2=fix_m[:, None],
            bound_m_BK=inputs.spread_m_BK3.norm(dim=-1),
        )


def scaled(spread_m: Tensor, raw: Tensor) -> Tensor:
    """Cholesky factors (..., 3) times lower factors of (log first, log second, cross) (..., 3)."""
    first, cross, second = spread_m.unbind(-1)
    wide, high = raw[..., 0].clamp(-6, 6).exp(), raw[..., 1].clamp(-6, 6).exp()
    return torch.stack([first * wide, cross * wide + second * raw[..., 2], second * high], -1)


LOCATOR = Regression
