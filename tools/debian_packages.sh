#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Usage: debian_packages.sh PACKAGE...
# Installs what is missing of the given Debian packages when run as root; otherwise says the exact command and fails.
set -eu

missing=
for package in "$@"; do
    status=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
    [ "$status" = installed ] || missing="$missing $package"
done
[ -n "$missing" ] || exit 0

if [ "$(id -u)" != 0 ]; then
    echo "Debian packages are missing. Run this as root, then make again:" >&2
    echo "    apt-get update && apt-get install --no-install-recommends$missing" >&2
    exit 1
fi

export DEBIAN_FRONTEND=noninteractive
echo "Installing Debian packages:$missing"
# An index download that fails once (a mirror in the middle of its update, a network just coming up) often works the second time.
# The second failure may also be a third party's source that does not matter here, so installing decides.
apt-get -q -o Acquire::Retries=3 update >/dev/null || apt-get -q -o Acquire::Retries=3 update || true
# shellcheck disable=SC2086  # a list of words on purpose
apt-get -q -y -o Acquire::Retries=3 -o Dpkg::Use-Pty=0 install --no-install-recommends $missing </dev/null
