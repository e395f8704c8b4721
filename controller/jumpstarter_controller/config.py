# SPDX-License-Identifier: Apache-2.0
"""The controller's configuration file.

apiVersion: jumpstarter.lab/v1alpha1
kind: ControllerConfig
listen: "0.0.0.0:8082"            # one TLS port for everything; port 0 takes a free one
endpoint: "lab.example.org:8082"  # what clients and exporters connect to; default: where it listens
database: lab.db                  # paths are relative to this file
# or, for several controllers:    # database: {url: "postgresql://lab@db.example.org/lab?sslmode=verify-full",
#                                 #            passwordFile: database.password}
namespace: default                # of clients and exporters that `admin create` makes
tls: {certificate: server.crt, key: server.key, ca: ca.crt}
tokens: {lifetime: 365d, keyLifetime: 90d}
leases: {offlineAfter: 60s, retention: 30d, spotGrace: 60s, auditRetention: 365d}
leasePolicy: {maxTags: 10}
hiddenLabels: {keys: [rack]}                        # shown only to who asks
deprecatedLabels: {keys: {board: "use model"}}      # hidden, with a warning
router: {endpoint: "lab-1.example.org:8082"}  # of the router within; default: endpoint. Several controllers need it
metrics: {listen: "127.0.0.1:9090"}  # for Prometheus, plain HTTP; default: none
login: {listen: "0.0.0.0:8086"}   # HTTPS: tells `jmp login` how to reach this lab; default: none
# tls also knows clientCA and clientListen; what authentication and provisioning are: identity/settings.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator, model_validator

from jumpstarter_controller.administration.names import check_namespace
from jumpstarter_controller.config_files import HostPort, read_config
from jumpstarter_controller.durations import Seconds, seconds
from jumpstarter_controller.errors import Refused
from jumpstarter_controller.identity.settings import AuthenticationSettings, ProvisioningSettings
from jumpstarter_controller.state.address import Address, PostgresAddress, is_postgres_url

__all__ = [
    "ControllerConfig",
    "DatabaseSettings",
    "LeaseSettings",
    "LoginSettings",
    "MetricsSettings",
    "RouterSettings",
    "Seconds",
    "TLSFiles",
    "TokenSettings",
    "seconds",
]


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class DatabaseSettings(_Block):
    """url: a path, or a URL of PostgreSQL; a text instead of the block is that alone.

    password_file: holds PostgreSQL's password; without one, what libpq does (PGPASSWORD, PGPASSFILE).
    """

    url: str = Field(min_length=1)
    password_file: Path | None = Field(default=None, alias="passwordFile")

    @model_validator(mode="before")
    @classmethod
    def _from_text(cls, value: object) -> object:
        return {"url": value} if isinstance(value, str) else value

    @model_validator(mode="after")
    def _fits(self) -> DatabaseSettings:
        if not is_postgres_url(self.url):
            if "://" in self.url:
                raise ValueError("expected a path or postgresql://USER@HOST/DATABASE")
            if self.password_file is not None:
                raise ValueError("a passwordFile is for PostgreSQL, but url is a path")
        return self


class RouterSettings(_Block):
    """endpoint: host:port of the router within this controller, when `endpoint` leads to several controllers."""

    endpoint: HostPort | None = None


class MetricsSettings(_Block):
    """listen: host:port of plain HTTP for Prometheus; whoever reaches it reads the names of nobody, only numbers."""

    listen: HostPort


class LoginSettings(_Block):
    """listen: host:port of HTTPS, with the certificate of `tls`."""

    listen: HostPort


class TLSFiles(_Block):
    """PEM files. ca: the authority that signed `certificate`; it is put into the files for clients and exporters.

    client_ca: certificates that it signed identify clients and exporters (`ca issue-client`). client_listen: host:port
    where such a certificate is required, while `listen` goes on without; without it `listen` requires one of everybody.
    """

    certificate: Path
    key: Path
    ca: Path
    client_ca: Path | None = Field(default=None, alias="clientCA")
    client_listen: HostPort | None = Field(default=None, alias="clientListen")

    @model_validator(mode="after")
    def _needs_an_authority(self) -> TLSFiles:
        if self.client_listen is not None and self.client_ca is None:
            raise ValueError("clientListen needs clientCA, the authority of the certificates that are shown there")
        return self


class TokenSettings(_Block):
    """Seconds. lifetime: of the tokens of clients and exporters. key_lifetime: a key signs for so long; it verifies as
    long as there are tokens that it signed."""

    lifetime: Seconds = 365 * 86400.0
    key_lifetime: Seconds = Field(default=90 * 86400.0, alias="keyLifetime")


class LeaseSettings(_Block):
    """Seconds. offline_after: an exporter not seen for so long is lost. retention: of leases that have ended.

    spot_grace: between telling the holder of a spot lease that it is taken away and doing so. audit_retention: of the
    entries of the audit log.
    """

    offline_after: Seconds = Field(default=60.0, alias="offlineAfter")
    retention: Seconds = 30 * 86400.0
    spot_grace: Seconds = Field(default=60.0, alias="spotGrace")
    audit_retention: Seconds = Field(default=365 * 86400.0, alias="auditRetention")


class LeasePolicySettings(_Block):
    """max_tags: of a lease."""

    max_tags: int = Field(default=10, ge=0, le=64, alias="maxTags")


class HiddenLabels(_Block):
    """keys: labels of exporters that clients are shown only when they ask. Selectors may use them."""

    keys: list[str] = Field(default_factory=list)


class DeprecatedLabels(_Block):
    """keys: labels of exporters that should not be used any more, with what to say about it. They are hidden too."""

    keys: dict[str, str] = Field(default_factory=dict)


class ControllerConfig(_Block):
    """One file; see the top of this module."""

    apiVersion: Literal["jumpstarter.lab/v1alpha1"]
    kind: Literal["ControllerConfig"]
    listen: HostPort
    endpoint: HostPort | None = None
    database_settings: DatabaseSettings = Field(alias="database")
    namespace: str = "default"
    tls: TLSFiles
    tokens: TokenSettings = Field(default_factory=TokenSettings)
    leases: LeaseSettings = Field(default_factory=LeaseSettings)
    lease_policy: LeasePolicySettings = Field(default_factory=LeasePolicySettings, alias="leasePolicy")
    hidden_labels: HiddenLabels = Field(default_factory=HiddenLabels, alias="hiddenLabels")
    deprecated_labels: DeprecatedLabels = Field(default_factory=DeprecatedLabels, alias="deprecatedLabels")
    router: RouterSettings = Field(default_factory=RouterSettings)
    metrics: MetricsSettings | None = None
    login: LoginSettings | None = None
    authentication: AuthenticationSettings = Field(default_factory=AuthenticationSettings)
    provisioning: ProvisioningSettings = Field(default_factory=ProvisioningSettings)
    #: Where relative paths begin: the folder of the configuration file.
    _home: Path = PrivateAttr(default=Path())

    @field_validator("namespace")
    @classmethod
    def _is_a_namespace(cls, namespace: str) -> str:
        try:
            check_namespace(namespace)
        except Refused as refused:
            raise ValueError(refused.message) from None
        return namespace

    @property
    def home(self) -> Path:
        """Where relative paths begin."""
        return self._home

    @property
    def database(self) -> Address:
        """Where the state is."""
        given = self.database_settings
        if is_postgres_url(given.url):
            secret = given.password_file
            return PostgresAddress(given.url, None if secret is None else self._home / secret)
        return self._home / given.url

    @classmethod
    def load(cls, path: Path) -> ControllerConfig:
        """Read the file. Raises ConfigurationError, one line that names file and field."""
        config = read_config(path, cls)
        home = path.parent
        config._home = home
        config.tls.certificate = home / config.tls.certificate
        config.tls.key = home / config.tls.key
        config.tls.ca = home / config.tls.ca
        if config.tls.client_ca is not None:
            config.tls.client_ca = home / config.tls.client_ca
        return config
