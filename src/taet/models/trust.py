"""Consent to run the code of a model that a file names, package.module:callable."""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path

from taet.errors import UserError

_trusted: ContextVar[frozenset[str]] = ContextVar("trusted", default=frozenset())


def is_own(name: str) -> bool:
    """Whether `name` is a custom model, package.module:callable."""
    return ":" in name and not name.startswith(("torchvision:", "timm:"))


@contextlib.contextmanager
def trusted(*names: str | None) -> Iterator[None]:
    """Let files name the models `names`, package.module:callable: their code is imported and run.
    None is ignored.

    Example:
        >>> import taet
        >>> with taet.models.trusted("my_networks:small"):
        ...     network = taet.load("runs/mine")  # doctest: +SKIP
    """
    before = _trusted.set(frozenset(filter(None, names)))
    try:
        yield
    finally:
        _trusted.reset(before)


def consent(name: str) -> list[str]:
    """Return the options with which a command may open a run whose model is `name`."""
    return ["--trust-model", name] if is_own(name) else []


def check_consent(where: str, name: str) -> None:
    """Refuse the model that a file names if it is custom code that was not named to `trusted` as
    well."""
    if is_own(name) and name not in _trusted.get():
        allowed = f"with --trust-model {name}, which imports and runs it"
        raise UserError(
            f"{where}: got the model '{name}', which is code outside this package; allowed: "
            f"{allowed}"
        )


def check_trust(folder: Path, name: str) -> None:
    """Refuse the model of the run in `folder` without consent, or if its code would be imported
    from the folder."""
    check_consent(str(folder), name)
    here, package = Path.cwd(), name.partition(":")[0].partition(".")[0]
    places = (here, here / package, here / f"{package}.py")
    if is_own(name) and any(place.resolve().is_relative_to(folder.resolve()) for place in places):
        never = "opening a run never runs code that may have come with it"
        allowed = "a module elsewhere, and another current directory"
        raise UserError(
            f"model '{name}' is looked for in {folder}, and {never}; allowed: {allowed}"
        )
