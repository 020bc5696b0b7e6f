"""The standard health service of gRPC, ``grpc.health.v1.Health``; needs the package grpcio."""

from __future__ import annotations

import ssl
import time
from collections.abc import Mapping
from typing import Any

from pytest_infserver.launcher.startup.probes.probe import Pointless, Probe
from pytest_infserver.launcher.startup.probes.tcp import TcpProbe
from pytest_infserver.system.http.address import Address
from pytest_infserver.system.http.probe import Answer, shown_seconds
from pytest_infserver.system.http.trust import trusted_certificates

_METHOD = "/grpc.health.v1.Health/Check"
_STATUSES = {0: "UNKNOWN", 1: "SERVING", 2: "NOT_SERVING", 3: "SERVICE_UNKNOWN"}
_SERVING = 1
_OPTIONS = (("grpc.enable_http_proxy", 0), ("grpc.use_local_subchannel_pool", 1))


class GrpcProbe(Probe):
    """Asks for the health of the whole server."""

    quick = False

    def __init__(self, address: Address) -> None:
        """Connect to nothing yet; ``address`` says where to."""
        self._address = address
        self._port_is_open = False
        self._keeps = False
        self._channel: Any = None

    def keep(self) -> None:
        """Keep the channel of a look for the next one: opening it takes ten times as long as asking."""
        self._keeps = True

    def close(self) -> None:
        """Close the channel."""
        channel, self._channel, self._port_is_open = self._channel, None, False
        if channel is not None:
            channel.close()

    def look(self, limit: float, pointless: Pointless = lambda: False) -> Answer:
        """Ask, once the port is open: to find that out grpc takes long."""
        # Here, while the server starts: when its port is open that would be waited for.
        import grpc

        if not self._port_is_open:
            seen = TcpProbe(self._address).look(limit)
            if not seen.ok:
                return seen
            self._port_is_open = True
            limit = max(0.01, limit - seen.seconds)
        return self._ask(grpc, limit)

    def _ask(self, grpc: Any, limit: float) -> Answer:
        begin = time.monotonic()
        good = False
        try:
            if self._channel is None:
                self._channel = self._open(grpc, limit)
            check = self._channel.unary_unary(_METHOD, request_serializer=bytes, response_deserializer=bytes)
            key = self._address.api_key
            metadata = () if key is None else (("authorization", f"Bearer {key}"),)
            status = _status(check(b"", timeout=limit, metadata=metadata))
            good = status == _SERVING
            what = f"answered {_STATUSES.get(status, status)}"
        except grpc.RpcError as error:
            what = _failure(error, limit)
        except OSError as error:
            what = f"cannot be asked: {error}"
        finally:
            if not (self._keeps and good):
                self.close()
        return Answer(None, what, time.monotonic() - begin, good=good)

    def _open(self, grpc: Any, limit: float) -> Any:
        address = self._address
        host = f"[{address.host}]" if ":" in address.host else address.host
        target = f"{host}:{address.port}" if address.uds is None else _socket_target(address.uds)
        if address.scheme != "https":
            return grpc.insecure_channel(target, options=_OPTIONS)
        trusted, name = _trust(address, limit)
        options = (*_OPTIONS, ("grpc.ssl_target_name_override", name)) if name else _OPTIONS
        return grpc.secure_channel(target, grpc.ssl_channel_credentials(trusted), options=options)

    @property
    def subject(self) -> str:
        """Where it is asked."""
        uds = self._address.shown_uds
        where = f"{self._address.host}:{self._address.port}" if uds is None else f"unix socket {uds}"
        return f"the gRPC health service at {where}"

    @property
    def expects(self) -> str:
        """The status."""
        return "SERVING"

    @property
    def port(self) -> int | None:
        """The port."""
        return None if self._address.uds is not None else self._address.port


def _socket_target(uds: str) -> str:
    return f"unix-abstract:{uds[1:]}" if uds.startswith("\0") else f"unix:{uds}"


def _trust(address: Address, limit: float) -> tuple[bytes | None, str | None]:
    """Return the certificates to trust, and the name to expect in the server's one if that is not the host.

    grpc has no switch for what need not hold: then the server's own certificate is asked for, and its name counts.

    Raises:
        OSError: The server does not answer, its certificate is not trusted, or a file cannot be read.
    """
    if address.verify and address.check_hostname:
        return trusted_certificates(address.ca), "localhost" if address.uds is not None else None
    trusted = trusted_certificates(address.ca)
    context = address.new_context()
    if not address.verify:
        trusted = ssl.DER_cert_to_PEM_cert(_shown(address, context, limit)[0]).encode()
        context = ssl.create_default_context(cadata=trusted.decode())
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.check_hostname = False
    return trusted, _name_in(_shown(address, context, limit)[1])


def _shown(address: Address, context: ssl.SSLContext, limit: float) -> tuple[bytes, Mapping[str, Any]]:
    """Return the certificate that a server shows: as it is, and what it says if it has been checked."""
    context.set_alpn_protocols(["h2"])
    with address.connect(limit) as connection, context.wrap_socket(connection) as wrapped:
        return wrapped.getpeercert(binary_form=True) or b"", wrapped.getpeercert() or {}


def _name_in(certificate: Mapping[str, Any]) -> str | None:
    """Return a name that a certificate is for."""
    names = [name for kind, name in certificate.get("subjectAltName", ()) if kind in ("DNS", "IP Address")]
    names += [value for part in certificate.get("subject", ()) for kind, value in part if kind == "commonName"]
    return names[0].replace("*", "any") if names else None


def _failure(error: Any, limit: float) -> str:
    code = error.code().name
    if code == "DEADLINE_EXCEEDED":
        return f"gave no answer within {shown_seconds(limit)} s"
    if code == "UNIMPLEMENTED":
        return "answered UNIMPLEMENTED: the server has no health service"
    if code in ("UNAUTHENTICATED", "PERMISSION_DENIED"):
        return f"answered {code}: it wants an API key; name it with 'api_key' or 'api_key_env'"
    return f"failed: {code}: {' '.join(str(error.details()).split())[:200]}"


def _status(answer: bytes) -> int:
    """Return the field 1 of a HealthCheckResponse, an enumeration; it is left out when it is 0."""
    return answer[1] if len(answer) >= 2 and answer[0] == 0x08 else 0
