"""A web server on loopback, with TLS, that serves the files of a folder."""

import functools
import http.server
import re
import ssl
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import ClassVar

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


class _Files(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, ranges included if `has_ranges`; files whose names end in .secret are denied.

    Of files that end in .flaky, the first request for each range is answered by 503, and the second one breaks off.
    """

    has_ranges = True
    counts: ClassVar[Counter[str]] = Counter()

    def do_GET(self):
        path = Path(self.translate_path(self.path))
        if not path.is_file() or path.suffix == '.secret':
            return self.send_error(404 if path.suffix != '.secret' else 403)
        data = path.read_bytes()
        found = self.has_ranges and re.fullmatch(r'bytes=(\d+)-(\d+)', self.headers.get('Range', ''))
        number = 0
        if path.suffix == '.flaky' and found:
            self.counts[request := f'{path} {found[0]}'] += 1
            number = self.counts[request]
        if number == 1:
            return self.send_error(503)
        start, end = (int(found[1]), min(int(found[2]) + 1, len(data))) if found else (0, len(data))
        self.send_response(206 if found else 200)
        if found:
            self.send_header('Content-Range', f'bytes {start}-{end - 1}/{len(data)}')
        self.send_header('Content-Length', str(end - start))
        self.end_headers()
        return self.wfile.write(data[start : end - (number == 2)])

    def log_message(self, *_):
        pass


class _WholeFiles(_Files):
    """Sends whole files only."""

    has_ranges = False


@contextmanager
def web_server(folder: Path, certificate: Path, *, has_ranges: bool = True) -> Iterator[str]:
    """Serve the files of a folder within the block; yield the URL.

    `certificate`: file that is written; clients trust the server if SSL_CERT_FILE names it.
    """
    certificate.write_bytes(_certificate())
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    handler = functools.partial(_Files if has_ranges else _WholeFiles, directory=folder)
    with http.server.ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f'https://localhost:{server.server_port}'
        server.shutdown()


@functools.cache
def _certificate() -> bytes:
    """Return a key and its certificate for localhost; one, since clients read SSL_CERT_FILE once per process."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'localhost')]),
    )
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + timedelta(1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName('localhost')]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return secret + certificate.public_bytes(pem)
