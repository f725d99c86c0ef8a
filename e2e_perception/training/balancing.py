"""How objectives pull at the parameters that they share: by weights, or by aggregating their gradients.

`fixed` takes the losses as they come, mission weights included. `uncertainty` and `gradnorm` learn a weight
for each objective. `upgrad`, `pcgrad` and `mgda` weigh the gradients, which are the rows of a Jacobian;
torchjd derives the weights from its Gramian. The rows come from `torch.autograd.grad` and not from
`torchjd.autojac`, because that also says which parameters an objective does not depend on.

Legend: M objectives of a step, P values of one parameter.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations, compress

import numpy as np
import torch
from torch import Tensor, nn
from torchjd.aggregation import MGDAWeighting, PCGradWeighting, UPGradWeighting

from e2e_perception.core.errors import ConfigError, InputError, TrainingError

METHODS = ("fixed", "uncertainty", "gradnorm", "upgrad", "pcgrad", "mgda")
LARGEST_LOG_VARIANCE = 5.0  # of uncertainty weighting: weights stay between e^-5 and e^5
LEAST_RATE = 1e-3  # of GradNorm, whose rates are ratios of positive losses

# By objective and parameter; None where the objective does not depend on the parameter.
_Rows = Sequence[Sequence[Tensor | None]]


@dataclass(frozen=True)
class Conflicts:
    """Gradients of objectives, compared at parameters that they share.

    Attributes:
        gradient_norms: By objective; 0 for one that does not reach these parameters.
        cosines: By pair, `recognition~planning`, in the order of the losses; below 0 they conflict. Pairs
            with an objective that has no gradient, or none that is finite, are left out.
    """

    gradient_norms: dict[str, float]
    cosines: dict[str, float]


@dataclass(frozen=True)
class BalanceReport:
    """What a balancing did.

    Attributes:
        weights: By objective: of its loss, or of its gradient at the shared parameters.
        gradient_norms, cosines: See `Conflicts`; empty where the method does not measure them. Before
            anything is weighed; for `gradnorm` at its module, for aggregation at all shared parameters.
    """

    weights: dict[str, float]
    gradient_norms: dict[str, float] = field(default_factory=dict)
    cosines: dict[str, float] = field(default_factory=dict)


class Balancer(nn.Module):
    """Balances the objectives of a run.

    Its parameters, if the method has any, are learned by the run's optimiser, without weight decay. With its
    state a resumed run goes on as it would have. A step may lack some of the objectives; what is known of
    them is kept.
    """

    log_variances: nn.Parameter  # of `uncertainty`, by objective
    log_weights: nn.Parameter  # of `gradnorm`, by objective
    first_losses: Tensor  # of `gradnorm`, by objective; not positive: to be taken yet

    def __init__(
        self,
        method: str,
        *,
        objectives: Sequence[str],
        seed: int = 0,
        alpha: float = 1.5,
        shared: str = "encoder.from_coarse",
    ) -> None:
        """Begin.

        Args:
            method: One of `METHODS`.
            objectives: Names of all objectives; what is learned is stored in their order.
            seed: Of the random orders of `pcgrad`.
            alpha: Of `gradnorm`: how strongly objectives that learn slowly are favoured.
            shared: Of `gradnorm`: the module at whose parameters gradients are compared, the last one before
                the objectives part.
        Raises:
            ConfigError: If there is no such method.
        """
        super().__init__()
        if method not in METHODS:
            raise ConfigError(f"unknown balancing method {method!r}; expected one of {', '.join(METHODS)}")
        self.method, self.objectives = method, tuple(objectives)
        self.seed, self.alpha, self.shared = seed, alpha, shared
        if method == "uncertainty":
            self.log_variances = nn.Parameter(torch.zeros(len(self.objectives)))
        if method == "gradnorm":
            self.log_weights = nn.Parameter(torch.zeros(len(self.objectives)))
            self.register_buffer("first_losses", torch.zeros(len(self.objectives)))

    def backward(
        self, losses: Mapping[str, Tensor], model: nn.Module, *, step: int, scale: float = 1.0
    ) -> BalanceReport:
        """Add balanced gradients to `.grad` of the model's parameters, and to those of this module's own.

        A parameter that no loss depends on is left alone; its `.grad` stays None. The graph is used up.

        Args:
            losses: Scalars by objective, mission weights included.
            model: The network.
            step: Of the run; with the seed it decides what is random.
            scale: Factor on all gradients that are written, for half precision (`GradScaler`). It must not be
                in the losses already, for balance depends on their values; the report is without it.
        Raises:
            ConfigError: If the model has no module of the name `shared` (`gradnorm`).
            InputError: If there are no losses, one has an unknown objective, or none depends on a parameter.
            TrainingError: If a loss is not finite. Nothing has been written then.
        """
        self._check(losses)
        if self.method == "fixed":
            _descend(losses, [1.0] * len(losses), scale)
            return BalanceReport(dict.fromkeys(losses, 1.0))
        if self.method == "uncertainty":
            return self._by_uncertainty(losses, scale)
        if self.method == "gradnorm":
            return self._by_gradient_norm(losses, model, scale)
        return self._by_aggregation(losses, model, step, scale)

    def _check(self, losses: Mapping[str, Tensor]) -> None:
        unknown = sorted(set(losses) - set(self.objectives))
        if unknown or not losses:
            got = f"unknown objectives {', '.join(unknown)}" if unknown else "no objective to balance"
            raise InputError(f"{got}; expected some of {', '.join(self.objectives)}")
        if not any(loss.requires_grad for loss in losses.values()):
            names = ", ".join(losses)
            raise InputError(f"no parameter influences {names}; compute them with gradients enabled")
        values = zip(losses, _values(losses).tolist(), strict=True)
        bad = [f"{name} is {value}" for name, value in values if not math.isfinite(value)]
        if bad:
            raise TrainingError(
                f"a loss is not finite: {', '.join(bad)}; no gradient has been written; go back to the last "
                "checkpoint, or look at the losses of that objective"
            )

    def _places(self, losses: Iterable[str]) -> list[int]:
        return [self.objectives.index(name) for name in losses]

    # ---------------------------------------------------------------- weights of losses

    def _by_uncertainty(self, losses: Mapping[str, Tensor], scale: float) -> BalanceReport:
        """Uncertainty weighting (Kendall, Gal & Cipolla 2018): sum of exp(-s) L + s, with s = log sigma^2.

        That is twice their regression form, so that it starts from the plain sum; its optimum s = log L is
        the same. For a loss of 0 or less, which a likelihood can give, there is none; s stays within bounds.
        """
        with torch.no_grad():  # not by a clamp in the graph: beyond it no gradient would bring s back
            self.log_variances.clamp_(-LARGEST_LOG_VARIANCE, LARGEST_LOG_VARIANCE)
        s_M = self.log_variances[self._places(losses)]
        weights_M = (-s_M).exp()
        (scale * (weights_M * torch.stack(list(losses.values())) + s_M).sum()).backward()
        return BalanceReport(dict(zip(losses, weights_M.tolist(), strict=True)))

    def _by_gradient_norm(
        self, losses: Mapping[str, Tensor], model: nn.Module, scale: float
    ) -> BalanceReport:
        """GradNorm (Chen et al. 2018): weighted gradients are to have norms of mean * relative rate^alpha.

        It deviates in how weights are kept: as a softmax times the number of objectives. So they stay
        positive, and their sum needs no renormalisation, whoever takes part. An objective without a gradient
        at the shared module has no norm to adapt: it does not take part, and its weight is 1.
        """
        gramian_MM = _gramian(_rows(losses, self._shared_parameters(model), scale, keep_graph=True), scale)
        norms_M = gramian_MM.diagonal().sqrt().to(self.log_weights)
        takes_part_M = (norms_M > 0.0) & norms_M.isfinite()
        places_M = torch.tensor(self._places(losses), device=norms_M.device)
        rates_M = self._rates(places_M, _values(losses))

        weights_M = torch.ones_like(norms_M)
        if takes_part_M.any():
            rates, norms = rates_M[takes_part_M], norms_M[takes_part_M]
            weights = len(norms) * self.log_weights[places_M[takes_part_M]].softmax(0)
            weights_M[takes_part_M] = weights.detach()
            # Relative to the mean, so that this gradient does not depend on the losses' units.
            relative = weights * norms / (weights.detach() * norms).mean()
            (scale * (relative - (rates / rates.mean()) ** self.alpha).abs().sum()).backward()
        _descend(losses, weights_M.tolist(), scale)
        return _report(losses, weights_M, gramian_MM)

    def _rates(self, places_M: Tensor, values_M: Tensor) -> Tensor:
        """Losses relative to what they were when first seen (M,), the inverse of how fast they are learned.

        A loss that has not been positive yet has no such ratio and counts as 1, not learned at all.
        """
        first_M = self.first_losses[places_M]
        first_M = torch.where(first_M > 0.0, first_M, values_M.to(first_M))
        self.first_losses[places_M] = first_M
        return torch.where(first_M > 0.0, values_M / first_M, torch.ones_like(first_M)).clamp(min=LEAST_RATE)

    def _shared_parameters(self, model: nn.Module) -> list[nn.Parameter]:
        try:
            return _trainable(model.get_submodule(self.shared).parameters())
        except AttributeError as error:
            names = ", ".join(name for name, _ in model.named_children())
            raise ConfigError(
                f"no shared module {self.shared!r} in {type(model).__name__}, which has {names}; name one "
                "that all objectives go through"
            ) from error

    # ---------------------------------------------------------------- aggregation of gradients

    def _by_aggregation(
        self, losses: Mapping[str, Tensor], model: nn.Module, step: int, scale: float
    ) -> BalanceReport:
        """Weigh gradients at the parameters that two or more objectives depend on; sum them at all others.

        The split is Sener & Koltun's (2018, algorithm 2): where an objective is alone, nothing conflicts with
        it. One without a gradient at the shared parameters asks for nothing there and takes no part: a row of
        zeros would be the point of least norm, and MGDA would stop.
        """
        parameters = _trainable(model.parameters())
        rows = _rows(losses, parameters, scale, keep_graph=False)
        shared = [sum(gradient is not None for gradient in column) > 1 for column in zip(*rows, strict=True)]
        gramian_MM = _gramian([list(compress(row, shared)) for row in rows], scale)
        weights_M = torch.ones(len(losses), dtype=gramian_MM.dtype)
        takes_part_M = gramian_MM.diagonal() > 0.0
        # A gradient that is not finite cannot be weighed. The sum is not finite either, and that is what the
        # scaler of half precision looks for.
        if gramian_MM.isfinite().all() and takes_part_M.any():
            weights_M[takes_part_M] = self._row_weights(gramian_MM[takes_part_M][:, takes_part_M], step)
        weights, ones = weights_M.tolist(), [1.0] * len(losses)
        for parameter, is_shared, column in zip(parameters, shared, zip(*rows, strict=True), strict=True):
            _accumulate(parameter, column, weights if is_shared else ones)
        return _report(losses, weights_M, gramian_MM)

    def _row_weights(self, gramian_MM: Tensor, step: int) -> Tensor:
        """Weights (M,) of the rows of a Jacobian, none of which is 0, from its Gramian."""
        if self.method == "mgda":  # the point of least norm in their convex hull
            return MGDAWeighting()(gramian_MM)
        if self.method == "pcgrad":
            seed = int(np.random.SeedSequence((self.seed, step)).generate_state(1)[0])
            with torch.random.fork_rng(devices=[]):  # torchjd draws from the process's generator
                torch.default_generator.manual_seed(seed)
                return PCGradWeighting()(gramian_MM)
        # UPGrad, whose preferences are 1: where nothing conflicts it is the plain sum. The dual cone does not
        # depend on the lengths of rows, so that unit rows can stand in for them. torchjd regularises the
        # Gramian by a share of its trace, in which a hundred times smaller gradient would drown.
        norms_M = gramian_MM.diagonal().sqrt()
        return UPGradWeighting(norms_M)(gramian_MM / torch.outer(norms_M, norms_M)) / norms_M


def measure_conflicts(losses: Mapping[str, Tensor], parameters: Iterable[nn.Parameter]) -> Conflicts:
    """Compare the gradients of objectives at shared parameters; keeps the graph and writes no `.grad`.

    Args:
        losses: Scalars by objective.
        parameters: Where; the nearer to the losses, the cheaper.
    Raises:
        InputError: If none of the parameters is trainable.
    """
    rows = _rows(losses, _trainable(parameters), 1.0, keep_graph=True)
    return _conflicts(list(losses), _gramian(rows, 1.0))


# -------------------------------------------------------------------- losses and their Jacobian


def _trainable(parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
    return [parameter for parameter in parameters if parameter.requires_grad]


def _values(losses: Mapping[str, Tensor]) -> Tensor:
    """The losses without their graph (M,)."""
    return torch.stack([loss.detach() for loss in losses.values()])


def _descend(losses: Mapping[str, Tensor], weights: Sequence[float], scale: float) -> None:
    """One backward pass of a weighted sum."""
    weighted = [weight * loss for weight, loss in zip(weights, losses.values(), strict=True)]
    (scale * torch.stack(weighted).sum()).backward()


def _rows(
    losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], scale: float, *, keep_graph: bool
) -> _Rows:
    """Scaled gradients of each loss.

    Raises:
        InputError: If there is no parameter.
    """
    if not parameters:
        raise InputError("no trainable parameter to compare gradients at; unfreeze some, or name others")
    rows: list[Sequence[Tensor | None]] = []
    for number, loss in enumerate(losses.values(), start=1):
        if loss.requires_grad:
            keep = keep_graph or number < len(losses)
            rows.append(torch.autograd.grad(scale * loss, parameters, retain_graph=keep, allow_unused=True))
        else:
            rows.append([None] * len(parameters))
    return rows


def _gramian(rows: _Rows, scale: float) -> Tensor:
    """Inner products of rows (M, M) float64 on the CPU, without the scale."""
    products = []
    for column in zip(*rows, strict=True):  # one parameter at a time: the Jacobian is not copied as a whole
        some = next((gradient for gradient in column if gradient is not None), None)
        if some is not None:
            zeros = torch.zeros_like(some)
            rows_MP = torch.stack([zeros if gradient is None else gradient for gradient in column]).flatten(1)
            products.append((rows_MP @ rows_MP.T).double())
    if not products:
        return torch.zeros(len(rows), len(rows), dtype=torch.float64)
    return torch.stack(products).sum(0).cpu() / scale**2


def _conflicts(names: Sequence[str], gramian_MM: Tensor) -> Conflicts:
    norms = gramian_MM.diagonal().sqrt().tolist()
    cosines = {
        f"{names[i]}~{names[j]}": float(gramian_MM[i, j]) / (norms[i] * norms[j])
        for i, j in combinations(range(len(names)), 2)
        if 0.0 < norms[i] < math.inf and 0.0 < norms[j] < math.inf
    }
    return Conflicts(dict(zip(names, norms, strict=True)), cosines)


def _report(losses: Iterable[str], weights_M: Tensor, gramian_MM: Tensor) -> BalanceReport:
    names = list(losses)
    conflicts = _conflicts(names, gramian_MM)
    weights = dict(zip(names, weights_M.tolist(), strict=True))
    return BalanceReport(weights, conflicts.gradient_norms, conflicts.cosines)


def _accumulate(parameter: nn.Parameter, column: Sequence[Tensor | None], weights: Sequence[float]) -> None:
    """Add a weighted sum of gradients to `.grad`; without any it is left alone."""
    if all(gradient is None for gradient in column):
        return
    if parameter.grad is None:
        parameter.grad = torch.zeros_like(parameter)  # one of its own: those of autograd may share memory
    for gradient, weight in zip(column, weights, strict=True):
        if gradient is not None:
            parameter.grad.add_(gradient, alpha=weight)
