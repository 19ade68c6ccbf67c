"""What stands before a Temporal server in production: TLS, client certificates and API keys, as a gRPC proxy."""

from __future__ import annotations

import ipaddress
import threading
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

THREADS = 100  # each long poll holds one
LONGEST = 3600  # seconds
UNLIMITED = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Certificates:
    """An authority of the test's own, and certificates that it signs, as PEM files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority")])
        self.authority = folder / "authority.pem"
        self._sign(self.authority, self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))

    def issue(self, name: str) -> tuple[Path, Path]:
        """Make a certificate for a host, an IP address or a client. Returns the file of it and that of its key."""
        try:
            alternative: x509.GeneralName = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            alternative = x509.DNSName(name)
        key = ec.generate_private_key(ec.SECP256R1())
        certificate_file, key_file = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        end = x509.BasicConstraints(ca=False, path_length=None)
        self._sign(certificate_file, subject, key, end, x509.SubjectAlternativeName([alternative]))
        key_file.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return certificate_file, key_file

    def _sign(
        self, file: Path, subject: x509.Name, key: ec.EllipticCurvePrivateKey, *extensions: x509.ExtensionType
    ) -> None:
        now = datetime.now(UTC)
        certificate = x509.CertificateBuilder(
            issuer_name=self._name,
            subject_name=subject,
            public_key=key.public_key(),
            serial_number=x509.random_serial_number(),
            not_valid_before=now - timedelta(hours=1),
            not_valid_after=now + timedelta(hours=1),
        )
        for extension in extensions:
            certificate = certificate.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        file.write_bytes(certificate.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))


class Proxy(grpc.GenericRpcHandler):
    """Passes calls on to the server at `target`, if their API key is right. All calls of workers and clients are unary.

    Attributes:
        address: Where it listens, while it does.
        wire: What went through it, in both directions, by the name of the call.
    """

    def __init__(self, target: str, api_key: str | None = None) -> None:
        self.address = ""
        self.wire: dict[str, bytes] = defaultdict(bytes)
        self._target = target
        self._api_key = api_key
        self._lock = threading.Lock()

    @contextmanager
    def serving(self, credentials: grpc.ServerCredentials | None = None) -> Iterator[Proxy]:
        """Listen on a free port, with TLS if there are credentials for it."""
        threads = ThreadPoolExecutor(THREADS)
        server = grpc.server(threads, [self], options=UNLIMITED)
        anywhere = "127.0.0.1:0"
        secure, insecure = server.add_secure_port, server.add_insecure_port
        self.address = f"127.0.0.1:{secure(anywhere, credentials) if credentials else insecure(anywhere)}"
        with grpc.insecure_channel(self._target, UNLIMITED) as self._channel:
            server.start()
            try:
                yield self
            finally:
                server.stop(None).wait()
                threads.shutdown()

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes]:
        method = handler_call_details.method
        headers = dict(handler_call_details.invocation_metadata)
        # Without serializers, requests and answers stay bytes.
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(method)

        def forward(request: bytes, context: grpc.ServicerContext) -> bytes:
            if self._api_key is not None and headers.get("authorization") != f"Bearer {self._api_key}":
                context.abort(grpc.StatusCode.UNAUTHENTICATED, "there is no such API key")
            self._record(method, request)
            metadata = tuple((k, v) for k, v in headers.items() if k not in ("authorization", "user-agent"))
            # A call without a deadline has a very long time left, which would overflow.
            timeout = min(context.time_remaining(), LONGEST)
            answer = call.future(request, timeout=timeout, metadata=metadata)
            context.add_callback(answer.cancel)  # type: ignore[arg-type]  # the client has gone away; returns a bool
            try:
                response: bytes = answer.result()
            except grpc.FutureCancelledError:
                context.abort(grpc.StatusCode.CANCELLED, "the client has gone away")
            except grpc.RpcError as error:
                # The details of Temporal's errors are there.
                context.set_trailing_metadata(tuple((item.key, item.value) for item in error.trailing_metadata()))
                context.abort(error.code(), error.details() or "")
            self._record(method, response)
            return response

        return grpc.unary_unary_rpc_method_handler(forward)

    def _record(self, method: str, data: bytes) -> None:
        with self._lock:
            self.wire[method.rpartition("/")[2]] += data
