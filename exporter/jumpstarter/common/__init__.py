# SPDX-License-Identifier: Apache-2.0
"""What exporter and client share."""

from jumpstarter.common.enums import ExporterStatus, LogSource
from jumpstarter.common.metadata import Metadata

__all__ = ["ExporterStatus", "LogSource", "Metadata"]
