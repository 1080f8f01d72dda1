#!/bin/busybox sh
# The first process of a test's virtual machine: see vm.rs.
export PATH=/bin
if [ ! -f /switched ]; then
    # pivot_root(2) cannot leave the kernel's first root filesystem, so everything moves to one of its own.
    busybox mkdir /newroot
    busybox mount -t tmpfs tmpfs /newroot
    busybox cp -a /bin /modules /init /script /newroot/
    for extra in images; do [ -d /$extra ] && busybox cp -a /$extra /newroot/; done
    busybox touch /newroot/switched
    exec busybox switch_root /newroot /init
fi
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /tmp /run /var/lib /etc
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
for module in /modules/*.ko; do insmod "$module"; done
ip link set lo up
hostname vm
echo "127.0.0.1 localhost" > /etc/hosts
exec < /dev/null > /dev/console 2>&1
sh /script
echo "VM-END $?"
poweroff -f
