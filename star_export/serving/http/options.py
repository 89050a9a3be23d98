"""The limits of the front door itself."""

import ipaddress
import re
import threading
from dataclasses import dataclass

from star_export.errors import SettingsError, option

_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://[^/?#@A-Z\s]+")


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Who may ask over HTTP, and how much it may send.

    Attributes:
        host: Address to listen at.
        port: Port to listen at; 0 takes a free one.
        api_key: What clients send as a bearer token; None lets everybody ask.
        cors_origins: Origins whose pages may ask from a browser, such as ``https://example.com``.
        allow_remote_images: Whether pictures are fetched from public web addresses.
        max_body_mib: Size of a request, and of a remote picture, at most.
        max_connections: Connections at once, at most.
        receive_timeout_s: Seconds that a client may take to send a request's head, and again its body, and
            to take what it is sent; and that a remote picture may take.
        log_prompts: Whether the log holds what was asked.

    Raises:
        SettingsError: If a value is out of range.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    cors_origins: tuple[str, ...] = ()
    allow_remote_images: bool = False
    max_body_mib: int = 32
    max_connections: int = 512
    receive_timeout_s: float = 30.0
    log_prompts: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise SettingsError(f"{option('port')} must be from 0 to 65535, got {self.port}")
        for name in ("max_body_mib", "max_connections"):
            if (found := getattr(self, name)) < 1:
                raise SettingsError(f"{option(name)} must be at least 1, got {found}")
        if not 0 < self.receive_timeout_s <= threading.TIMEOUT_MAX:  # NaN too
            raise SettingsError(
                f"{option('receive_timeout_s')} must be a finite number above 0, "
                f"got {self.receive_timeout_s:g}"
            )
        key = self.api_key
        if key is not None and not (key and key.isascii() and key.isprintable() and key == key.strip()):
            raise SettingsError(
                f"{option('api_key')} must be printable ASCII, not empty, with no space or line end around; "
                "leave it out to let all ask"
            )
        for origin in self.cors_origins:
            if origin != "*" and not _ORIGIN.fullmatch(origin):
                raise SettingsError(
                    f"{option('cors_origin')} must be as browsers write it, such as https://example.com, "
                    f"without a path and in small letters, or *; got {origin}"
                )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"
