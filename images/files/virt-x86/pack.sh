#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Lays the two tar archives over each other in SCRATCH/root and makes an ext4 file system of them.
# Runs as root or under fakeroot, which is why it is one script: both must see the same owners.
set -eu
scratch=$1 output=$2 mebibytes=$3
mkdir "$scratch/root"
tar -C "$scratch/root" --numeric-owner -xf "$scratch/rootfs.tar" --exclude='./dev/*'
tar -C "$scratch/root" --numeric-owner --no-overwrite-dir -xf "$scratch/overlay.tar"
mke2fs -q -t ext4 -F -L labroot -U 6c616264-656d-4f72-8f6f-740000000086 -E hash_seed=6c616264-656d-4f72-8f6f-740000000087 \
    -J size=4 -m 0 -d "$scratch/root" "$output" "${mebibytes}M"
