"""The joint network: sensors -> BEV -> detections -> tracks -> futures -> plan, differentiable throughout.

Read `JointNetwork.step` from top to bottom; it is the diagram. What each tensor is called outside is stated
in `deploy/contract.py`. `interfaces: detached` cuts the gradient at every `cut`, between tracking and motion
and between all of them and planning, and changes nothing else: that is the modular baseline.

Legend: B batch, C BEV channels, Y X BEV cells, Q detections, M remembered tracks, O = Q + M objects,
K classes, D token width, F futures, S horizon steps, P plan proposals, R route points.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from e2e_perception.core.boxes import CLASSES
from e2e_perception.core.network_config import BOX_FIELDS, BOX_STD_FIELDS, EGO_FIELDS, NetworkConfig
from e2e_perception.model.encoders import BevEncoder, BevMemory, doppler_sums
from e2e_perception.model.layers import Attention, FeedForward, GatedUpdate, Mlp, sample_bev
from e2e_perception.model.planning import Planner

MASKED = -1.0e4
LEAST_LOG_PROBABILITY = -30.0  # of an association; keeps the output free of masks' -1e4
MAX_LOG_VAR = 6.0
# The velocity filter begins as a mean: its gain at the n-th step, n at most MAX_SIGHTINGS, is 1 / (n + 1), as
# if what was known at first were worth a sighting. Standard deviations [m/s], by whose inverse squares it and
# what one frame alone says are weighed: of the filter at its first step (it falls like n^-1.5, but where the
# radar hears the object not below what braking and speeding up make of it), of radar returns, and of a guess.
MAX_SIGHTINGS = 10.0
FILTER_STD, MANOEUVRE_STD, RADAR_STD, GUESS_STD = 5.0, 0.8, 0.4, 10.0
# Accelerations are running means of what speeds change by: the newest counts RATE_GAIN, less in the first
# second, half of it where the velocity's variance is UNSURE [m^2/s^2]. They stand in a token's last channel
# but one, over RATE_SCALE [m/s^2].
RATE_GAIN, UNSURE, RATE_SCALE, MAX_RATE = 0.2, 0.5, 3.0, 8.0
# Sizes are predicted relative to these (length, width, height) [m].
MEAN_SIZE = (4.2, 1.8, 1.6)

VALIDITY = ("camera_valid", "lidar_valid", "radar_valid")

Tensors = dict[str, Tensor]


class DetectionHead(nn.Module):
    """Centre heatmap and top-K queries (CenterNet, Zhou et al. 2019; CenterPoint, Yin et al. 2021)."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        c = config.bev_channels
        self.num_queries = config.num_queries
        self.blind = config.blind
        grid = config.bev_grid
        cells = math.prod(grid.shape)
        in_order_G = -torch.arange(float(cells)) / cells  # of less weight than a boost
        self.register_buffer("in_order_YX", in_order_G.view(grid.shape), persistent=False)
        self.extent = (grid.x_min, grid.x_max, grid.y_min, grid.y_max)
        centres = torch.from_numpy(grid.cell_centres_YX2()).reshape(-1, 2)
        self.register_buffer("centres_G2", centres, persistent=False)
        self.shared = nn.Sequential(nn.Conv2d(c, c, 3, 1, 1), nn.ReLU(inplace=True))
        self.heat = nn.Conv2d(c, len(CLASSES), 1)
        nn.init.constant_(self.heat.bias, -3.0)  # focal loss starts from "nothing here"
        # drivable, boundary, occupied (logits), flow x, y
        self.maps = nn.Conv2d(c, 5, 1)
        self.token = Mlp(c + len(CLASSES) + 2, config.token_channels, config.token_channels)
        self.offset = Mlp(config.token_channels, config.token_channels, 2, norm=True)

    def forward(
        self, bev_BCYX: Tensor, boost_BYX: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Heatmap logits, map outputs, and Q queries.

        Args:
            bev_BCYX: Features with memory.
            boost_BYX: Training only: added to the ranking, so that true centres are queries early on.
        Returns:
            Heatmap logits (B, K, Y, X); maps (B, 5, Y, X); query tokens (B, Q, D); query cell centres
            (B, Q, 2) [m]; object centres as this frame shows them (B, Q, 2) [m]; class logits (B, Q, K).
        """
        shared = self.shared(bev_BCYX)
        heat = self.heat(shared)
        best = heat.amax(1)
        # Local maxima only: a max pool in place of non-maximum suppression.
        is_peak = best >= F.max_pool2d(best[:, None], 3, 1, 1)[:, 0]
        ranking = torch.where(is_peak, best, best - 20.0)
        if self.blind:
            # Nothing but rounding to rank by, and each engine would take other cells.
            ranking = self.in_order_YX.expand_as(ranking)
        if boost_BYX is not None:
            ranking = ranking + boost_BYX
        cells_BQ = ranking.flatten(1).topk(self.num_queries, dim=1).indices
        features = _gather(shared.flatten(2).transpose(1, 2), cells_BQ)
        logits = _gather(heat.flatten(2).transpose(1, 2), cells_BQ)
        centres = self.centres_G2[cells_BQ]
        token = self.token(torch.cat([features, logits.tanh(), _scaled(centres)], -1))
        return heat, self.maps(bev_BCYX), token, centres, centres + self.offset(token), logits


class RadarVelocity(nn.Module):
    """What radar returns on a box say of its velocity (RadarNet, Yang et al. 2020).

    A return measures the part of the velocity along its line of sight. Whoever moves along their heading h
    at speed s shows the Doppler vector d = s (h . u) u, u the line of sight, so that s = |d|^2 / (h . d).
    Returns from across, where h . d is small, say little and weigh little.
    """

    ALONG, ACROSS = (-1.0, -0.5, 0.0, 0.5, 1.0), (-1.0, 0.0, 1.0)  # in half lengths and half widths

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        grid = config.bev_grid
        self.extent = (grid.x_min, grid.x_max, grid.y_min, grid.y_max)
        places = [(along, across) for along in self.ALONG for across in self.ACROSS]
        self.register_buffer("places_J2", torch.tensor(places), persistent=False)

    def forward(
        self, doppler_B3YX: Tensor, points_BQ2: Tensor, heading_BQ2: Tensor, log_size_BQ3: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Velocities (B, Q, 2) [m/s] and how much they are worth (B, Q, 1), 0 to 1.

        Args:
            doppler_B3YX: From `encoders.doppler_sums`.
            points_BQ2: Centres [m]. heading_BQ2: (cos, sin). log_size_BQ3: Of length, width, height [m].
        """
        half_BQ12 = 0.5 * log_size_BQ3[:, :, None, :2].clamp(max=3.0).exp()
        along, across = (half_BQ12 * self.places_J2).unbind(-1)
        cosine, sine = heading_BQ2[:, :, None].unbind(-1)
        offset = torch.stack([cosine * along - sine * across, sine * along + cosine * across], -1)
        places = points_BQ2[:, :, None] + offset  # (B, Q, J, 2)
        sums = sample_bev(doppler_B3YX, places.flatten(1, 2), self.extent).unflatten(1, places.shape[1:3])
        returns, d = sums[..., 0], sums[..., 1:] / sums[..., :1].clamp(min=0.05)
        along_heading = (d * heading_BQ2[:, :, None]).sum(-1)
        square = d.square().sum(-1)
        speed = square * along_heading / torch.maximum(along_heading.square(), 0.1 * square + 0.01)
        weight = returns * along_heading.square() / (square + 0.01)
        total = weight.sum(-1, keepdim=True)
        mean = (weight * speed).sum(-1, keepdim=True) / total.clamp(min=1e-3)
        # Rises with its square, so that what hardly touches the box hardly counts; one return is worth 0.9.
        return mean * heading_BQ2, total.square() / (total.square() + 0.1)


class BoxHead(nn.Module):
    """Box, velocity and their log-variances from a token (heteroscedastic: Kendall & Gal 2017).

    The velocity is that of a Kalman filter: what memory expects, corrected by how far the object is from
    where it was expected, blended with what this frame alone says, by radar or by a guess. Gains start from
    those of an expanding-memory filter, which fall with the number of sightings (Brookner 1998), and are
    corrected by what is learned. All of it is convex, so that an error dies out however long a track lives.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.token_channels
        self.mlp = Mlp(d, d, len(BOX_FIELDS) - 2 + len(BOX_STD_FIELDS) + 4, norm=True)
        self.radar = RadarVelocity(config)
        self.trust_radar = nn.Linear(d, 1)
        nn.init.zeros_(self.trust_radar.weight)
        nn.init.constant_(self.trust_radar.bias, 4.0)
        self.frame_period_s = config.frame_period_s
        self.register_buffer("log_size_3", torch.tensor(MEAN_SIZE).log(), persistent=False)

    def forward(
        self,
        token_BQD: Tensor,
        points_BQ2: Tensor,
        doppler_B3YX: Tensor,
        known_BQ1: Tensor,
        velocity_BQ2: Tensor,
        innovation_BQ2: Tensor,
        sightings_BQ1: Tensor,
        rate_BQ1: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Boxes from tokens.

        Args:
            token_BQD: Query tokens after the association.
            points_BQ2: Object centres [m].
            doppler_B3YX: From `encoders.doppler_sums`.
            known_BQ1: How far each is a remembered track, 0 to 1.
            velocity_BQ2: Expected from memory [m/s], times `known_BQ1`.
            innovation_BQ2: Where the object is against where it was expected [m], times `known_BQ1`.
            sightings_BQ1: In how many frames the object has been seen, this one included.
            rate_BQ1: By how much its speed was said to rise [m/s^2], times `known_BQ1`.
        Returns:
            Boxes (B, Q, 10) with columns `BOX_FIELDS`; log-variances (B, Q, 4), `BOX_STD_FIELDS`; headings
            (B, Q, 2), sine and cosine, as they are before they get their length; and by how much speeds rise
            (B, Q, 1) [m/s^2], measured and without a gradient.
        """
        raw = self.mlp(token_BQD)
        z = 0.8 + raw[..., 0:1]
        log_size = self.log_size_3 + raw[..., 1:4].clamp(-3.0, 3.0)
        free_heading = raw[..., 4:6]
        # Where nothing is known of it, a heading is short rather than a direction made of rounding.
        heading = free_heading / (free_heading.square().sum(-1, keepdim=True) + 1e-2).sqrt()

        # What this frame alone says. A wrong velocity is no reason to turn the box: no gradient that way.
        box = (points_BQ2.detach(), heading.flip(-1).detach(), log_size.detach())
        radar, worth = self.radar(doppler_B3YX, *box)
        worth = worth * self.trust_radar(token_BQD).sigmoid()
        guess = 10.0 * raw[..., 6:8]
        instant = guess + worth * (radar - guess)
        log_instant_var = ((1.0 - worth).square() * GUESS_STD**2 + worth.square() * RADAR_STD**2).log()
        # What it says with memory: the share that its variance leaves to memory's is the gain of a Kalman
        # filter (Kalman 1960), corrected by what is learned. The logit of 1 / (n + 1) is -log n.
        steps = (sightings_BQ1 - 1.0).clamp(1.0, MAX_SIGHTINGS)
        gain = (raw[..., 12:14] - steps.log()).sigmoid()
        filtered = velocity_BQ2 + gain * innovation_BQ2 / self.frame_period_s
        # Of braking the radar knows what the filter does not; a guess, which errs alike each time, does not.
        log_filter_var = (FILTER_STD**2 * steps**-3 + worth * MANOEUVRE_STD**2).log()
        keep = (raw[..., 14:16] + log_instant_var - log_filter_var).sigmoid()
        velocity = keep * filtered + (1.0 - known_BQ1 * keep) * instant
        log_var = raw[..., 8:12].clamp(-MAX_LOG_VAR, MAX_LOG_VAR)
        variance = 1.0 / ((-log_filter_var).exp() + (-log_instant_var).exp())
        rate = self._rate(velocity, velocity_BQ2, known_BQ1, sightings_BQ1, rate_BQ1, variance)
        return (
            torch.cat([points_BQ2, z, log_size, heading, velocity], -1),
            log_var,
            free_heading,
            rate.detach(),
        )

    def _rate(
        self,
        now_BQ2: Tensor,
        before_BQ2: Tensor,
        known_BQ1: Tensor,
        sightings_BQ1: Tensor,
        rate_BQ1: Tensor,
        variance_BQ1: Tensor,
    ) -> Tensor:
        """By how much a speed rises [m/s^2], from what was said before; ours."""
        rise = (_length(now_BQ2) - _length(before_BQ2 / known_BQ1.clamp(min=0.1))) / self.frame_period_s
        rise = rise.clamp(-MAX_RATE, MAX_RATE)
        # The first velocities change because they were wrong.
        settled = ((sightings_BQ1 - 1.0) / MAX_SIGHTINGS).square()
        gain = known_BQ1.square() * settled * RATE_GAIN * UNSURE / (UNSURE + variance_BQ1)
        return rate_BQ1 + gain * (rise - rate_BQ1)


class Associator(nn.Module):
    """Affinity between remembered tracks and detections, and the soft update it drives.

    Log-probabilities in both directions as in DeepAffinity (Sun et al. 2019); the soft assignment that lets
    later losses reach detection follows ADA-Track (Ding et al. 2024), without its decoder layers. Pairs are
    compared by their tokens and, ours, by how far they are apart, also as a Gaussian of it.
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d = config.token_channels
        self.embed_track = Mlp(d + len(BOX_FIELDS), d, d)
        self.embed_query = Mlp(d + 2, d, d)
        self.pair = Mlp(4, 16, 1)
        self.new = Mlp(d, 16, 1)
        self.gone = Mlp(d, 16, 1)
        self.evidence = Mlp(5, d, d)
        self.update = GatedUpdate(d)

    def forward(
        self,
        query_BQD: Tensor,
        points_BQ2: Tensor,
        track_tokens_BMD: Tensor,
        track_boxes_BM10: Tensor,
        track_valid_BM: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]:
        """Associate.

        Args:
            query_BQD: Query tokens. points_BQ2: Their centres as this frame shows them [m].
            track_tokens_BMD, track_boxes_BM10, track_valid_BM: Memory, moved to this frame.
        Returns:
            Updated query tokens (B, Q, D), the last two channels of which (rate, sightings) are not learned;
            track tokens for the decoder (B, M, D); the affinity (B, M+1, Q+1) in log-probabilities; and what
            memory knows of each query: how far it is a remembered track (B, Q, 1), its expected velocity
            (B, Q, 2) [m/s], its innovation (B, Q, 2) [m], its sightings (B, Q, 1), by how much its speed rose
            (B, Q, 1) [m/s^2].
        """
        valid = track_valid_BM > 0.5
        boxes = torch.where(valid[..., None], track_boxes_BM10, track_boxes_BM10.new_zeros(()))
        tokens = torch.where(valid[..., None], track_tokens_BMD, track_tokens_BMD.new_zeros(()))
        track = self.embed_track(torch.cat([_without_rate(tokens), _scaled_boxes(boxes)], -1))
        query = self.embed_query(torch.cat([query_BQD, _scaled(points_BQ2)], -1))

        offset = points_BQ2[:, None] - boxes[:, :, None, :2]
        distance = (offset.square().sum(-1, keepdim=True) + 1e-4).sqrt()
        pair = torch.cat([offset / 4.0, distance / 4.0, (-distance.square() / 4.0).exp()], -1)
        logits_BMQ = (
            track @ query.transpose(1, 2) * track.shape[-1] ** -0.5 + self.pair(pair.clamp(-8, 8))[..., 0]
        )
        logits_BMQ = torch.where(valid[..., None], logits_BMQ, logits_BMQ.new_full((), MASKED))

        # Every detection chooses a track or "new"; every track chooses a detection or "gone".
        by_query = torch.cat([logits_BMQ, self.new(query).transpose(1, 2)], 1).log_softmax(1)
        by_track = torch.cat([logits_BMQ, self.gone(track)], 2).log_softmax(2)
        both = 0.5 * (by_query[:, :-1] + by_track[:, :, :-1])
        corner = both.new_zeros(both.shape[0], 1, 1)
        top = torch.cat([both, by_track[:, :, -1:]], 2)
        affinity = torch.cat([top, torch.cat([by_query[:, -1:], corner], 2)], 1)

        # Soft update: expected track token under the assignment, "new" contributes nothing.
        assignment_BQM = by_query[:, :-1].exp().transpose(1, 2)
        remembered = assignment_BQM @ track
        # What a Kalman filter would look at: the innovation, against what was expected. In metres, for its
        # decimetres would drown in a token's coordinates; the box head turns them into a correction.
        known_BQ1 = assignment_BQM.sum(-1, keepdim=True)
        # Summed over offsets: a difference of sums over positions would lose digits that a tenth of a second
        # multiplies by ten.
        weighted_BMQ2 = assignment_BQM.transpose(1, 2)[..., None] * offset
        innovation_BQ2 = weighted_BMQ2.sum(1).clamp(-4.0, 4.0)
        velocity_BQ2 = assignment_BQM @ boxes[..., 8:10]
        evidence = torch.cat([innovation_BQ2, velocity_BQ2 / 10.0, known_BQ1], -1)
        updated = self.update(query_BQD + self.evidence(evidence), remembered)
        # A count is remembered, not learned; it has no gradient.
        counts_BM1 = MAX_SIGHTINGS * tokens[..., -1:]
        sightings_BQ1 = (1.0 + (assignment_BQM @ counts_BM1).detach()).clamp(max=1.0 + MAX_SIGHTINGS)
        rate_BQ1 = RATE_SCALE * (assignment_BQM @ tokens[..., -2:-1]).detach()
        updated = torch.cat([updated[..., :-2], rate_BQ1 / RATE_SCALE, sightings_BQ1 / MAX_SIGHTINGS], -1)
        track = torch.cat([track[..., :-2], tokens[..., -2:-1].detach(), track[..., -1:]], -1)
        remembered_motion = known_BQ1, velocity_BQ2, innovation_BQ2, sightings_BQ1, rate_BQ1
        return updated, track, affinity.clamp(min=LEAST_LOG_PROBABILITY), remembered_motion


# Each future starts from another intention, so that there is something to choose between [m/s^2].
INTENTIONS = (0.0, -2.5, 1.2, -1.0, 0.5, -5.0)


class MotionHead(nn.Module):
    """F Gaussian futures per object around anchors (MultiPath, Chai et al. 2019).

    The anchors are going on, braking to a stop and speeding up; the offsets around them are learned, as
    velocities, with standard deviations that grow with time alike (ours). Agents look at each other as in
    Scene Transformer (Ngiam et al. 2022), the less the less sure it is that they exist (ours).
    """

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, c = config.token_channels, config.bev_channels
        self.num_modes, self.steps = config.num_modes, config.horizon_steps
        grid = config.bev_grid
        self.extent = (grid.x_min, grid.x_max, grid.y_min, grid.y_max)
        times = torch.from_numpy(config.times_T).float()
        self.register_buffer("times_S", times, persistent=False)
        self.register_buffer("intentions_F", torch.tensor(INTENTIONS[: self.num_modes]), persistent=False)
        self.context = Mlp(d + c + len(BOX_FIELDS), d, d)
        self.interact = Attention(d, config.num_heads)
        self.feed = FeedForward(d)
        self.out = Mlp(d, 2 * d, config.num_modes * (1 + 4 * self.steps), norm=True)

    def forward(
        self, tokens_BOD: Tensor, boxes_BO10: Tensor, log_existence_BO: Tensor, bev_BCYX: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Predict.

        Args:
            tokens_BOD, boxes_BO10: Objects, columns `BOX_FIELDS`.
            log_existence_BO: Logarithm of the chance that each exists.
            bev_BCYX: Features with memory.
        Returns:
            Object tokens after interaction (B, O, D), mode logits (B, O, F), positions (B, O, F, S, 2) [m],
            log-variances (B, O, F, S, 2).
        """
        rate_BO1, tokens_BOD = RATE_SCALE * tokens_BOD[..., -2:-1], _without_rate(tokens_BOD)
        place = sample_bev(bev_BCYX, boxes_BO10[..., :2], self.extent)
        tokens = tokens_BOD + self.context(torch.cat([tokens_BOD, place, _scaled_boxes(boxes_BO10)], -1))
        tokens = self.feed(self.interact(tokens, tokens, log_existence_BO))
        raw = self.out(tokens).reshape(*tokens.shape[:2], self.num_modes, 1 + 4 * self.steps)
        logits = raw[..., 0]
        steps = raw[..., 1:].reshape(*raw.shape[:-1], self.steps, 4)
        # Offsets are predicted along and across the object's heading and grow with time.
        along, across = (steps[..., :2] * self.times_S[:, None]).unbind(-1)
        sine = boxes_BO10[..., 6][..., None, None]
        cosine = boxes_BO10[..., 7][..., None, None]
        offset = torch.stack([cosine * along - sine * across, sine * along + cosine * across], -1)
        positions = boxes_BO10[:, :, None, None, :2] + self._anchors(boxes_BO10[..., 8:10], rate_BO1) + offset
        log_var = (steps[..., 2:] + 2.0 * self.times_S.log()[:, None]).clamp(-MAX_LOG_VAR, MAX_LOG_VAR)
        return tokens, logits, positions, log_var

    def _anchors(self, velocity_BO2: Tensor, rate_BO1: Tensor) -> Tensor:
        """Way covered under each intention, along the velocity and never backwards: (B, O, F, S, 2) [m].

        Who brakes or speeds up is expected to go on with it, and intentions are on top of that; a rate below
        2 m/s^2 is mostly noise, which four seconds make metres of.
        """
        speed_BO1 = _length(velocity_BO2)
        direction_BO2 = velocity_BO2 / speed_BO1
        square_BO1 = rate_BO1.square()
        a_BOF = self.intentions_F + rate_BO1 * square_BO1 / (square_BO1 + 4.0)
        stop_BOF = torch.where(a_BOF < 0.0, speed_BO1 / (-a_BOF).clamp(min=1e-3), speed_BO1.new_full((), 1e3))
        t = torch.minimum(self.times_S, stop_BOF[..., None])
        way_BOFS = speed_BO1[..., None] * t + 0.5 * a_BOF[..., None] * t * t
        return way_BOFS[..., None] * direction_BO2[:, :, None, None]


class JointNetwork(nn.Module):
    """Detection, tracking, motion prediction and planning in one graph."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = BevEncoder(config)
        self.memory = BevMemory(config)
        self.detection = DetectionHead(config)
        self.associator = Associator(config)
        self.boxes = BoxHead(config)
        self.motion = MotionHead(config)
        self.planner = Planner(config)
        # Training may run the encoder's convolutions in half precision; geometry, memory and all that
        # follows keep their digits.
        self.encoder_dtype: torch.dtype | None = None

    def encode(self, inputs: Tensors) -> Tensor:
        """The part without memory: sensors to BEV features. Training batches it over a clip.

        Returns:
            (B, C + 3, Y, X): features, and after them `encoders.doppler_sums` as they are.
        """
        if self.config.blind:
            inputs = {**inputs, **{name: torch.zeros_like(inputs[name]) for name in VALIDITY}}
        if self.encoder_dtype is None:
            features = self.encoder(inputs)
        else:
            with torch.autocast(inputs["images"].device.type, self.encoder_dtype):
                features = self.encoder(inputs).float()
        return torch.cat([features, doppler_sums(inputs, self.config.bev_stride)], 1)

    def step(self, encoded_BCYX: Tensor, inputs: Tensors, boost_BYX: Tensor | None = None) -> Tensors:
        """One frame from BEV features on.

        Args:
            encoded_BCYX: From `encode`.
            inputs: The contract's remaining inputs, batch first.
            boost_BYX: See `DetectionHead`; None outside training.
        Returns:
            The contract's outputs, plus what the losses need: logits (`heat_logits`, `query_logits`,
            `mode_logits`, `map_logits`, `plan_logits`), `query_centres`, and `query_headings`, of any length.
        """
        cut = self._cut

        now_BCYX, doppler_B3YX = encoded_BCYX[:, :-3], encoded_BCYX[:, -3:]

        # 1. Time: what was seen before, moved to where it is now.
        bev, memory_next = self.memory(
            now_BCYX, inputs["bev_memory"], inputs["bev_theta"], inputs["memory_valid"]
        )

        # 2. Detection: a heatmap, its peaks, a token for each.
        heat, maps, query, centres, points, query_logits = self.detection(bev, boost_BYX)

        # 3. Tracking: who is who, and tokens that remember.
        query, track, affinity, remembered_motion = self.associator(
            query, points, inputs["track_tokens"], inputs["track_boxes"], inputs["track_valid"]
        )
        query_boxes, query_log_var, headings, rate = self.boxes(
            query, points, doppler_B3YX, *remembered_motion
        )
        query = torch.cat([query[..., :-2], rate / RATE_SCALE, query[..., -1:]], -1)

        # 4. Motion: detections and remembered, now unseen tracks alike have futures.
        track_boxes = torch.where(
            inputs["track_valid"][..., None] > 0.5, inputs["track_boxes"], query.new_zeros(())
        )
        scores = query_logits.sigmoid()
        unseen_BM = affinity[:, :-1, -1].exp() * inputs["track_valid"]
        existence_BO = torch.cat([scores.amax(-1), unseen_BM], 1).clamp(1e-4, 1.0)
        if self.config.blind:
            # Who sees nobody counts on meeting nobody; no two alike, so that engines order them alike.
            falling_O = torch.linspace(2e-4, 1e-4, existence_BO.shape[1], device=existence_BO.device)
            existence_BO = falling_O.expand_as(existence_BO)
        tokens_BOD = cut(torch.cat([query, track], 1))  # gradient: motion -> tracking
        boxes_BO10 = cut(torch.cat([query_boxes, track_boxes], 1))  # gradient: motion -> detection
        objects, mode_logits, futures, futures_log_var = self.motion(
            tokens_BOD, boxes_BO10, cut(existence_BO).log(), cut(bev)
        )
        modes = mode_logits.softmax(-1)

        # 5. Planning: proposals in route coordinates, refined and priced.  # gradient: planning -> all
        plan_sd, plan_costs, plan_logits = self.planner(
            bev=cut(bev),
            drivable=cut(maps[:, 0:1]),
            ego_state=inputs["ego_state"],
            route=inputs["route"],
            objects=cut(objects),
            boxes=boxes_BO10,
            existence=cut(existence_BO),
            modes=cut(modes),
            futures=cut(futures),
            futures_log_var=cut(futures_log_var),
        )
        return {
            "query_scores": scores,
            "query_boxes": query_boxes,
            "query_log_var": query_log_var,
            "query_tokens": query,
            "affinity": affinity,
            "object_modes": modes,
            "object_futures": futures,
            "object_futures_log_var": futures_log_var,
            "plan_sd": plan_sd,
            "plan_costs": plan_costs,
            "plan_logits": plan_logits,
            "heatmap": heat.sigmoid(),
            "bev_maps": torch.cat([maps[:, :3].sigmoid(), 10.0 * maps[:, 3:]], 1),
            "bev_memory_next": memory_next,
            "query_centres": centres,
            "query_headings": headings,
            "heat_logits": heat,
            "query_logits": query_logits,
            "mode_logits": mode_logits,
            "map_logits": maps,
        }

    def _cut(self, x: Tensor) -> Tensor:
        """`x` as the next part gets it: the same numbers; the gradient is let through, weakened, or cut.

        Weakening is ours, between joint training (a share of 1) and the modular baseline (0).
        """
        if self.config.interfaces == "detached":
            return x.detach()
        share = self.config.interface_gradient
        if share == 1.0 or not self.training:
            return x
        return x.detach() + share * (x - x.detach())

    def forward(self, inputs: Tensors) -> Tensors:
        """One frame, all contract inputs to all contract outputs."""
        return self.step(self.encode(inputs), inputs)

    def initial_state(self, batch: int, device: torch.device | str = "cpu") -> Tensors:
        """Empty memory: the recurrent and track inputs of a first frame."""
        c = self.config
        y, x = c.bev_grid.shape
        zeros = lambda *shape: torch.zeros(batch, *shape, device=device)  # noqa: E731
        theta = torch.eye(2, 3, device=device).expand(batch, 2, 3)
        return {
            "bev_memory": zeros(c.bev_channels, y, x),
            "bev_theta": theta,
            "memory_valid": zeros(1),
            "track_tokens": zeros(c.num_memory, c.token_channels),
            "track_boxes": zeros(c.num_memory, len(BOX_FIELDS)),
            "track_valid": zeros(c.num_memory),
        }


def _gather(rows_BGC: Tensor, index_BQ: Tensor) -> Tensor:
    """Rows (B, Q, C) of (B, G, C) at (B, Q)."""
    return rows_BGC.gather(1, index_BQ[..., None].expand(-1, -1, rows_BGC.shape[-1]))


def _without_rate(tokens: Tensor) -> Tensor:
    """Tokens without accelerations, for association and futures: clips are too short to learn from them."""
    return torch.cat([tokens[..., :-2], torch.zeros_like(tokens[..., -2:-1]), tokens[..., -1:]], -1)


def _length(x: Tensor) -> Tensor:
    """Of vectors (…, 2): (…, 1), with a gradient at 0, too."""
    return (x.square().sum(-1, keepdim=True) + 1e-2).sqrt()


def _scaled(points: Tensor) -> Tensor:
    """Positions [m] to about unit range."""
    return points / 25.0


def _scaled_boxes(boxes: Tensor) -> Tensor:
    """Box columns to about unit range."""
    return torch.cat([boxes[..., :2] / 25.0, boxes[..., 2:8], boxes[..., 8:10] / 10.0], -1)


assert EGO_FIELDS[0] == "speed" and BOX_FIELDS[6:10] == ("sin_yaw", "cos_yaw", "vx", "vy")
