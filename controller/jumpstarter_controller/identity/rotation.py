# SPDX-License-Identifier: Apache-2.0
"""Signing keys get old: a new one takes over, and the old one is retired when nothing stands on it any more."""

from __future__ import annotations

from sqlalchemy import exists, select

from jumpstarter_controller.identity.keys import IDENTITY_TOPIC, rotate_keys
from jumpstarter_controller.state.database import Transaction
from jumpstarter_controller.state.models import SigningKey, Token

__all__ = ["rotate_when_due"]

#: Seconds that an old key still verifies at least: dial tokens have no row, and end much sooner.
_OVERLAP = 3600.0


def rotate_when_due(tx: Transaction, lifetime: float) -> None:
    """Make a key when the newest one has signed for ``lifetime`` seconds; retire those that no living token needs.

    Any number of controllers may do so at any time.
    """
    keys = tx.session.scalars(
        select(SigningKey).where(SigningKey.retired_at.is_(None)).order_by(SigningKey.created_at)
    ).all()
    if not keys or keys[-1].created_at <= tx.now - lifetime:
        rotate_keys(tx)
    for key, successor in zip(keys, keys[1:], strict=False):
        # A key signed until its successor was there, and not after that.
        signed_by_it = exists().where(
            Token.issued_at <= successor.created_at, Token.expires_at > tx.now, Token.revoked_at.is_(None)
        )
        if successor.created_at <= tx.now - _OVERLAP and not tx.session.scalar(select(signed_by_it)):
            key.retired_at = tx.now
            tx.touch(IDENTITY_TOPIC)
            tx.audit("controller", "signing key retired", kid=key.kid)
