# SPDX-License-Identifier: Apache-2.0
"""Who somebody is (clients, exporters), and which tunnel somebody may join.

Our own tokens are JWTs signed with ES256 by random keys that live in the database; ``kid`` names the key, the newest
signs. A token or certificate counts only while its row in the database says so, which makes it revocable.
"""

from jumpstarter_controller.identity.callers import Caller, Kind, Role
from jumpstarter_controller.identity.dial import DIAL_AUDIENCE, DIAL_ISSUER, DIAL_SECONDS, Ticket
from jumpstarter_controller.identity.keys import IDENTITY_TOPIC, ensure_key, public_keys, retire_keys, rotate_keys
from jumpstarter_controller.identity.service import Identity
from jumpstarter_controller.identity.tokens import issue_token, revoke_tokens

__all__ = [
    "DIAL_AUDIENCE",
    "DIAL_ISSUER",
    "DIAL_SECONDS",
    "IDENTITY_TOPIC",
    "Caller",
    "Identity",
    "Kind",
    "Role",
    "Ticket",
    "ensure_key",
    "issue_token",
    "public_keys",
    "retire_keys",
    "revoke_tokens",
    "rotate_keys",
]
