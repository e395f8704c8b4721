#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# shellcheck shell=dash
# Mounts the host's root (virtio-9p, read-only, below an overlay in memory) and hands over to guest_start.sh of it.
# The kernel's command line says where the modules and that script are on the host: guest.modules=, guest.start=.
busybox=/bin/busybox
$busybox mount -t proc proc /proc
$busybox mount -t devtmpfs dev /dev
while read -r module; do
    $busybox insmod "/lib/modules/$module" || echo "initramfs: cannot load $module"
done < /lib/modules/order
for word in $($busybox cat /proc/cmdline); do
    case "$word" in
        guest.modules=*) modules="${word#guest.modules=}" ;;
        guest.start=*) start="${word#guest.start=}" ;;
    esac
done
# cache=loose: the files of the running system do not change, and without a cache each import would ask the host anew.
$busybox mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=loose,ro host /host &&
    $busybox mount -t tmpfs -o size=90% cow /cow &&
    $busybox mkdir /cow/upper /cow/work &&
    $busybox mount -t overlay -o lowerdir=/host,upperdir=/cow/upper,workdir=/cow/work root /newroot &&
    $busybox mkdir -p /newroot/lib/modules &&
    $busybox mount --bind "/host$modules" /newroot/lib/modules || { echo "initramfs: no root"; $busybox poweroff -f; }
$busybox umount /proc
exec $busybox switch_root /newroot /bin/sh "$start"
