"""Tells which TCP ports are in use on this machine, and by whom.

    ports.py PORT…

Prints a sentence for each that is. The holder is found in /proc, without other
tools; that of another user's port only root can see.
"""

import errno
import os
import socket
import sys


def in_use(port):
    # The any-address collides with a listener on each single one.
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("0.0.0.0", port))
        except OSError as error:
            return error.errno == errno.EADDRINUSE
    return False


def holder(port):
    """Returns (name, pid) of the process that listens on a port, or None."""
    wanted = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            with open(table) as lines:
                for line in list(lines)[1:]:
                    fields = line.split()
                    if fields[3] == "0A" and int(fields[1].rpartition(":")[2], 16) == port:
                        wanted.add("socket:[%s]" % fields[9])
        except OSError:
            pass
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            for number in os.listdir("/proc/%s/fd" % pid):
                if os.readlink("/proc/%s/fd/%s" % (pid, number)) in wanted:
                    with open("/proc/%s/comm" % pid) as comm:
                        return comm.read().strip(), pid
        except OSError:
            pass  # another user's, or it has just ended
    return None


def main():
    for port in map(int, sys.argv[1:]):
        if not in_use(port):
            continue
        found = holder(port)
        if found:
            name, pid = found
            print("port %d is in use by %s (pid %s): stop it (kill %s, or its service where it is one)" % (port, name, pid, pid))
        else:
            print("port %d is in use by a process of another user (root finds it by `ss -ltnp 'sport = :%d'`): stop it" % (port, port))


if __name__ == "__main__":
    main()
