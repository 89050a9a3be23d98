"""What each error means to who asked."""

from concurrent.futures import CancelledError

import pytest

from star_export import errors
from star_export.serving.failure import Failure

MEANINGS = {
    errors.StarExportError: Failure.INTERNAL,
    errors.CheckpointError: Failure.INTERNAL,
    errors.SettingsError: Failure.INVALID,
    errors.BundleError: Failure.INTERNAL,
    errors.InputError: Failure.INVALID,
    errors.PlatformError: Failure.INTERNAL,
    errors.UnreachableError: Failure.UNREACHABLE,
    errors.BusyError: Failure.BUSY,
    errors.NonFiniteError: Failure.INTERNAL,
    errors.DeadlineError: Failure.LATE,
    errors.DeviceError: Failure.INTERNAL,
    CancelledError: Failure.CANCELLED,
    RuntimeError: Failure.INTERNAL,
}


@pytest.mark.parametrize("kind", MEANINGS)
def test_every_error_has_a_meaning(kind: type[Exception]) -> None:
    assert Failure.of(kind("no")) is MEANINGS[kind]


def test_a_kind_of_error_means_what_its_base_means() -> None:
    class TooLargeError(errors.InputError):
        pass

    assert Failure.of(TooLargeError("no")) is Failure.INVALID


def test_no_error_is_forgotten() -> None:
    every = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert every <= set(MEANINGS)
