# SPDX-License-Identifier: Apache-2.0
"""Where the database is: a file for SQLite, or a PostgreSQL server. What is shown of it never has the password."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from jumpstarter.common.exceptions import ConfigurationError

__all__ = ["Address", "PostgresAddress", "address_of", "is_postgres_url"]

#: What every connection says of itself and asks for. A server or a network that is silent is noticed in half a minute.
_DEFAULTS = {
    "application_name": "jumpstarter-controller",
    "connect_timeout": "5",
    "keepalives_idle": "10",
    "keepalives_interval": "5",
    "keepalives_count": "3",
    "tcp_user_timeout": "20000",
}


@dataclass(frozen=True, repr=False)
class PostgresAddress:
    """A PostgreSQL database.

    url: postgresql://USER@HOST:PORT/DATABASE, with what else libpq knows (sslmode, sslrootcert, passfile) as a query.
    password_file: holds the password and nothing else. Without one the password is in the URL, or libpq finds it in
    PGPASSWORD or in a pgpass file.
    """

    url: str
    password_file: Path | None = None

    def __str__(self) -> str:
        """For messages: without secrets, and without the query, which may hold some."""
        scheme, _, rest = self.url.partition("://")
        place = rest.partition("?")[0]
        who, at, where = place.rpartition("@")
        return f"{scheme}://{who.partition(':')[0]}{at}{where}"

    __repr__ = __str__

    def parameters(self) -> dict[str, str]:
        """What libpq needs to connect. Raises ConfigurationError, one line without secrets."""
        from psycopg import ProgrammingError
        from psycopg.conninfo import conninfo_to_dict

        try:
            given = {key: str(value) for key, value in conninfo_to_dict(self.url).items() if value is not None}
        except ProgrammingError:  # its text repeats the URL
            raise ConfigurationError(
                f"database {self}: the URL is not valid; expected postgresql://USER@HOST:PORT/DATABASE?OPTION=VALUE"
            ) from None
        if self.password_file is not None:
            try:
                given["password"] = self.password_file.read_text().strip()
            except (OSError, UnicodeDecodeError) as error:
                why = error.strerror if isinstance(error, OSError) else "it is not text"
                raise ConfigurationError(f"database {self}: password file {self.password_file}: {why}") from None
        return {**_DEFAULTS, **given}


Address = Path | PostgresAddress


def is_postgres_url(text: str) -> bool:
    """Whether this is a URL of PostgreSQL rather than a path."""
    return text.startswith(("postgresql://", "postgres://"))


def address_of(place: str | Path | PostgresAddress) -> Address:
    """A URL becomes a `PostgresAddress`, any other text a path."""
    if isinstance(place, str):
        return PostgresAddress(place) if is_postgres_url(place) else Path(place)
    return place
