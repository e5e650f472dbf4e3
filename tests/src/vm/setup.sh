#!/usr/bin/env bash
# Unpacks the Debian packages that the virtual machine is made of into the directory that it looks in: a kernel, BusyBox,
# GRUB, U-Boot and the library that ignores fsync. Nothing is installed, and what is there is left alone.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
vm=${FWTESTS_TOOLS:-$here/../../../target/interop-tools}/vm
[ -e "$vm" ] && exit
mkdir -p "$(dirname "$vm")"
new=$(mktemp -d "$vm.new-XXXXXX")
trap 'rm -rf "$new"' EXIT

mkdir "$new/debs" "$new/root"
cd "$new/debs"
# The package of this name holds nothing and depends on the newest kernel.
kernel=$(apt-cache depends linux-image-cloud-amd64 | sed -n 's/^ *Depends: \(linux-image-\)/\1/p' | head -n 1)
apt-get download -qq -o APT::Sandbox::User=root "$kernel" busybox-static grub-pc-bin u-boot-qemu libeatmydata1
for deb in *.deb; do dpkg-deb -x "$deb" "$new/root"; done
mv "$new/root" "$vm"
