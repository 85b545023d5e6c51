"""A least-squares solver inside the neural network, in the order the data flows: hypotheses, tokens, one step, mixture.

Shapes: B batch, K hypotheses, M hypotheses alive (of all rows), W receivers, C components.
"""

import torch
from torch import Tensor, nn

from triangulation_pipeline.measurements import Measurements
from triangulation_pipeline.model.architectures.regression import scaled
from triangulation_pipeline.model.arrays import mean
from triangulation_pipeline.model.encoder import MASKED, NOISE_FEATURES, ReceiverEncoder, View, pooled
from triangulation_pipeline.model.geometry import Ellipse, Information, within
from triangulation_pipeline.model.inputs import HYPOTHESIS_FEATURES, LocatorInputs
from triangulation_pipeline.model.locator import Locator, Mixture, freedom, zeroed
from triangulation_pipeline.model.spec import TriangulationConfig
from triangulation_pipeline.model.start import prepared
from triangulation_pipeline.physics.layout import Layout

# How components begin: the first is the solver's own, the others are wider and rarer; an alternative rarer still.
FIRST_WIDTH, OTHER_WIDTH, OTHER_LOGIT = 0.0, 1.0, -2.0
ALTERNATIVE_WIDTH, ALTERNATIVE_LOGIT = 0.3, -4.0
FARTHEST_ALTERNATIVE = 50.0  # in the ellipse's mean radius
FARTHEST_STEP = 0.05  # of the standard deviation of a place in the area
SHIFT = 3.0  # a component's learned shift of 1, in sigmas
SHAPE_FEATURES = 4
# Factors that are not learned: scale the features of hypotheses to about one.
FEATURE_SCALES = (0.2, 0.3, 0.3, 0.3, 0.3, 0.1, 0.5, 0.5, 1.0)


class Triangulation(Locator):
    """Several hypotheses a row, each judged by its receivers and moved by one learned Gauss-Newton step; the posterior
    has some components around each, and one more for each receiver, as if that were judged the other way.

    Rows with fewer than three arrival times stay where the posterior over cells has put them.
    """

    def __init__(self, config: TriangulationConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = ReceiverEncoder(config)
        self.read = zeroed(nn.Linear(config.embedding, 2))
        self.read_alternative = zeroed(nn.Linear(config.embedding, 4)) if config.alternatives else None
        width = 2 * config.embedding
        about = width + HYPOTHESIS_FEATURES + NOISE_FEATURES + SHAPE_FEATURES
        self.head = nn.Sequential(
            nn.Linear(about, width), nn.GELU(), zeroed(nn.Linear(width, 1 + 7 * config.components))
        )

    def prepare(self, layout: Layout, measurements: Measurements) -> LocatorInputs:
        """The best distinct solutions of each row, or the parts of its posterior over cells."""
        return prepared(layout, measurements, self.config.start, solve=True)

    def forward(self, inputs: LocatorInputs) -> Mixture:
        """Each hypothesis that is alive is computed once, whatever its row."""
        row_M, which_M = inputs.alive_BK.nonzero(as_tuple=True)
        one_each = len(row_M) == len(inputs)
        rows = inputs if one_each else inputs.take(row_M)
        view = View.of(rows, which_M)
        tokens = self.encoder(view.features_MWF, rows.hears_BW)
        row = torch.arange(len(rows), device=which_M.device)
        begin_m, spread_m = rows.hypothesis_m_BK2[row, which_M], rows.spread_m_BK3[row, which_M]
        features_MF = rows.hypothesis_features_BKF[row, which_M]

        fix_m, information, weight = self._step(view, tokens, begin_m, spread_m, rows.area_m_B)
        found_m = torch.where(view.solved_M[:, None], torch.stack(information.ellipse.spread_m(), -1), spread_m)
        about = torch.cat(
            [
                pooled(tokens, rows.hears_BW),
                features_MF * tokens.new_tensor(FEATURE_SCALES),
                view.noise_MF,
                _shape(view, found_m),
            ],
            dim=-1,
        )
        raw = self.head(about)
        log_share = features_MF[:, 0] + raw[:, 0]
        logit, mean_m, tril_m, freedom_MC = self._components(raw[:, 1:], fix_m, found_m)
        if self.read_alternative is not None:
            others = self._alternatives(
                self.read_alternative(tokens), raw[:, 2:5], view, fix_m, information, weight, rows.delay_mean_m_B
            )
            logit, mean_m, tril_m, freedom_MC = (
                torch.cat(pair, 1) for pair in zip((logit, mean_m, tril_m, freedom_MC), others, strict=True)
            )
        log_weight = log_share[:, None] + logit.log_softmax(1)
        bound_m = torch.maximum(found_m.norm(dim=-1), rows.spread_m_BK3[:, 0].norm(dim=-1))
        if one_each:
            return Mixture(log_weight.log_softmax(1), mean_m, tril_m, freedom_MC, fix_m[:, None], bound_m[:, None])
        shape = inputs.alive_BK.shape

        def placed(values: Tensor, padding: float) -> Tensor:
            return values.new_full((*shape, *values.shape[1:]), padding).index_put((row_M, which_M), values)

        return Mixture(
            log_weight_BC=placed(log_weight, -torch.inf).flatten(1, 2).log_softmax(1),
            mean_m_BC2=placed(mean_m, 0.0).flatten(1, 2),
            scale_tril_m_BC3=placed(tril_m, 1.0).flatten(1, 2),
            freedom_BC=placed(freedom_MC, 4.0).flatten(1, 2),
            fix_m_BK2=placed(fix_m, 0.0),
            bound_m_BK=placed(bound_m, torch.inf),
        )

    def _step(
        self, view: View, tokens_MWD: Tensor, begin_m: Tensor, spread_m: Tensor, area_m: Tensor
    ) -> tuple[Tensor, Information, Tensor]:
        """Where the learned weights and delays lead, with the information and weights without gradient."""
        preference, delay = self.read(tokens_MWD).permute(2, 1, 0)
        # A softmax: a factor common to all weights would not move the position, but it would drift, and the spread
        # with it.
        share = preference.masked_fill(view.timed_WM == 0, MASKED).softmax(0)
        weight = view.weight_WM * share * view.timed_WM.sum(0)
        damped = Information.of(weight, view.grad_e_WM, view.grad_n_WM, self.config.damping, view.beside)
        east_m, north_m = damped.step_m(view.residual_m_WM - view.due_m_WM - delay * view.sigma_m_WM, weight)
        ellipse = Ellipse.of_spread(*spread_m.unbind(-1))
        length = ellipse.squared(east_m, north_m).clamp_min(1e-12).sqrt()
        shorter = self.config.longest_step / length.clamp_min(self.config.longest_step)
        step_m = torch.stack(within((east_m * shorter, north_m * shorter), FARTHEST_STEP * area_m), -1)
        fix_m = begin_m + torch.where(view.solved_M[:, None], step_m, torch.zeros_like(step_m))
        weight = weight.detach()
        return fix_m, Information.of(weight, view.grad_e_WM, view.grad_n_WM, beside=view.beside), weight

    def _components(self, raw: Tensor, fix_m: Tensor, found_m: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits, means, Cholesky factors and freedoms of the components around each hypothesis."""
        raw = raw.view(len(raw), self.config.components, 7)
        is_other = (torch.arange(self.config.components, device=raw.device) > 0).float()
        width = FIRST_WIDTH + (OTHER_WIDTH - FIRST_WIDTH) * is_other
        logit = raw[..., 0] + OTHER_LOGIT * is_other
        spread_m = found_m[:, None].expand(-1, self.config.components, -1)
        tril_m = scaled(spread_m, torch.stack([raw[..., 1] + width, raw[..., 2] + width, raw[..., 3]], -1))
        # The first stays where the solver put it.
        east, north = (raw[..., 5:] * is_other[:, None] * SHIFT).unbind(-1)
        first, cross, second = spread_m.unbind(-1)
        mean_m = fix_m[:, None] + torch.stack([first * east, cross * east + second * north], -1)
        return logit, mean_m, tril_m, freedom(raw[..., 4])

    def _alternatives(
        self,
        raw: Tensor,
        shape: Tensor,
        view: View,
        fix_m: Tensor,
        information: Information,
        weight: Tensor,
        delay_m: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """One component a receiver (M, W): where the fix would be, and how sure, if its arrival time were judged the
        other way. A trusted one is then late, by the mean delay and as uncertain as that; a distrusted one is direct.
        """
        with torch.no_grad():
            variance_m2 = view.sigma_m_WM * view.sigma_m_WM
            direct, late = view.timed_WM / variance_m2, view.timed_WM / (variance_m2 + delay_m * delay_m)
            trusted = weight > direct / 2
            other = torch.where(trusted, torch.minimum(late, weight), torch.maximum(direct, weight))
            residual_m = view.residual_m_WM - mean(view.residual_m_WM, weight)
            move_m, spread_m = information.reweighted(weight, other, residual_m, delay_m * trusted)
            first, _, second = information.ellipse.spread_m()
            east_m, north_m = within(move_m, FARTHEST_ALTERNATIVE * (first * second).sqrt())
            move_m_MW2 = torch.stack([east_m.T, north_m.T], -1)
            spread_m_MW3 = torch.stack([part.T for part in spread_m], -1)
            possible = ((view.timed_WM > 0) & view.solved_M).T
        logit = (raw[..., 0] + ALTERNATIVE_LOGIT).masked_fill(~possible, -torch.inf)
        mean_m = fix_m[:, None] + move_m_MW2 * raw[..., 1].clamp(-2, 2).exp()[..., None]
        wider = (raw[..., 2] + ALTERNATIVE_WIDTH).clamp(-4, 4).exp()[..., None] * scaled(spread_m_MW3, shape[:, None])
        return logit, mean_m, wider, freedom(raw[..., 3])


def _shape(view: View, found_m: Tensor) -> Tensor:
    """(M, 4) how large the residuals are, how long the ellipse is, and how much hangs on one receiver."""
    with torch.no_grad():
        x = (view.residual_m_WM / view.sigma_m_WM).abs() * view.timed_WM
        number = view.timed_WM.sum(0).clamp_min(1)
        first, _, second = found_m.unbind(-1)
        return torch.stack(
            [
                ((x * x).sum(0) / number).log1p() / 2,
                x.amax(0).log1p() / 2,
                (second / first).log() / 3,
                (view.leverage_WM * view.timed_WM).amax(0),
            ],
            dim=-1,
        )


LOCATOR = Triangulation
