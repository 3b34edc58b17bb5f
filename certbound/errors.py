"""Exceptions that teach: which argument, what came, what is needed, how to fix it."""

from __future__ import annotations


class CertboundError(Exception):
    """Base of every exception that certbound raises on purpose."""


class InputError(CertboundError, ValueError):
    """An argument that cannot be used.

    >>> raise InputError("delta", got="-1", needed="a finite number >= 0", fix="pass a radius")
    Traceback (most recent call last):
        ...
    certbound.errors.InputError: delta: got -1; needed a finite number >= 0. Fix: pass a radius.
    """

    def __init__(self, argument: str, *, got: str, needed: str, fix: str) -> None:
        self.argument = argument
        self.got = got
        self.needed = needed
        self.fix = fix
        super().__init__(f"{argument}: got {got}; needed {needed}. Fix: {fix}.")

    def __reduce__(self) -> tuple[object, ...]:
        # The default pickles args (one joined string), which __init__ does not take;
        # worker processes must be able to send these errors home.
        return (_rebuild_input_error, (type(self), self.argument, self.got, self.needed, self.fix))


def _rebuild_input_error(cls: type[InputError], argument: str, got: str, needed: str, fix: str) -> InputError:
    return cls(argument, got=got, needed=needed, fix=fix)


class UnsupportedLayerError(InputError):
    """A module holds a layer or an operation that certbound does not model."""


class ClaimMismatchError(CertboundError, TypeError):
    """Bounds on different claims were compared, or maps that do not chain were composed."""


class MissingDependencyError(CertboundError, ImportError):
    """An optional package is not installed; the message holds the command that installs it."""

    def __init__(self, package: str, *, purpose: str, command: str) -> None:
        self.package = package
        self.purpose = purpose
        self.command = command
        super().__init__(f"{purpose} needs the package {package!r}. Install it with: {command}")

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild_missing, (self.package, self.purpose, self.command))


def _rebuild_missing(package: str, purpose: str, command: str) -> MissingDependencyError:
    return MissingDependencyError(package, purpose=purpose, command=command)


class NumericalError(CertboundError, ArithmeticError):
    """A method's arithmetic broke down (NaN): it has no bound, which is no sign of a wrong one."""


class LadderError(CertboundError, AssertionError):
    """A lower bound exceeds an upper bound of the same claim: somebody's bound is wrong."""


class CertificateError(CertboundError, ValueError):
    """A certificate does not prove what it says."""
