"""Checks of options that several policies have: the value given, and what is allowed."""


def check_number(option: str, value: object, low: float, *, optional: bool = False) -> None:
    """Raises ValueError unless ``value`` is a number in [low, 1], or None where that is optional."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (value is None and optional) and not (number and low <= value <= 1):  # nan compares false
        raise ValueError(f"{option} is a number in [{low}, 1]{' or None' * optional}; got {value!r}")


def check_index(option: str, value: object, *, optional: bool = False) -> None:
    """Raises ValueError unless ``value`` is an integer of 1 or more, or None where that is optional."""
    if not (value is None and optional) and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise ValueError(f"{option} is an integer of 1 or more{' or None' * optional}; got {value!r}")


def check_tau(tau: object) -> None:
    """Raises ValueError unless ``tau`` is a share of a sum, a number in (0, 1]."""
    number = isinstance(tau, (int, float)) and not isinstance(tau, bool)
    if not number or not 0 < tau <= 1:  # nan compares false
        raise ValueError(
            f"tau is the share of all attention or scores that the kept tokens hold, in (0, 1]; got {tau!r}"
        )
