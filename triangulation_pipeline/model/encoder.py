"""What the architectures share: receivers as tokens, attention between them, pooling.

Shapes: B batch, R receivers, D embedding, F features.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from triangulation_pipeline.model.inputs import LocatorInputs
from triangulation_pipeline.model.spec import EncoderConfig

# SNR, power, heard or not, timed or not, sigma.
MEASURED_FEATURES = 5


class ReceiverEncoder(nn.Module):
    """What each receiver measured, and which site it is, as a token; scaled by constants fitted on training rows."""

    level_mean: Tensor
    level_std: Tensor

    def __init__(self, receivers: int, features: int, config: EncoderConfig) -> None:
        super().__init__()
        self.site_RD = nn.Parameter(torch.randn(receivers, config.embedding) * 0.1)
        self.embed = nn.Linear(features + MEASURED_FEATURES, config.embedding)
        self.mlp = nn.Sequential(
            nn.GELU(), nn.Dropout(config.dropout_rate), nn.Linear(config.embedding, config.embedding)
        )
        self.register_buffer("level_mean", torch.zeros(2))
        self.register_buffer("level_std", torch.ones(2))

    @torch.no_grad()
    def fit(self, inputs: LocatorInputs) -> None:
        """Scaling of SNR and power, from the rows' detecting receivers."""
        levels = torch.stack([inputs.snr_db_BR, inputs.power_dbm_BR], -1)[inputs.present_BR]
        self.level_mean.copy_(levels.mean(0))
        self.level_std.copy_(levels.std(0).clamp_min(1e-3))

    def forward(self, inputs: LocatorInputs, features: Sequence[Tensor]) -> Tensor:
        """Tokens (B, R, D) from the measurements and further features, each (B, R)."""
        timed = inputs.toa_present_BR.to(inputs.sigma_m_BR.dtype)
        measured_FBR = torch.stack(
            [
                (inputs.snr_db_BR - self.level_mean[0]) / self.level_std[0],
                (inputs.power_dbm_BR - self.level_mean[1]) / self.level_std[1],
                inputs.present_BR.to(timed.dtype),
                timed,
                (inputs.sigma_m_BR.log() - 3) * timed,
                *features,
            ]
        )
        # Stacked along the first axis, where each feature is one plain copy: many times faster than along the last.
        return self.mlp(self.embed(measured_FBR.permute(1, 2, 0)) + self.site_RD)


class ReceiverAttention(nn.Module):
    """One pre-norm transformer block over the receivers; masked receivers are not attended to."""

    def __init__(self, config: EncoderConfig) -> None:
        super().__init__()
        width = config.embedding
        self.heads = config.heads
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.feed = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, 2 * width),
            nn.GELU(),
            nn.Dropout(config.dropout_rate),
            nn.Linear(2 * width, width),
        )

    def forward(self, tokens_BRD: Tensor, key_BR: Tensor) -> Tensor:
        """Tokens (B, R, D), with keys where ``key_BR`` is true: at least one per row."""
        batch, receivers, width = tokens_BRD.shape
        query, key, value = (
            self.project(self.norm(tokens_BRD))
            .view(batch, receivers, 3, self.heads, width // self.heads)
            .permute(2, 0, 3, 1, 4)
        )
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=key_BR[:, None, None, :])
        mixed = mixed.transpose(1, 2).reshape(batch, receivers, width)
        tokens_BRD = tokens_BRD + self.out(mixed)
        return tokens_BRD + self.feed(tokens_BRD)


def pooled(tokens_BRD: Tensor, key_BR: Tensor) -> Tensor:
    """Mean and maximum over the receivers in ``key_BR``, (B, 2 D); zeros if there is none."""
    mask = key_BR[..., None].to(tokens_BRD.dtype)
    mean = (tokens_BRD * mask).sum(1) / mask.sum(1).clamp_min(1)
    maximum = tokens_BRD.masked_fill(~key_BR[..., None], -1e9).amax(1)
    return torch.cat([mean, torch.where(key_BR.any(1, keepdim=True), maximum, torch.zeros_like(maximum))], dim=-1)
