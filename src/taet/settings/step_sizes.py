"""Step sizes of PGD: in proportion to the radius of a ball, and whether they reach it."""

from taet.settings.schema import Evaluation, Run


def step_size_for(radius: float, step_size: float, meant_for: float) -> float:
    """Return a step size in proportion to the radius, so that as many steps cross the ball.

    `meant_for`: the radius that `step_size` was chosen for. Where one of them is 0, it stays.
    """
    if meant_for == radius or 0 in (meant_for, radius):
        return step_size
    return step_size * radius / meant_for


def step_sizes_for(
    eps: float, eps_l2: float, settings: Evaluation, settings_eps: float, protocol: Run
) -> dict[str, float]:
    """Return both step sizes of an evaluation, by their names in the settings, for other radii.

    The default step size of the `protocol` is meant for its radius, any other for the radius of the
    settings, in the L-infinity ball `settings_eps`.
    """
    default = protocol.evaluation
    meant_for, meant_for_l2 = settings_eps, settings.eps_l2
    if settings.step_size == default.step_size:
        meant_for = protocol.threat.eps
    if settings.step_size_l2 == default.step_size_l2:
        meant_for_l2 = default.eps_l2
    return {
        "step_size": step_size_for(eps, settings.step_size, meant_for),
        "step_size_l2": step_size_for(eps_l2, settings.step_size_l2, meant_for_l2),
    }


def reaches(radius: float, steps: int, step_size: float) -> bool:
    """Return whether the steps add up to the radius, but for rounding."""
    return steps * step_size >= radius * (1 - 1e-9)
