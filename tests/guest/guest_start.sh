#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# First process of the test guest, on the host's root: the file systems, udev and the network of a small Linux machine,
# then the agent that runs what the tests ask for. guest.python= on the kernel's command line is the interpreter.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 TMPDIR=/run/tmp
here=${0%/*}
mount -t proc proc /proc
mount -t sysfs sys /sys
mountpoint -q /dev || mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs -o mode=755 run /run
mkdir -m 1777 /run/tmp
# Files of the host as they are now, past every cache: what a test has just written.
mkdir -p /host
modprobe virtio_net
mount -t 9p -o trans=virtio,version=9p2000.L,msize=524288,cache=none,ro live /host
hostname guest
# Before udev, which would give the interface another name meanwhile.
ip link set lo up
for interface in /sys/class/net/e*; do
    ip address add 10.0.2.15/24 dev "${interface##*/}"
    ip link set "${interface##*/}" up
done
ip route add default via 10.0.2.2
/lib/systemd/systemd-udevd --daemon
# Not the processor and what is soldered on: their drivers would take seconds to load, under emulation, for nothing.
udevadm trigger --action=add --subsystem-match=block --subsystem-match=net --subsystem-match=tty --subsystem-match=mem \
    --subsystem-match=misc
modprobe xhci_pci
for word in $(cat /proc/cmdline); do
    case "$word" in guest.python=*) python="${word#guest.python=}" ;; esac
done
echo "guest: start of the agent after $(cut -d' ' -f1 /proc/uptime) s"
"$python" "$here/guest_agent.py"
echo "guest: the agent has ended"
poweroff -f 2>/dev/null || echo o > /proc/sysrq-trigger
