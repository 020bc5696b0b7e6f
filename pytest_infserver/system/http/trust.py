"""Which certificates of a server are trusted."""

from __future__ import annotations

import contextlib
import functools
import os
import ssl
from pathlib import Path


class BadAuthority(OSError):
    """The file of certificates to trust cannot be used; the text names it."""


def tls_context(ca: str | None, *, verify: bool = True, check_hostname: bool = True) -> ssl.SSLContext:
    """Return the TLS settings for requests to one server.

    Args:
        ca: File of certificates to trust, which may be the server's own one; None trusts those of the system, which
            SSL_CERT_FILE replaces, and those of the package certifi where it is installed.
        verify: Whether the certificate is checked at all.
        check_hostname: Whether it must name the host that is asked.

    Raises:
        BadAuthority: The file cannot be read, or has no certificate in it.
    """
    # An engine may make a new certificate at each start.
    try:
        stamp = None if ca is None else os.stat(ca).st_mtime_ns  # noqa: PTH116
    except OSError as error:
        raise _bad(ca, error) from None
    return _context(ca, stamp, os.environ.get("SSL_CERT_FILE"), verify, verify and check_hostname)


def trusted_certificates(ca: str | None) -> bytes | None:
    """Return the certificates that are trusted, for a library with settings of its own; None leaves it to that.

    Args:
        ca: As for `tls_context`.

    Raises:
        OSError: The file cannot be read.
    """
    file = ca or os.environ.get("SSL_CERT_FILE")
    if not file:
        try:
            import certifi
        except ImportError:
            return None
        file = certifi.where()
    return Path(file).read_bytes()


@functools.lru_cache(maxsize=64)
def _context(
    ca: str | None, stamp: int | None, cert_file: str | None, verify: bool, check_hostname: bool
) -> ssl.SSLContext:
    return new_context(ca, verify=verify, check_hostname=check_hostname)


def new_context(ca: str | None, *, verify: bool, check_hostname: bool) -> ssl.SSLContext:
    """Return the same, which nobody else has."""
    try:
        context = ssl.create_default_context(cafile=ca)
    except OSError as error:
        raise _bad(ca, error) from None
    # A server's own certificate counts also where some authority has signed it.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    # Python 3.13 refuses what openssl and others make without an authority key identifier.
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.check_hostname = verify and check_hostname
    if not verify:
        context.verify_mode = ssl.CERT_NONE
    elif ca is None and not os.environ.get("SSL_CERT_FILE"):
        with contextlib.suppress(ImportError, OSError):
            import certifi

            context.load_verify_locations(certifi.where())
    return context


def _bad(ca: str | None, error: OSError) -> OSError:
    if ca is None:
        return error
    why = "there is no certificate in it" if isinstance(error, ssl.SSLError) else error.strerror
    return BadAuthority(f"the file of certificates to trust cannot be used ({why}): {ca}")
