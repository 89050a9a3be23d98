"""The limits of a service."""

import threading
from dataclasses import dataclass

from star_export.errors import SettingsError

LEAST = {"kv_cache_mib": 1, "max_slots": 1, "queue": 0, "feature_cache_mib": 0, "prefix_cache_mib": 0}


@dataclass(frozen=True, kw_only=True)
class ServiceOptions:
    """How much a service takes on.

    Attributes:
        kv_cache_mib: Memory for KV caches; as many slots as fit, each as long as the longest that runs needs.
        max_slots: Sequences that are decoded at once, at most.
        queue: Requests that may wait for a slot.
        timeout_s: Seconds that a request may take, waiting included.
        feature_cache_mib: Memory for the features of pictures seen before.
        prefix_cache_mib: Host memory for the KV caches of conversations that may go on.

    Raises:
        SettingsError: If a number is out of range.
    """

    kv_cache_mib: int = 4096
    max_slots: int = 32
    queue: int = 64
    timeout_s: float = 120.0
    feature_cache_mib: int = 256
    prefix_cache_mib: int = 256

    def __post_init__(self) -> None:
        for name, least in LEAST.items():
            if (found := getattr(self, name)) < least:
                raise SettingsError(f"{name} must be at least {least}, got {found}")
        if not 0 < self.timeout_s <= threading.TIMEOUT_MAX:  # NaN too
            raise SettingsError(f"timeout_s must be a finite number above 0, got {self.timeout_s:g}")
