"""A certificate authority for one run, and certificates by it for addresses of loopback. Run by the Python of
.venv-bench, where Scrapy brings what it needs. Its key is never written down, so nobody can sign with it later.
"""

import datetime
import ipaddress
import json
import sys
from pathlib import Path

from cryptography import x509  # type: ignore[import-not-found] # it is in .venv-bench only.
from cryptography.hazmat.primitives import hashes, serialization  # type: ignore[import-not-found]
from cryptography.hazmat.primitives.asymmetric import ec  # type: ignore[import-not-found]

DAYS = 2


def main(folder: str, groups: str) -> None:
    """Write ``authority.pem`` and, for each group of addresses, ``N.pem`` with its key."""
    place = Path(folder)
    authority_key = ec.generate_private_key(ec.SECP256R1())
    authority = sign("The benchmark's authority", authority_key, authority_key, None, [])
    (place / "authority.pem").write_bytes(authority.public_bytes(serialization.Encoding.PEM))
    for number, addresses in enumerate(json.loads(Path(groups).read_text("utf-8"))):
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = sign(addresses[0], key, authority_key, authority, addresses)
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        (place / f"{number}.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM) + private)


def sign(
    name: str,
    key: ec.EllipticCurvePrivateKey,
    signing_key: ec.EllipticCurvePrivateKey,
    authority: x509.Certificate | None,
    addresses: list[str],
) -> x509.Certificate:
    """A certificate for addresses, or for the authority itself."""
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.datetime.now(datetime.UTC)
    usage = x509.KeyUsage(
        digital_signature=True,
        key_cert_sign=authority is None,
        crl_sign=authority is None,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(authority.subject if authority else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=DAYS))
        .add_extension(x509.BasicConstraints(ca=authority is None, path_length=None), critical=True)
        .add_extension(usage, critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signing_key.public_key()), critical=False
        )
    )
    if addresses:
        names = [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(signing_key, hashes.SHA256())


if __name__ == "__main__":
    main(*sys.argv[1:])
