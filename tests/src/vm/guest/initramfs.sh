#!/bin/busybox sh
# Finds the root file system that the boot loader names, and starts what is in it.
B=/bin/busybox
$B mount -t proc proc /proc
$B mount -t sysfs sys /sys
$B mount -t devtmpfs dev /dev
while read -r module; do $B insmod "/modules/$module"; done </modules/order
for word in $($B cat /proc/cmdline); do
    case $word in root=PARTLABEL=*) label=${word#root=PARTLABEL=} ;; esac
done
for found in /sys/class/block/*/uevent; do
    $B grep -qx "PARTNAME=$label" "$found" && device=${found%/uevent}
done
$B mount -o ro "/dev/${device##*/}" /root
$B mount --move /dev /root/dev
$B umount /sys /proc
exec $B switch_root /root /sbin/init
