#!/bin/sh
# collect.sh PROGRAM ROOT: puts a program, and the libraries that it links to, where they belong below ROOT.
set -eu
program=$1 root=$2
install -D --mode=0755 "$program" "$root/usr/bin/$(basename "$program")"
# "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)", and the loader without an arrow. What is not found has no path.
libraries=$(ldd "$program")
case $libraries in *"not found"*) echo "$libraries" >&2 && exit 1 ;; esac
echo "$libraries" | grep -o '/[^ ]*' | while read -r library; do
    install -D --mode=0755 "$library" "$root$library"
done
