"""Planning in route coordinates: a vocabulary of manoeuvres, refined and priced term by term.

Scoring a fixed vocabulary follows VADv2 (Chen et al. 2024) and Hydra-MDP (Li et al. 2024); the vocabulary
here is built from the robot's own speed and offset, in the Frenet frame of the route (Werling et al. 2010),
so that it always starts where the robot is. Each proposal is scored for how good it is (`imitation`) and for
how likely it meets somebody (`collision`), both distilled from the expert's prices as in Hydra-MDP. They
start from the expert's own formulas, applied to predicted futures and drivable area and differentiable down
to the detections; learned are how far to trust each formula, and corrections. The other costs are formulas.

Legend: B batch, P proposals, S horizon steps, O objects, F futures, R route points, D token width.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from e2e_perception.core.network_config import EGO_FIELDS, NetworkConfig
from e2e_perception.core.trajectories import ROUTE_POINTS, ROUTE_SPACING
from e2e_perception.model.layers import Attention, FeedForward, Mlp, sample_bev

EGO_HALF_LENGTH = 2.3  # [m]
EGO_HALF_WIDTH = 0.95  # [m]
EGO_CENTRE = 1.4  # [m] ahead of base_link
MIN_SPEED_LIMIT = 3.0  # [m/s] keeps the progress cost finite
REFINEMENT = (2.0, 0.4)  # [m] by which s and d of a proposal may be refined at the horizon
SURE_OVERLAP = 1e-3  # below this a formula says nothing
MOST_DOUBT = 2.0  # [nats] by which what is learned may lower the odds of a collision
DISCOUNT_S = 4.0  # later collisions cost less, exp(-t / DISCOUNT_S)
COAST_S = (1.5, 3.5)  # [s] after the horizon at which the robot, coming to a stop, is looked at
STOPPING = 4.0  # [m/s^2] of it
BEHIND = 0.1  # of a collision's cost if somebody would run into the robot from behind
ALONG, SLOW = 0.85, 1.5  # cosine between headings, [m/s]: who is expected to go on as it does
LATERAL_COMFORT, LATERAL_SLACK = 2.2, 0.4  # [m/s^2] sideways that costs nothing, and the excess that costs 1
# Of collision, drivable, comfort, progress, route at first: as `simulation.scoring.Weights`, but for the
# first two, of which only a part is trusted, because what is predicted is never sure.
EXPERT_WEIGHTS = (12.0, 6.0, 0.12, 3.0, 0.6)


class Vocabulary(nn.Module):
    """P manoeuvres: constant acceleration to standstill along s, a cubic towards an offset along d."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        accelerations = torch.tensor(config.plan_accelerations)
        offsets = torch.tensor(config.plan_offsets)
        self.register_buffer(
            "accelerations_P", accelerations.repeat_interleave(len(offsets)), persistent=False
        )
        self.register_buffer("offsets_P", offsets.repeat(len(accelerations)), persistent=False)
        self.register_buffer("times_S", torch.from_numpy(config.times_T).float(), persistent=False)

    def forward(self, ego_state_BE: Tensor) -> Tensor:
        """Proposals from the ego state (columns `EGO_FIELDS`): (B, P, S, 2) [m], s and d."""
        speed = ego_state_BE[:, EGO_FIELDS.index("speed")].clamp(min=0.0)[:, None, None]
        d_now = ego_state_BE[:, EGO_FIELDS.index("lateral_offset")][:, None, None]
        heading = ego_state_BE[:, EGO_FIELDS.index("heading_error")][:, None, None]
        a = self.accelerations_P[None, :, None]
        # Braking ends at standstill; nobody reverses.
        moving_for = torch.where(a < 0, -speed / a.clamp(max=-1e-3), speed.new_full((), 1e3))
        t = torch.minimum(self.times_S[None, None], moving_for)
        s = speed * t + 0.5 * a * t * t
        # Cubic Hermite in time: d(0), d'(0) given, d(T) = target, d'(T) = 0.
        horizon = self.times_S[-1]
        u = (self.times_S / horizon)[None, None]
        slope = speed * heading.sin() * horizon
        # Without forward motion there is no sideways motion: the target fades in over the first 10 m.
        reach = (s[..., -1:] / 10.0).clamp(0.0, 1.0)
        target = d_now + (self.offsets_P[None, :, None] - d_now) * reach
        h_start = 2 * u**3 - 3 * u**2 + 1
        h_slope = u**3 - 2 * u**2 + u
        d = h_start * d_now + h_slope * slope * reach + (1 - h_start) * target
        return torch.stack([s, d.expand_as(s)], -1)


def base_from_route(sd_BPS2: Tensor, route_BR4: Tensor) -> tuple[Tensor, Tensor]:
    """Route coordinates to base-frame points and headings, inside the graph.

    The same interpolation as `core.trajectories.base_from_route_coordinates`, written as a product with hat
    functions: no gather, a gradient in s and d.

    Args:
        sd_BPS2: (B, P, S, 2) [m].
        route_BR4: (B, R, 4) x, y, tangent.
    Returns:
        Points (B, P, S, 2) [m] and unit tangents of the route there (B, P, S, 2).
    """
    b, p, steps = sd_BPS2.shape[:3]
    s, d = sd_BPS2[..., 0], sd_BPS2[..., 1]
    inside = s.clamp(0.0, (ROUTE_POINTS - 1) * ROUTE_SPACING)
    knots = torch.arange(ROUTE_POINTS, device=s.device, dtype=s.dtype)
    hats = (1.0 - (inside[..., None] / ROUTE_SPACING - knots).abs()).clamp(min=0.0)
    at = (hats.reshape(b, p * steps, ROUTE_POINTS) @ route_BR4).reshape(b, p, steps, 4)
    tangent = at[..., 2:] / at[..., 2:].square().sum(-1, keepdim=True).clamp(min=1e-6).sqrt()
    normal = torch.stack([-tangent[..., 1], tangent[..., 0]], -1)
    return at[..., :2] + tangent * (s - inside)[..., None] + normal * d[..., None], tangent


def route_coordinates(points_BN2: Tensor, route_BR4: Tensor) -> Tensor:
    """Soft (s, d) of points with respect to the route, for tokens to know where they are on it.

    A softmax over route points in place of the nearest one, as the soft argmin of Kendall et al. 2017.

    Args:
        points_BN2: (B, N, 2) [m].
        route_BR4: (B, R, 4).
    Returns:
        (B, N, 2) [m].
    """
    offset_BNR2 = points_BN2[:, :, None] - route_BR4[:, None, :, :2]
    weight = (-offset_BNR2.square().sum(-1) / 4.0).clamp(min=-1e4).softmax(-1)
    knots = torch.arange(ROUTE_POINTS, device=weight.device, dtype=weight.dtype) * ROUTE_SPACING
    tangent = route_BR4[:, None, :, 2:]
    along = (offset_BNR2 * tangent).sum(-1)
    across = tangent[..., 0] * offset_BNR2[..., 1] - tangent[..., 1] * offset_BNR2[..., 0]
    return torch.stack([(weight * (knots + along)).sum(-1), (weight * across).sum(-1)], -1)


def collision_probability(
    points_BPS2: Tensor,
    tangents_BPS2: Tensor,
    boxes_BO10: Tensor,
    futures_BOFS2: Tensor,
    variances_BOFS2: Tensor,
) -> Tensor:
    """Soft overlap of the robot on proposals with futures of objects, at each step and half-way to it.

    In the object's own axes both footprints are boxes; the gap between them, in standard deviations, gives
    exp(-gap^2 / 2): one at overlap, falling off with distance the faster the surer the prediction. (Ours, in
    place of the integral of the predicted density over the footprints, Lambert et al. 2008.) The place
    half-way from the step before (from now, at the first) is looked at too, lest somebody small is passed
    through.

    Args:
        points_BPS2, tangents_BPS2: Proposals: `base_link` [m] and heading.
        boxes_BO10: Objects, columns `BOX_FIELDS`.
        futures_BOFS2, variances_BOFS2: Mean [m] and variance [m^2] per axis.
    Returns:
        (B, P, O, F, S) in [0, 1].
    """
    centre = points_BPS2 + EGO_CENTRE * tangents_BPS2
    sine_BO1, cosine_BO1 = boxes_BO10[..., 6:7], boxes_BO10[..., 7:8]

    def in_object_axes(vectors: Tensor, sine: Tensor, cosine: Tensor) -> tuple[Tensor, Tensor]:
        x, y = vectors[..., 0], vectors[..., 1]
        return cosine * x + sine * y, cosine * y - sine * x

    # Robot and future are turned into the object's axes apart, so that only their difference is as large as
    # proposals x objects x futures x steps.
    per_object = (sine_BO1[:, None], cosine_BO1[:, None])
    ego_along, ego_across = in_object_axes(centre[:, :, None], *per_object)  # (B, P, O, S)
    cos_rel, sin_rel = in_object_axes(tangents_BPS2[:, :, None], *per_object)
    cos_rel, sin_rel = cos_rel.abs(), sin_rel.abs()
    per_future = (sine_BO1[..., None], cosine_BO1[..., None])
    its_along, its_across = in_object_axes(futures_BOFS2, *per_future)
    reach_along = (
        0.5 * boxes_BO10[:, None, :, 3:4].exp() + cos_rel * EGO_HALF_LENGTH + sin_rel * EGO_HALF_WIDTH
    )
    reach_across = (
        0.5 * boxes_BO10[:, None, :, 4:5].exp() + sin_rel * EGO_HALF_LENGTH + cos_rel * EGO_HALF_WIDTH
    )
    start_BO12 = centre.new_tensor((EGO_CENTRE, 0.0)) - boxes_BO10[..., None, :2]
    start_along, start_across = in_object_axes(start_BO12, sine_BO1, cosine_BO1)

    def gaps(ego: Tensor, its: Tensor, start_BO1: Tensor, reach: Tensor) -> tuple[Tensor, Tensor]:
        apart = ego[:, :, :, None] - its[:, None]  # (B, P, O, F, S), signed
        first = start_BO1[:, None, :, None].expand(*apart.shape[:4], 1)
        half_way = 0.5 * (torch.cat([first, apart[..., :-1]], -1) + apart)
        reach = reach[:, :, :, None]
        return (apart.abs() - reach).relu().square(), (half_way.abs() - reach).relu().square()

    along, half_along = gaps(ego_along, its_along, start_along, reach_along)
    across, half_across = gaps(ego_across, its_across, start_across, reach_across)
    gap_squared = torch.minimum(along + across, half_along + half_across)
    # Variances come in base axes; their mean is used for both directions. Beyond 2 m of standard deviation a
    # prediction says nothing about a collision, and a floor keeps the cost smooth.
    variance = variances_BOFS2.mean(-1).clamp(0.09, 4.0)[:, None]
    return (gap_squared * (-0.5 / variance)).exp()


def blame(boxes_BO10: Tensor) -> Tensor:
    """What meeting each object counts, (B, O): who comes from behind on the same way minds the robot; ours.

    Args:
        boxes_BO10: Objects, columns `BOX_FIELDS`.
    """
    x, y, cosine = boxes_BO10[..., 0], boxes_BO10[..., 1], boxes_BO10[..., 7]
    behind_BO = (x < 0.0) & (y.abs() < 2.0) & (cosine > 0.88)
    return torch.where(behind_BO, BEHIND, 1.0)


def _rows(of_objects: Tensor, index_BH: Tensor) -> Tensor:
    """Rows (B, H, ...) of (B, O, ...) at indices."""
    index = index_BH.reshape(*index_BH.shape, *[1] * (of_objects.dim() - 2))
    return of_objects.gather(1, index.expand(-1, -1, *of_objects.shape[2:]))


class Planner(nn.Module):
    """Refines and prices the vocabulary by looking at the objects, the BEV and the route."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        d, c, steps = config.token_channels, config.bev_channels, config.horizon_steps
        self.vocabulary = Vocabulary(config)
        grid = config.bev_grid
        self.extent = (grid.x_min, grid.x_max, grid.y_min, grid.y_max)
        self.step_s = config.step_s
        self.num_hazards = min(config.num_hazards, config.num_queries + config.num_memory)
        times = torch.from_numpy(config.times_T).float()
        self.register_buffer("times_S", times, persistent=False)
        # After the horizon the robot comes to a stop; two instants of that are looked at, half as important.
        coast = torch.tensor(COAST_S)
        weights = torch.cat([(-times / DISCOUNT_S).exp(), 0.5 * (-(times[-1] + coast) / DISCOUNT_S).exp()])
        weights[steps:] *= COAST_S[-1] / len(COAST_S) / config.step_s
        self.register_buffer("coast_S", coast, persistent=False)
        self.register_buffer("discount_U", weights / weights[:steps].sum(), persistent=False)
        self.register_buffer("until_UU", torch.ones(len(weights), len(weights)).triu(), persistent=False)
        self.ego = Mlp(len(EGO_FIELDS) + ROUTE_POINTS * 4, d, d)
        self.proposal = Mlp(2 * steps, d, d)
        self.scene = Mlp(c * steps, d, d)
        self.place = Mlp(d + 2 + 4, d, d)
        self.look = Attention(d, config.num_heads)
        self.feed = FeedForward(d)
        # How much each formula counts, learned from what it counts for the expert whose prices are distilled.
        self.trust_K = nn.Parameter(torch.tensor(EXPERT_WEIGHTS).log())
        self.score = Mlp(d + len(weights) + 6, d, 2)
        self.refine = Mlp(d, d, 2 * steps, norm=True)

    def forward(
        self,
        *,
        bev: Tensor,
        drivable: Tensor,
        ego_state: Tensor,
        route: Tensor,
        objects: Tensor,
        boxes: Tensor,
        existence: Tensor,
        modes: Tensor,
        futures: Tensor,
        futures_log_var: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Propose, refine and price.

        Args:
            bev: (B, C, Y, X). drivable: (B, 1, Y, X) logits.
            ego_state: (B, E), columns `EGO_FIELDS`. route: (B, R, 4).
            objects: (B, O, D) tokens. boxes: (B, O, 10). existence: (B, O). modes: (B, O, F).
            futures, futures_log_var: (B, O, F, S, 2).
        Returns:
            Proposals (B, P, S, 2) in (s, d) [m]; costs (B, P, 6), columns `COST_TERMS`; the logits behind
            `imitation` and `collision` (B, P, 2).
        """
        vocabulary = self.vocabulary(ego_state)
        b, p, steps = vocabulary.shape[:3]
        scaled_ego = ego_state * ego_state.new_tensor((0.05, 2.0, 0.3, 0.05, 0.5, 2.0, 1.0))
        scaled_route = (route * route.new_tensor((0.02, 0.02, 1.0, 1.0))).flatten(1)
        ego = self.ego(torch.cat([scaled_ego, scaled_route], -1))
        token = self.proposal((vocabulary * vocabulary.new_tensor((0.03, 0.3))).flatten(2)) + ego[:, None]

        # What lies under each proposal, and who is around, told where they are on the route.
        points, _ = base_from_route(vocabulary, route)
        under = sample_bev(bev, points.reshape(b, p * steps, 2), self.extent).reshape(b, p, -1)
        token = token + self.scene(under)
        end = torch.stack([futures[:, :, :, steps // 2 - 1], futures[:, :, :, -1]], 3)
        expected = (modes[..., None, None] * end).sum(2).flatten(2)  # (B, O, 4): mean position at T/2 and T
        where = torch.cat([route_coordinates(boxes[..., :2], route) / 25.0, expected / 25.0], -1)
        keys = objects + self.place(torch.cat([objects, where], -1))
        token = self.feed(self.look(token, keys, existence.log()))

        # Refinement grows with time, so that a plan starts at the robot.
        fraction = (self.times_S / self.times_S[-1])[:, None]
        offset = self.refine(token).reshape(b, p, steps, 2).tanh() * fraction
        # Proposals that stand still must be able to: s is refined in proportion to what it covers.
        reach = (vocabulary[..., -1:, 0:1] / 10.0).clamp(0.0, 1.0)
        sd = vocabulary + offset * reach * offset.new_tensor(REFINEMENT)

        # Formulas on what was predicted ...
        coasting = torch.cat([sd, self._coast(sd)], 2)
        points, tangents = base_from_route(coasting, route)
        surest_BH = existence.topk(self.num_hazards, dim=1).indices
        hazards = [_rows(x, surest_BH) for x in (boxes, existence, modes, futures, futures_log_var)]
        hits = self._hits(points, tangents, *hazards)
        # ... where from the first hit on everything is lost: one minus the chance to have got through so far
        # (survival, Eggert 2014).
        lost = 1.0 - ((1.0 - hits).log() @ self.until_UU).exp()
        terms = torch.stack(
            [
                (lost * self.discount_U).sum(-1),
                self._off_road(points[:, :, :steps], tangents[:, :, :steps], drivable),
                self._discomfort(sd, tangents[:, :, :steps], ego_state),
                self._lag(sd, ego_state),
                sd[..., 1].abs().mean(-1),
            ],
            -1,
        )
        # ... and what has been learned on top of them. It may warn of what the formula does not see, and
        # lower its odds by e^2 at most: what is surely met cannot be argued away (ours).
        squeezed = torch.cat([terms[..., :1], (terms + SURE_OVERLAP).log() / 3.0], -1)
        logits = self.score(torch.cat([token, squeezed, (hits + SURE_OVERLAP).log() / 3.0], -1))
        goodness = logits[..., 0] - (terms * self.trust_K.exp()).sum(-1)
        met = terms[..., 0].clamp(SURE_OVERLAP, 1.0 - SURE_OVERLAP)
        warned = logits[..., 1] + MOST_DOUBT
        softplus = warned.clamp(min=0.0) + (1.0 + (-warned.abs()).exp()).log()
        risk = met.log() - (1.0 - met).log() + softplus - MOST_DOUBT
        imitation = -goodness.log_softmax(-1)
        costs = torch.cat([imitation[..., None], risk.sigmoid()[..., None], terms[..., 1:]], -1)
        return sd, costs, torch.stack([goodness, risk], -1)

    def _coast(self, sd_BPS2: Tensor) -> Tensor:
        """Where each proposal is while the robot stops after the horizon: (B, P, U - S, 2) [m]; ours."""
        speed = (sd_BPS2[:, :, -1:, 0] - sd_BPS2[:, :, -2:-1, 0]).relu() / self.step_s
        t = torch.minimum(self.coast_S, speed / STOPPING)
        s = sd_BPS2[:, :, -1:, 0] + speed * t - 0.5 * STOPPING * t * t
        return torch.stack([s, sd_BPS2[:, :, -1:, 1].expand_as(s)], -1)

    def _hits(
        self,
        points_BPU2: Tensor,
        tangents_BPU2: Tensor,
        boxes_BO10: Tensor,
        existence_BO: Tensor,
        modes_BOF: Tensor,
        futures_BOFS2: Tensor,
        log_var_BOFS2: Tensor,
    ) -> Tensor:
        """Chance of meeting anybody at each instant, (B, P, U): horizon, then coming to a stop.

        Summed over objects and futures, which bounds the chance of their union from above (Boole); that who
        comes from behind counts less is ours.
        """
        # After the horizon everybody goes on as at its end.
        last = futures_BOFS2[:, :, :, -1:]
        onward = (last - futures_BOFS2[:, :, :, -2:-1]) / self.step_s
        onwards = last + onward * self.coast_S[:, None]
        futures = torch.cat([futures_BOFS2, onwards], 3)
        widest = log_var_BOFS2[:, :, :, -1:].expand(-1, -1, -1, len(self.coast_S), -1)
        variances = torch.cat([log_var_BOFS2, widest], 3).exp()
        overlap = collision_probability(points_BPU2, tangents_BPU2, boxes_BO10, futures, variances)
        # That says something of those who stand or drive along; where others go by then, nobody knows.
        along_BPO = tangents_BPU2[:, :, -1] @ boxes_BO10[..., 6:8].flip(-1).transpose(1, 2) > ALONG
        slow_BOF = onward[..., 0, :].square().sum(-1) < SLOW**2
        known = (along_BPO[..., None] | slow_BOF[:, None])[..., None]
        steps = futures_BOFS2.shape[3]
        later = torch.where(known, overlap[..., steps:], overlap.new_zeros(()))
        overlap = torch.cat([overlap[..., :steps], later], -1)
        weight_BO = existence_BO * blame(boxes_BO10)
        weight_BOF = weight_BO[..., None] * modes_BOF
        b, p, o, f, u = overlap.shape
        met = weight_BOF.reshape(b, 1, 1, o * f) @ overlap.reshape(b, p, o * f, u)
        return met[:, :, 0].clamp(max=0.995)

    def _off_road(self, points_BPS2: Tensor, tangents_BPS2: Tensor, drivable_B1YX: Tensor) -> Tensor:
        """Share of instants at which a corner of the robot is off the drivable area; (B, P). Ours."""
        b, p, steps = points_BPS2.shape[:3]
        normals = torch.stack([-tangents_BPS2[..., 1], tangents_BPS2[..., 0]], -1)
        corners = torch.stack(
            [
                points_BPS2 + along * tangents_BPS2 + across * normals
                for along in (EGO_CENTRE - EGO_HALF_LENGTH, EGO_CENTRE + EGO_HALF_LENGTH)
                for across in (-EGO_HALF_WIDTH, EGO_HALF_WIDTH)
            ],
            3,
        )
        sampled = sample_bev(drivable_B1YX, corners.reshape(b, p * steps * 4, 2), self.extent)
        off = (-sampled.reshape(b, p, steps, 4)).sigmoid()
        # The grid ends somewhere; beyond it nothing is known and nothing is charged.
        x_min, x_max, y_min, y_max = self.extent
        seen = (
            (corners[..., 0] > x_min)
            & (corners[..., 0] < x_max)
            & (corners[..., 1] > y_min)
            & (corners[..., 1] < y_max)
        )
        return torch.where(seen, off, off.new_zeros(())).amax(-1).mean(-1)

    def _discomfort(self, sd_BPS2: Tensor, tangents_BPS2: Tensor, ego_state_BE: Tensor) -> Tensor:
        """As the expert feels it: acceleration, jerk, and what a bend asks for beyond comfort; (B, P).

        Mean squares as in Werling et al. 2010; scales and the slack in bends are ours (`simulation.scoring`).
        Beyond the expert, the first step's acceleration and jerk count, of which it knows nothing.
        """
        speed = ego_state_BE[:, EGO_FIELDS.index("speed")]
        heading = ego_state_BE[:, EGO_FIELDS.index("heading_error")]
        offset = ego_state_BE[:, EGO_FIELDS.index("lateral_offset")]
        zero = torch.zeros_like(speed)
        start = torch.stack([zero, offset], -1)[:, None, None].expand(-1, sd_BPS2.shape[1], 1, 2)
        first = torch.stack([speed * heading.cos(), speed * heading.sin()], -1)
        first = first[:, None, None].expand(-1, sd_BPS2.shape[1], 1, 2)
        path = torch.cat([start, sd_BPS2], 2)
        velocity = torch.cat([first, (path[:, :, 1:] - path[:, :, :-1]) / self.step_s], 2)
        acceleration = (velocity[:, :, 1:] - velocity[:, :, :-1]) / self.step_s
        jerk = (acceleration[:, :, 1:] - acceleration[:, :, :-1]) / self.step_s
        before, after = tangents_BPS2[:, :, :-1], tangents_BPS2[:, :, 1:]
        turn = (before[..., 0] * after[..., 1] - before[..., 1] * after[..., 0]).abs()
        sideways = turn * velocity[:, :, 2:, 0] / self.step_s
        return (
            (acceleration / 2.0).square().mean((2, 3))
            + 0.3 * (jerk / 2.0).square().mean((2, 3))
            + ((sideways - LATERAL_COMFORT).relu() / LATERAL_SLACK).square().mean(2)
        )

    def _lag(self, sd_BPS2: Tensor, ego_state_BE: Tensor) -> Tensor:
        """Share of the distance at the speed limit that a proposal misses or exceeds it by; ours. (B, P)."""
        limit = ego_state_BE[:, EGO_FIELDS.index("speed_limit")].clamp(min=MIN_SPEED_LIMIT)
        wanted = (limit * self.times_S[-1])[:, None]
        return (wanted - sd_BPS2[:, :, -1, 0]).abs() / wanted
