"""Certificates that a test makes: no authority in the world has signed them."""

from __future__ import annotations

from pathlib import Path

import pytest


def write_certificate(folder: Path, *names: str) -> tuple[str, str, str]:
    """Write a certificate for these names, its key and that of its authority; return their paths."""
    trustme = pytest.importorskip("trustme")
    authority = trustme.CA()
    made = authority.issue_cert(*names)
    paths = [str(folder / name) for name in ("cert.pem", "key.pem", "ca.pem")]
    made.cert_chain_pems[0].write_to_path(paths[0])
    made.private_key_pem.write_to_path(paths[1])
    authority.cert_pem.write_to_path(paths[2])
    return paths[0], paths[1], paths[2]
