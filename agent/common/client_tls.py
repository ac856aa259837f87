"""TLS settings of a client: the CA certificates to trust, and the client's own certificate and key."""

import ssl

from agent.common.config_types import ConfigSection, SecretPath, expand_credentials_directory


class ClientTlsConfig(ConfigSection):
    """TLS of the agent's connections to a server."""

    ca: SecretPath | None = None
    """File of CA certificates to trust; by default, those of the system."""
    certificate: SecretPath | None = None
    """Client certificate, if the server requires one."""
    key: SecretPath | None = None
    """Key of the client certificate, if it is not in the same file."""

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths of the configured files. A path may begin with `${CREDENTIALS_DIRECTORY}`."""
        return tuple(filter(None, (self.ca, self.certificate, self.key)))

    def ssl_context(self) -> ssl.SSLContext:
        """Read the certificate files, and return an SSL context that uses them.

        Raises:
            OSError: a file cannot be read, or has no certificate or key; the error names the file.
        """
        ca, certificate, key = (
            expand_credentials_directory(file) if file is not None else None
            for file in (self.ca, self.certificate, self.key)
        )
        file = ca
        try:
            context = ssl.create_default_context(cafile=ca)
            if certificate is not None:
                file = certificate
                # Without a callback, OpenSSL would ask for the key's passphrase on the terminal.
                context.load_cert_chain(certificate, key, password=lambda: "")
        except OSError as error:
            why = error.reason if isinstance(error, ssl.SSLError) and error.reason else error.strerror
            raise OSError(error.errno, why, file) from error
        return context
