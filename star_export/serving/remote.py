"""Pictures from the web: from public addresses only, in bounded bytes and time.

A server that fetches what strangers name could be made to ask its own network. So a name is resolved
once, every address that it has must be public, and the connection goes to one of these: what the name
means a moment later changes nothing. A redirect is a new address, checked the same way.
"""

import http.client
import ipaddress
import socket
import ssl
import threading
import time
from collections.abc import Callable
from urllib.parse import SplitResult, urljoin, urlsplit

from star_export.errors import InputError

PORTS = {"http": 80, "https": 443}
MAX_REDIRECTS = 3
_REDIRECTS = (301, 302, 303, 307, 308)
_CHUNK = 1 << 16
#: Addresses of IPv4 inside IPv6, for networks that translate (RFC 6052).
_NAT64 = ipaddress.ip_network("64:ff9b::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, and so does one of IPv4 that it stands for."""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved)


def fetch(url: str, *, most: int, deadline: float, allowed: Callable[[Address], bool] = is_public) -> bytes:
    """What lies at a web address.

    Args:
        url: Of http or https.
        most: Bytes that it may have.
        deadline: By ``time.monotonic``: when it must be there.
        allowed: Which addresses may be asked.

    Raises:
        InputError: If it is none that may be asked, or does not give so many bytes in time.
    """
    shown = url[:80]
    for _ in range(MAX_REDIRECTS + 1):
        try:
            found = _get(urlsplit(url), most, deadline, allowed)
            if time.monotonic() >= deadline:  # a connection that was cut looks like one that ended
                raise TimeoutError
        except (OSError, http.client.HTTPException, ValueError) as error:
            late = time.monotonic() >= deadline
            reason = "it took too long" if late else error
            raise InputError(f"the picture at {shown!r} cannot be fetched: {reason}") from error
        if isinstance(found, bytes):
            return found
        url = urljoin(url, found)
    raise InputError(f"the picture at {shown!r} cannot be fetched: it was moved {MAX_REDIRECTS + 1} times")


def _get(parts: SplitResult, most: int, deadline: float, allowed: Callable[[Address], bool]) -> bytes | str:
    """The content, or where it was moved to."""
    if parts.scheme not in PORTS or not parts.hostname or parts.username is not None:
        raise ValueError("its address must begin with http:// or https:// and a host, without a user")
    port = parts.port or PORTS[parts.scheme]
    address = _resolve(parts.hostname, port, allowed)
    connection = _Connection(parts, port, address, deadline)
    watch = threading.Timer(max(deadline - time.monotonic(), 0), connection.cut)
    watch.daemon = True
    watch.start()
    try:
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": parts.netloc, "Accept": "image/*", "User-Agent": "star-export"}
        connection.request("GET", target, headers=headers)
        response = connection.getresponse()
        if response.status in _REDIRECTS and (location := response.headers.get("Location")):
            return location
        if response.status != 200:
            raise ValueError(f"its server answers {response.status}")
        return _read(response, most)
    finally:
        watch.cancel()
        connection.close()


def _resolve(host: str, port: int, allowed: Callable[[Address], bool]) -> str:
    """One address of a host, all of whose addresses may be asked."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    addresses = [str(entry[4][0]) for entry in found]
    if not all(allowed(ipaddress.ip_address(address.partition("%")[0])) for address in addresses):
        raise ValueError(f"{host} is no public address; send the picture as a data URL")
    return addresses[0]


def _read(response: http.client.HTTPResponse, most: int) -> bytes:
    body = bytearray()
    while chunk := response.read(_CHUNK):
        body += chunk
        if len(body) > most:
            raise ValueError(f"it has more than {most} bytes; send a smaller one")
    if response.length:
        raise ValueError(f"{response.length} bytes of it are missing")
    return bytes(body)


class _Connection(http.client.HTTPConnection):
    """A connection to an address that was checked, for a host's name."""

    def __init__(self, parts: SplitResult, port: int, address: str, deadline: float) -> None:
        super().__init__(str(parts.hostname), port, timeout=max(deadline - time.monotonic(), 0.001))
        self._address, self._secure = address, parts.scheme == "https"

    def connect(self) -> None:
        """Connect to the address, whatever the name means by now."""
        self.sock = socket.create_connection((self._address, self.port), self.timeout)
        if self._secure:
            context = ssl.create_default_context()
            wrapped = context.wrap_socket(self.sock, server_hostname=self.host, do_handshake_on_connect=False)
            self.sock = wrapped  # before anything is read, so that it can be cut
            wrapped.do_handshake()

    def cut(self) -> None:
        """End whatever waits for the other side."""
        sock = self.sock
        if sock is not None:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:  # it has ended already
                return
