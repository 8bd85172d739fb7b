#!/usr/bin/busybox sh
# The guest's first process: mounts what a machine has mounted, runs what /plan lists, and tells on the second serial line how
# each ended. A kernel that crashes, or a guest that is ended before its end, leaves that line without its last word.
PATH=/usr/sbin:/usr/bin
export PATH
mount() { busybox mount "$@"; }
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
mount -t cgroup2 cgroup /sys/fs/cgroup
mount -t bpf bpf /sys/fs/bpf
unset -f mount

exec </dev/null >/dev/ttyS0 2>&1
exec 3>/dev/ttyS1
# What is written there is handed over as it is.
busybox stty -F /dev/ttyS2 raw

# The device file of one and the directory of the other come with them; all other modules the kernel loads when they are asked for.
modprobe -a tun pktgen
ip link set lo up
busybox hostname guest
# As systemd has it: each lab holds many descriptors.
ulimit -n 524288
export RUST_BACKTRACE=1
# Of what tests can do without where a kernel lacks it, this one has all.
export DSPROXY_KERNEL_HAS=sctp

echo ready >&3
# Each line: a name, the seconds it may take, and a command.
while read -r name patience command; do
    echo "--- $name: $command"
    { busybox timeout -s KILL "$patience" $command </dev/null; echo $? >/run/status; } 2>&1 | busybox tee /run/output
    read -r status </run/status
    summary=$(busybox grep '^test result: ' /run/output)
    echo "$name $status $summary" >&3
done </plan

echo end >&3
# The machine is told not to start anew (-no-reboot).
busybox reboot -f
