"""What the policy chooses <-> robot actions, numpy only. Every transform sits beside its inverse.

A token here is an index 0..V-1 into the action bins, ascending in vocabulary id. The published
numbering runs backwards: the highest id is the lowest action. There are V bin edges on [-1, 1]
but V - 1 centres, so the two lowest ids decode alike.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from agent.process.shown import shown

EPSILON = 1e-8  # of OpenVLA-OFT; the causal OpenVLA has none
BOUND_NAMES = {"q99": ("q01", "q99"), "minmax": ("min", "max")}
LARGEST = float(np.finfo(np.float32).max)  # of a bound: actions travel as float32
FAR_STATE = 3.0
"""A robot's state is far outside when it lies a whole width beyond a bound: half of that is noise,
ten times that is another unit, another order of joints, or another robot."""
FAR_ACTION = 10.0
"""No published policy answers with so many half widths; one that does has come apart."""


def bin_centres(n_bins: int) -> np.ndarray:
    """Centres between the `n_bins` edges of linspace(-1, 1), float64 (n_bins - 1,)."""
    edges = np.linspace(-1.0, 1.0, n_bins)
    return (edges[:-1] + edges[1:]) / 2.0


def encode_actions(actions: np.ndarray, n_bins: int) -> np.ndarray:
    """Normalised actions (any shape, clipped to [-1, 1]) to tokens int64 0..n_bins-1.

    Raises:
        ValueError: NaN or infinity, which would become the lowest or highest action unseen.
    """
    if not np.isfinite(actions).all():
        raise ValueError("actions: expected finite numbers, got NaN or infinity")
    edges = np.linspace(-1.0, 1.0, n_bins)
    return n_bins - np.digitize(np.clip(actions, -1.0, 1.0), edges)


def decode_tokens(tokens: np.ndarray, n_bins: int) -> np.ndarray:
    """Tokens 0..n_bins-1 to normalised actions in (-1, 1), float64."""
    return bin_centres(n_bins)[np.clip(n_bins - 1 - np.asarray(tokens), 0, n_bins - 2)]


@dataclass(frozen=True)
class NormBounds:
    """What maps to [-1, 1], per dimension; unmasked dimensions pass unchanged.

    A dimension without width never moved in the data: it normalises to 0, as in the published
    training, and un-normalises to its one value.

    low, high, mask: (D,) in dataset units.

    Raises:
        ValueError: bounds that are not finite, swapped, or without width in every dimension.
    """

    low: np.ndarray
    high: np.ndarray
    mask: np.ndarray
    epsilon: float = EPSILON

    def __post_init__(self) -> None:
        if not self.low.shape == self.high.shape == self.mask.shape or self.low.ndim != 1:
            raise ValueError(
                f"low, high and mask must be vectors of one length, got {self.low.shape}, "
                f"{self.high.shape}, {self.mask.shape}"
            )
        for name, bound in (("low", self.low), ("high", self.high)):
            if wrong := np.flatnonzero(~(np.abs(bound) <= LARGEST)).tolist():
                raise ValueError(
                    f"low and high must be finite and fit float32; {name} is {bound[wrong[0]]} in "
                    f"dimension {wrong[0]}"
                )
        if swapped := np.flatnonzero(self.mask & (self.low > self.high)).tolist():
            first = swapped[0]
            raise ValueError(
                f"low must not exceed high: swapped in dimensions {swapped}, {self.low[first]:g} "
                f"to {self.high[first]:g}"
            )
        if self.mask.any() and self._is_flat[self.mask].all():
            raise ValueError("low equals high in every dimension: the data never moved")

    @classmethod
    def from_stats(
        cls,
        norm_stats: dict[str, Any],
        unnorm_key: str,
        modality: str = "action",
        kind: str = "q99",
        epsilon: float = EPSILON,
    ) -> "NormBounds":
        """Statistics of one dataset; `unnorm_key` falls back to `{unnorm_key}_no_noops`.

        Args:
            kind: q99 (1% and 99% quantiles) or minmax.

        Raises:
            KeyError: unknown key, modality or statistic; the message lists what there is.
        """
        for key in (unnorm_key, f"{unnorm_key}_no_noops"):
            if key in norm_stats:
                break
        else:
            raise KeyError(f"unnorm_key {unnorm_key!r} is not in {sorted(norm_stats)}")
        stats = norm_stats[key].get(modality)
        if stats is None:
            raise KeyError(f"norm_stats[{key!r}] lacks {modality!r}: {sorted(norm_stats[key])}")
        names = BOUND_NAMES[kind]
        if not all(name in stats for name in names):
            raise KeyError(f"norm_stats[{key!r}][{modality!r}] lacks {names}: {sorted(stats)}")
        low, high = (_numbers(stats[name], name) for name in names)
        mask = _numbers(stats["mask"], "mask") if "mask" in stats else np.ones(low.shape)
        if not np.isin(mask, (0, 1)).all():
            raise ValueError(f"mask must hold true and false, got {mask.tolist()}")
        return cls(low, high, mask.astype(bool), epsilon)

    @property
    def _is_flat(self) -> np.ndarray:
        """(D,) where there is no width to speak of."""
        return self.high - self.low < EPSILON

    def normalise(self, values: np.ndarray) -> np.ndarray:
        """(..., D) in dataset units to [-1, 1] between the bounds, not clipped."""
        span = np.where(self._is_flat, 1.0, self.high - self.low + self.epsilon)
        scaled = np.where(self._is_flat, 0.0, 2.0 * (values - self.low) / span - 1.0)
        return np.where(self.mask, scaled, values)

    def unnormalise(self, values: np.ndarray) -> np.ndarray:
        """Inverse of `normalise`: (..., D) in [-1, 1] to dataset units."""
        span = self.high - self.low + self.epsilon
        return np.where(self.mask, 0.5 * (values + 1.0) * span + self.low, values)

    def far_outside(self, normalised: np.ndarray, limit: float) -> np.ndarray:
        """Which dimensions (D,) of normalised values (..., D) lie beyond +-limit anywhere."""
        beyond = np.abs(normalised) > limit
        return self.mask & beyond.reshape(-1, len(self.mask)).any(axis=0)


def _numbers(values: Any, name: str) -> np.ndarray:
    """A vector of statistics, float64. Raises ValueError for what only looks like numbers."""
    array = np.asarray(values)
    if array.ndim != 1 or array.dtype.kind not in ("biuf" if name == "mask" else "iuf"):
        raise ValueError(f"{name} must be a list of numbers, got {shown(values, 60)}")
    return array.astype(np.float64)


def normalise_proprio(proprio: np.ndarray, bounds: NormBounds) -> np.ndarray:
    """(..., P) robot state in dataset units to float32, clipped to [-1, 1]."""
    return np.clip(bounds.normalise(proprio), -1.0, 1.0).astype(np.float32)


def gripper_to_env(gripper: np.ndarray, convention: str) -> np.ndarray:
    """Dataset gripper (1 open .. 0 closed) to the robot's command.

    libero: -1 open, +1 close. simpler: +1 open, -1 close. continuous: as it is.
    """
    if convention == "continuous":
        return np.asarray(gripper)
    opened = np.sign(2.0 * np.asarray(gripper) - 1.0)
    return opened if convention == "simpler" else -opened


def gripper_to_dataset(command: np.ndarray, convention: str) -> np.ndarray:
    """Inverse of `gripper_to_env` for the commands -1 and +1 (continuous: for any)."""
    if convention == "continuous":
        return np.asarray(command)
    opened = np.asarray(command) if convention == "simpler" else -np.asarray(command)
    return (1.0 + opened) / 2.0


@dataclass(frozen=True)
class ActionCodec:
    """Between the policy's choices and the robot's actions (..., A); the gripper comes last.

    The policy decodes the gripper in [-1, 1] where the dataset has 0..1: like the reference,
    unmasked dimensions are read as they are.
    """

    bounds: NormBounds
    n_bins: int
    gripper: str

    def to_env(self, choices: np.ndarray) -> np.ndarray:
        """Choices to environment actions, float64: integers are tokens, floats normalised."""
        is_token = np.issubdtype(choices.dtype, np.integer)
        normalised = decode_tokens(choices, self.n_bins) if is_token else choices
        actions = self.bounds.unnormalise(np.asarray(normalised, dtype=np.float64))
        actions[..., -1] = gripper_to_env(actions[..., -1], self.gripper)
        return actions

    def to_normalised(self, actions: np.ndarray) -> np.ndarray:
        """Inverse of `to_env` for normalised choices; a binarised gripper comes back as 0 or 1."""
        dataset = np.array(actions, dtype=np.float64)
        dataset[..., -1] = gripper_to_dataset(dataset[..., -1], self.gripper)
        return self.bounds.normalise(dataset)

    def to_tokens(self, actions: np.ndarray) -> np.ndarray:
        """Inverse of `to_env` for tokens, up to bin width: int64."""
        return encode_actions(self.to_normalised(actions), self.n_bins)
