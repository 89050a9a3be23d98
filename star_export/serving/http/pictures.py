"""Pictures in requests: data URLs, and web addresses where the server may fetch them."""

import time
from collections.abc import Callable, Sequence

from star_export.errors import InputError, option
from star_export.serving.http.options import HttpOptions
from star_export.serving.remote import fetch

FORM = "data:image/png;base64,..."


def picture_source(urls: Sequence[str], most: int, options: HttpOptions) -> Callable[[str], bytes]:
    """What turns a request's addresses into what :attr:`Query.image` takes.

    Args:
        urls: All of them.
        most: Pictures that the bundle takes.
        options: Whether some may be fetched; all together may have as many bytes as a body, and take as long.

    Raises:
        InputError: If there are so many that none need be fetched.
    """
    if len(urls) > most:
        raise InputError(
            f"this bundle takes at most {most}, got {len(urls)} pictures; "
            f"build it again with {option('max_images', len(urls))}"
        )
    deadline = time.monotonic() + options.receive_timeout_s
    left = options.max_body_mib << 20

    def picture(url: str) -> bytes:
        nonlocal left
        if url.startswith("data:"):
            if not url.isascii():
                raise InputError("a data URL must be ASCII")
            return url.encode()
        if not url.startswith(("http://", "https://")):
            raise InputError(f"a picture must be a data URL such as {FORM}, got {url[:40]!r}")
        if not options.allow_remote_images:
            raise InputError(
                f"this server fetches no pictures from the web; send a data URL such as {FORM}, "
                f"or start it with {option('allow_remote_images')}"
            )
        found = fetch(url, most=left, deadline=deadline)
        left -= len(found)
        return found

    return picture
