"""Position and covariance straight from the pooled embedding of the receivers. Shapes: B batch."""

import torch
from torch import Tensor, nn

from triangulation_pipeline.model.encoder import ReceiverAttention, ReceiverEncoder, pooled
from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.locator import FitData, Located, Locator, cholesky, zeroed
from triangulation_pipeline.model.spec import EncoderConfig, LocatorSpec


class Regression(Locator):
    """Encoder, attention, plain head. Positions are around the initial fix, the middle of the service area, and all is
    in units of the area's size."""

    middle_m: Tensor

    def __init__(self, spec: LocatorSpec, config: EncoderConfig) -> None:
        super().__init__()
        area = spec.network.service_area(spec.area_margin_m)
        self.size_m = (area.east_max_m - area.east_min_m + area.north_max_m - area.north_min_m) / 4
        self.range_scale_m = config.range_scale_m
        middle = torch.tensor([area.east_min_m + area.east_max_m, area.north_min_m + area.north_max_m]) / 2
        self.register_buffer("middle_m", middle, persistent=False)
        self.encoder = ReceiverEncoder(len(spec.network.sites), 2, config)
        self.attention = ReceiverAttention(config)
        width = 2 * config.embedding
        self.head = nn.Sequential(nn.Linear(width, width), nn.GELU(), zeroed(nn.Linear(width, 5)))

    def fit(self, data: FitData) -> None:
        """Input scaling."""
        self.encoder.fit(data.inputs)

    def initial_fix(self, inputs: LocatorInputs) -> Tensor:
        """The middle of the service area."""
        return self.middle_m.expand(len(inputs), 2)

    def forward(self, inputs: LocatorInputs, initial_m_B2: Tensor) -> Located:
        """Positions around the initial fix."""
        toa = inputs.toa_m_BR / self.range_scale_m
        tokens = self.attention(self.encoder(inputs, [toa, torch.tanh(toa * 10)]), inputs.present_BR)
        raw = self.head(pooled(tokens, inputs.present_BR))
        return Located(
            rounds_m_B2=(initial_m_B2 + raw[:, :2] * self.size_m,),
            scale_tril_m_B22=cholesky(raw[:, 2:]) * self.size_m * self.covariance_scale.sqrt(),
            solved_B=torch.zeros(len(inputs), dtype=torch.bool, device=raw.device),
        )


LOCATOR = Regression
