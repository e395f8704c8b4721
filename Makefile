# SPDX-License-Identifier: Apache-2.0
# make demo   flash, boot and verify an emulated board; the report's path is the last line
# make demo-lab  a controller, three exporters, and a play over all of them; demo-lab ARGS=--keep lets the lab stay
# make test   every test, the end-to-end plays included
# make lint   ruff, mypy, ansible-lint, yamllint
# make bench  ours beside the raw limits and the original; writes build/bench.json
# make bench-controller  leases, memory and tunnels of a controller under 10 to 1,000 exporters; build/bench-controller.json
# make proto  the Python stubs of proto/
# make reference  the pages of docs/reference/, from the code
# make sanity ansible-test sanity on a copy of the collection
# make matrix the quick tests on every supported Python and ansible-core; PAIRS="py3.12-core2.21" only some of them
# make help   the other targets

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
# One more than there are cores: many tests wait for a board, a clock or another process.
WORKERS ?= $(shell expr $$(nproc) + 1)

# Debian packages: what a play on the demo board needs, and what the tests need on top.
DEBIAN_BASE := python3 python3-venv
DEBIAN_DEMO := qemu-system-arm u-boot-qemu mtools ipxe-qemu openssh-client
DEBIAN_TEST := qemu-system-x86 qemu-utils mmdebstrap debian-archive-keyring e2fsprogs syslinux syslinux-common uidmap cpio \
	fakeroot git openssh-server bzip2 xz-utils zstd postgresql-15 iproute2 tcpdump nftables dnsmasq-base qemu-block-extra \
	tgt \
	debian-installer-12-netboot-arm64 docker-registry busybox-static \
	udev kmod procps sudo usbip libusb-1.0-0 can-utils \
	chromium dbus iperf3 novnc ustreamer \
	snmpd mosquitto libhidapi-hidraw0 \
	tftp-hpa tftpd-hpa atftp curl

.DELETE_ON_ERROR:
# Installing Debian packages, making the environment and building images would only get in one another's way.
.NOTPARALLEL:
.PHONY: help demo demo-lab test lint bench bench-controller proto reference sanity matrix collection images image-arm64 image-x86 venv dev \
	debian-demo debian-test clean distclean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile
	@echo 'make images  the disk images of both reference boards, under build/images'
	@echo 'make collection  the Galaxy archive, under build/'
	@echo 'make clean / distclean  remove build/ / and $(VENV)'

# --- what everything stands on -------------------------------------------------------------------------------------------

$(BIN)/python:
	@sh tools/debian_packages.sh $(DEBIAN_BASE)
	$(PYTHON) -m venv $(VENV)

$(VENV)/.run: pyproject.toml tools/link_collection.py | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 5 --editable '.[all]'
	$(BIN)/python tools/link_collection.py
	@touch $@

$(VENV)/.dev: $(VENV)/.run
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --retries 5 --editable '.[dev]'
	@touch $@

venv: $(VENV)/.run
dev: $(VENV)/.dev

debian-demo:
	@sh tools/debian_packages.sh $(DEBIAN_BASE) $(DEBIAN_DEMO)

debian-test:
	@sh tools/debian_packages.sh $(DEBIAN_BASE) $(DEBIAN_DEMO) $(DEBIAN_TEST)

# The builders know by themselves when there is nothing to do.
image-arm64: debian-demo
	@$(PYTHON) images/virt_arm64.py

image-x86: debian-test
	@$(PYTHON) images/virt_x86.py

images: image-arm64 image-x86

# --- what people run -----------------------------------------------------------------------------------------------------

# The virtual environment is first on PATH: tools that start one another (ansible-lint, ansible-test) find the same one.
# Unbuffered: Ansible never flushes what it writes into a pipe, and "make demo | tee log" shall show its progress too.
IN_VENV := PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONUNBUFFERED=1

demo: debian-demo $(VENV)/.run image-arm64
	$(IN_VENV) ansible-playbook -i inventories/demo.yml playbooks/flash_and_test.yml

demo-lab: debian-demo $(VENV)/.run image-arm64
	$(IN_VENV) python tools/demo_lab.py $(ARGS)

# A test that fails is repeated once and named at the end, whatever came of it: one that failed by chance is a defect, of
# the product as often as of the test, but need not hold up everybody. RERUNS=0 to hunt them.
RERUNS ?= 1

test: debian-test $(VENV)/.dev images
	$(IN_VENV) pytest -n $(WORKERS) --dist loadgroup --reruns $(RERUNS) -rR $(PYTEST_ARGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check
	$(BIN)/mypy
	$(IN_VENV) yamllint --strict .
	$(IN_VENV) ansible-lint --offline

bench: $(VENV)/.dev
	$(IN_VENV) python bench/run.py

bench-controller: debian-test $(VENV)/.dev
	$(IN_VENV) python bench/controller.py

proto: $(VENV)/.dev
	$(BIN)/python proto/generate.py

reference: $(VENV)/.dev
	$(BIN)/python tools/reference.py

sanity: $(VENV)/.dev
	$(IN_VENV) python tests/sanity/run.py

# Uses no environment but its own, below build/matrix/; MATRIX_ARGS: see tools/matrix.py --help.
matrix:
	$(PYTHON) tools/matrix.py --workers $(WORKERS) $(MATRIX_ARGS) $(PAIRS)

collection: $(VENV)/.run
	$(IN_VENV) ansible-galaxy collection build --force --output-path build

clean:
	rm -rf build

distclean: clean
	rm -rf $(VENV)
