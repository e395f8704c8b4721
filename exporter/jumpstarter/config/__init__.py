# SPDX-License-Identifier: Apache-2.0
"""Configuration files and environment variables: what the user writes down, read, checked and saved.

Nothing is imported here on purpose: `jumpstarter.config.env` must stay cheap for `j`, pydantic is only paid for by
who reads a file (`jumpstarter.config.exporter`, `.client`, `.user`).
"""
