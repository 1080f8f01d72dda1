# Runs in the virtual machine of kernels.rs whose kernel is too old for a cluster.
pith up --detach --replicas 1
echo "up: $?"
pith doctor
ls /run/pith /var/lib/pith
set -e
version_1_alone
containers
