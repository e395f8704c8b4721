# Copyright (c) 2026, the jumpstarter.lab contributors
# GNU General Public License v3.0+ (see LICENSES/GPL-3.0-or-later.txt or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From host variables to the way a board is reached. This plugin util is **PRIVATE** to the collection."""

from __future__ import annotations

import os
import typing as t

CONFIG = "jumpstarter_exporter_config"
ENDPOINT = "jumpstarter_endpoint"
SELECTOR = "jumpstarter_selector"
EXPORTER = "jumpstarter_exporter"
# Host variable -> key of the request; these only say how to speak TLS to an endpoint.
_TLS_FILES = {
    "jumpstarter_tls_ca": "tls_ca",
    "jumpstarter_tls_cert": "tls_cert",
    "jumpstarter_tls_key": "tls_key",
    "jumpstarter_passphrase_file": "passphrase_file",
}
INSECURE = "jumpstarter_insecure"
# Whose lease it is; without them the client that jmp would use.
CLIENT = "jumpstarter_client"
CLIENT_CONFIG = "jumpstarter_client_config"
VARIABLES = (CONFIG, ENDPOINT, SELECTOR, EXPORTER, *_TLS_FILES, INSECURE, CLIENT, CLIENT_CONFIG)


class ReachError(ValueError):
    """The host variables do not say, or say twice, how the board is reached."""


def find_reach(host: str, values: t.Mapping[str, t.Any], folders: t.Sequence[str]) -> dict[str, t.Any]:
    """The ``reach`` of a request.

    :param host: name used in errors.
    :param values: templated host variables; an empty one counts as unset, so that a host can undo its group's.
    :param folders: where relative paths are looked for, in this order.
    :raises ReachError: none or several ways are given, or a file is not there.
    """
    given = {name: values[name] for name in VARIABLES if values.get(name) not in (None, "", False)}
    ways = [name for name in (CONFIG, ENDPOINT) if name in given]
    controller = [name for name in (SELECTOR, EXPORTER) if name in given]
    if len(ways) + bool(controller) > 1:
        raise ReachError(
            f"{host}: {' and '.join(ways + controller)} are all set; a board is reached in one way: keep one of them"
        )
    if not ways and not controller:
        raise ReachError(
            f"{host}: no host variable says how the board is reached: set {CONFIG} (a local exporter configuration), "
            f"{ENDPOINT} (host:port of a running exporter), or {SELECTOR} or {EXPORTER} (a lease from the controller)"
        )
    if CONFIG in given:
        return {"exporter_config": find_file(host, CONFIG, given[CONFIG], folders)}
    if ENDPOINT in given:
        return _endpoint(host, given, folders)
    return _leased(host, given, folders)


def _leased(host: str, given: dict[str, t.Any], folders: t.Sequence[str]) -> dict[str, t.Any]:
    reach = {key: str(given[name]) for name, key in ((SELECTOR, "selector"), (EXPORTER, "exporter")) if name in given}
    if CLIENT in given and CLIENT_CONFIG in given:
        raise ReachError(f"{host}: {CLIENT} and {CLIENT_CONFIG} are both set; keep one of them")
    if CLIENT_CONFIG in given:
        reach["client_config"] = find_file(host, CLIENT_CONFIG, given[CLIENT_CONFIG], folders)
    elif CLIENT in given:
        reach["client"] = str(given[CLIENT])
    return reach


def _endpoint(host: str, given: dict[str, t.Any], folders: t.Sequence[str]) -> dict[str, t.Any]:
    address = str(given[ENDPOINT])
    name, colon, port = address.rpartition(":")
    if not colon or not name or not port.isdigit() or not 0 < int(port) < 65536:
        raise ReachError(f'{host}: {ENDPOINT} is "{address}": give host:port, as in bench-3.lab:8443')
    reach: dict[str, t.Any] = {"endpoint": address}
    for variable, key in _TLS_FILES.items():
        if variable in given:
            reach[key] = find_file(host, variable, given[variable], folders)
    insecure = str(given.get(INSECURE, "")).lower()
    if insecure in ("true", "yes", "1", "on"):
        if "tls_ca" in reach or "tls_cert" in reach:
            raise ReachError(f"{host}: {INSECURE} is set together with TLS files; keep one of the two")
        reach["insecure"] = True
    return reach


def find_file(host: str, variable: str, value: t.Any, folders: t.Sequence[str]) -> str:
    """Absolute path of a file that a variable names, relative ones looked for in *folders*.

    :raises ReachError: no such file is there.
    """
    path = os.path.expanduser(str(value))
    tried = [os.path.normpath(os.path.join(folder, path)) for folder in folders if folder] or [os.path.abspath(path)]
    for candidate in dict.fromkeys(tried):
        if os.path.isfile(candidate):
            return candidate
    places = ", ".join(dict.fromkeys(tried))
    raise ReachError(f'{host}: {variable} is "{value}", and no such file is there: tried {places}')
