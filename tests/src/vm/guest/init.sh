#!/bin/sh
# The first process of the device: starts the agent and does what it is told on the console. What it says begins with
# "fwvm ".
export PATH=/sbin:/bin
read -r version </etc/version
read -r fate </etc/fate
case $fate in
    # Without its first process, the kernel panics.
    panics) exit 1 ;;
    hangs) echo "fwvm hangs $version" && while :; do sleep 1000; done ;;
esac
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
stty -echo
mkdir -p /dev/disk/by-partlabel
for found in /sys/class/block/*/uevent; do
    label=$(sed -n 's/^PARTNAME=//p' "$found")
    device=${found%/uevent}
    [ -n "$label" ] && ln -s "/dev/${device##*/}" "/dev/disk/by-partlabel/$label"
done
mount -t ext4 /dev/disk/by-partlabel/data /data || echo "fwvm broken: the data partition cannot be mounted"
# GRUB's environment block is a file of the partition that GRUB reads.
[ -e /etc/fw_env.config ] || mount -t ext4 /dev/disk/by-partlabel/boot /boot ||
    echo "fwvm broken: the boot partition cannot be mounted"
ifconfig lo 127.0.0.1 up
ifconfig eth0 10.0.2.15 up
[ -e /etc/no-fsync ] && export LD_PRELOAD=/lib/libeatmydata.so

settings=$(sha256sum /data/settings) && echo "fwvm settings ${settings%% *}"
echo "fwvm up $version"
echo "fwvm status $(fwagent --json status 2>&1)"
fwagent --json run 2>&1 &
agent=$!
while read -r command; do
    case $command in
        status) echo "fwvm status $(fwagent --json status 2>&1)" ;;
        poll) kill -USR1 $agent ;;
        off)
            kill $agent
            wait $agent
            umount /data && echo "fwvm off"
            ;;
    esac
done
# Without a console there is nothing to do; the device stays as it is.
while :; do sleep 1000; done
