# SPDX-License-Identifier: Apache-2.0
"""The one error type the image builders raise."""


class BuildError(Exception):
    """An image cannot be built; the message is one line that says what is wrong and what to do about it."""
