# What the virtual machines of kernels.rs have in common: the tests of the cgroups and of the runtime over them that
# depend on which hierarchies a machine has.
containers() {
    /bin/cgroup-tests --test-threads=1 freeze kill_reaches a_later device_rules
    export PITH_BIN_DIR=/bin
    /bin/runtime-tests from_create killing deleting pausing executing updating listing limits_ no_mount_namespace \
        a_false_label who_runs_away
    echo "containers: ok"
}

# Every controller in a hierarchy of its own, and no version 2 tree, as on hosts of long ago.
version_1_alone() {
    umount /sys/fs/cgroup
    mount -t tmpfs cgroup /sys/fs/cgroup
    for controller in $(awk '!/^#/ { print $1 }' /proc/cgroups); do
        mkdir /sys/fs/cgroup/$controller
        mount -t cgroup -o $controller cgroup /sys/fs/cgroup/$controller
    done
    ! grep -q cgroup2 /proc/self/mounts && echo "cgroups: v1"
}
